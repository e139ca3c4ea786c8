"""What a corpus may be given as, and what is refused, each by one clear line."""

import csv
import gzip
import io
import json
import os
import tarfile

import numpy as np
import pytest
import soundfile

from ast_fast_kernels.corpus import freeze as freezing
from ast_fast_kernels.corpus.freeze import freeze
from ast_fast_kernels.corpus.inputs import open_input
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.errors import InputError


def wav_bytes(num_samples=1600, rate=16000):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(num_samples, np.float32), rate, format="WAV")
    return file.getvalue()


def items_of(*paths, **options):
    return list(open_input(paths, **options).items)


def frozen(tmp_path, *paths, shard_size=100, **options):
    """Return a frozen input, and its items as they are read back."""
    listed = tmp_path / "list.jsonl"
    result = freeze(open_input(paths, **options), listed, shard_size)
    return result, [Item.from_line(line) for line in listed.read_bytes().splitlines()]


def write_jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder_gives_its_audio_sorted_and_nothing_hidden(tmp_path):
    root = tmp_path / "corpus"
    for name in ("b.wav", "a/z.FLAC", "a/ö 1.ogg", "a.wav", "c/.x.wav", ".d/e.wav", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert [item.path for item in items_of(root)] == ["a/z.FLAC", "a/ö 1.ogg", "a.wav", "b.wav"]
    below = [item.path for item in items_of(root / "a", root=root)]
    assert below == ["a/z.FLAC", "a/ö 1.ogg"]


def test_a_folder_of_tars_is_told_so(tmp_path):
    (tmp_path / "inside").mkdir()
    tar_of(tmp_path / "inside/x.tar", [("a.wav", wav_bytes())])
    with pytest.raises(InputError, match=r"holds no audio files but tars: name these, as \*\.tar"):
        items_of(tmp_path)


def test_a_list_names_files_and_names_that_are_not_utf8_count_as_bad(tmp_path):
    (tmp_path / "files.txt").write_bytes(b"a.wav\r\n\nsub/b c.wav\n\xff.wav\n\0.wav\n")
    _, items = frozen(tmp_path, tmp_path / "files.txt")
    assert [item.path for item in items] == ["a.wav", "sub/b c.wav", "\ufffd.wav", "\0.wav"]
    assert items[2].bad == "has a name that is not UTF-8"
    assert bytes.fromhex(items[2].path_bytes) == b"\xff.wav"
    assert items[3].bad == "has a name with a NUL, as no file has"


def test_half_a_character_in_a_name_counts_as_bad(tmp_path):
    path = write_jsonl(tmp_path / "m.jsonl", {"path": "\ud800.wav"}, {"path": "b.wav"})
    _, items = frozen(tmp_path, path)
    assert [item.bad is None for item in items] == [False, True]


def test_a_manifest_has_spans_keys_and_columns(tmp_path):
    path = write_jsonl(
        tmp_path / "m.jsonl",
        {"audio_filepath": "a.wav", "offset": 1.5, "duration": 2, "id": 7, "text": "hi", "row": 1},
        {"audio_filepath": "b.wav", "id": 8, "text": None, "gain": 1, "tags": ["x"], "odd": 1},
        {"audio_filepath": "b.wav", "id": 9, "gain": 0.5, "ok": True, "odd": "text"},
    )
    result, items = frozen(tmp_path, path)
    assert items[0] == Item(
        "a.wav",
        start=1.5,
        duration=2.0,
        key="7",
        columns={"start": 1.5, "duration": 2.0, "text": "hi", "input_row": 1},
    )
    assert [item.key for item in items] == ["7", "8", "9"]
    assert result.has_keys
    assert result.types == {
        "duration": "float64",
        "gain": "float64",
        "input_row": "int64",
        "odd": "json",
        "ok": "bool",
        "start": "float64",
        "tags": "json",
        "text": "string",
    }


def test_a_table_has_numbers_where_every_cell_is_one(tmp_path):
    with (tmp_path / "esc50.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "fold", "gain", "src", "take"])
        rows.writerow(["a, b.wav", "1", "1e-3", "007", "A"])
        rows.writerow(["c.wav", "", "2", "12", "B\nC"])
    result, items = frozen(tmp_path, tmp_path / "esc50.csv", root=tmp_path / "audio")
    assert [item.path for item in items] == ["a, b.wav", "c.wav"]
    assert items[1].columns["take"] == "B\nC"
    assert result.types == {"fold": "int64", "gain": "float64", "src": "string", "take": "string"}


def test_a_table_may_have_spans(tmp_path):
    (tmp_path / "m.csv").write_text("path,start,duration,fold\na.wav,0.5,2,1\nb.wav,,,\n")
    result, items = frozen(tmp_path, tmp_path / "m.csv")
    assert [(item.start, item.duration) for item in items] == [(0.5, 2.0), (0.0, None)]
    assert result.types == {"duration": "float64", "fold": "int64", "start": "float64"}


def test_a_span_may_have_an_end_instead_of_a_duration(tmp_path):
    (tmp_path / "m.csv").write_text("path,start,end\na.wav,0.5,2.5\nb.wav,,\n")
    items = items_of(tmp_path / "m.csv")
    assert [(item.start, item.duration) for item in items] == [(0.5, 2.0), (0.0, None)]


def test_another_column_can_name_the_audio(tmp_path):
    path = write_jsonl(tmp_path / "m.jsonl", {"path": "x", "clip": "a.wav"})
    (item,) = items_of(path, path_column="clip")
    assert (item.path, item.columns) == ("a.wav", {"input_path": "x"})


def test_a_manifest_may_be_compressed(tmp_path):
    with gzip.open(tmp_path / "m.jsonl.gz", "wt") as file:
        file.write('\ufeff{"path": "a.wav"}\n')
    assert [item.path for item in items_of(tmp_path / "m.jsonl.gz")] == ["a.wav"]


def tar_of(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_tars_are_read_by_offset_with_their_sidecars(tmp_path):
    audio = wav_bytes()
    first = tar_of(
        tmp_path / "a.tar",
        [
            ("x/1.json", b'{"text": "one", "frames": 3}'),
            ("x/1.wav", audio),
            ("x/1.cls", b"4\n"),
            ("x/2.left.wav", audio),
            ("x/2.right.wav", audio),
            ("x/.hidden.wav", audio),
        ],
    )
    second = tar_of(tmp_path / "b.tar", [("3.flac", b"fLaC"), ("3.txt", b" drei")])
    _, items = frozen(tmp_path, first, second)
    assert [item.path for item in items] == [
        "a.tar/x/1.wav",
        "a.tar/x/2.left.wav",
        "a.tar/x/2.right.wav",
        "b.tar/3.flac",
    ]
    deep = tar_of(tmp_path / "c.tar", [("4.wav", audio), ("4.json", b"[" * 10**5 + b"]" * 10**5)])
    with pytest.raises(InputError, match=r"c.tar: 4.json cannot be read: maximum recursion depth"):
        items_of(deep)
    assert [item.key for item in items] == ["x/1", "x/2.left", "x/2.right", "3"]
    assert items[0].columns == {"text": "one", "input_frames": 3, "cls": 4}
    assert items[3].columns == {"txt": "drei"}
    content = first.read_bytes()
    for item in items[:3]:
        assert content[item.begin : item.begin + item.size] == audio


def test_a_link_in_a_tar_counts_as_bad(tmp_path):
    path = tar_of(tmp_path / "x.tar", [("a.wav", wav_bytes())])
    with tarfile.open(path, "a") as tar:
        for name, kind in (("b.wav", tarfile.LNKTYPE), ("c.wav", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.wav"
            tar.addfile(link)
    items = items_of(path)
    reason = "is a link to a.wav, and links in a tar are not followed"
    assert [(item.key, item.bad) for item in items] == [("a", None), ("b", reason), ("c", reason)]


@pytest.mark.parametrize("kept", [None, 300])
def test_a_tar_damaged_or_cut_off_within_does_not_count_as_whole(tmp_path, kept):
    path = tar_of(tmp_path / "x.tar", [(f"{index}.wav", wav_bytes()) for index in range(4)])
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        second = tar.getmembers()[2].offset
    content[second : second + 8] = b"\xff" * 8
    path.write_bytes(content if kept is None else content[: second + kept])
    with pytest.raises(InputError, match=rf"x.tar cannot be read.*byte {second} must begin"):
        items_of(path)


CUT = {
    "id": "c1",
    "start": 0.5,
    "duration": 1.0,
    "channel": 0,
    "supervisions": [{"id": "s", "text": "hi", "speaker": "anna"}],
    "custom": {"snr": 3},
    "recording": {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": "a.wav"}],
        "sampling_rate": 16000,
        "num_samples": 32000,
        "duration": 2.0,
    },
    "type": "MonoCut",
}


def test_cuts_have_their_span_and_what_was_said(tmp_path):
    whole = {**CUT, "id": "c2", "start": 0, "duration": 2.0, "supervisions": []}
    items = items_of(write_jsonl(tmp_path / "cuts.jsonl", CUT, whole))
    assert items[0] == Item(
        "a.wav",
        start=0.5,
        duration=1.0,
        key="c1",
        columns={
            "snr": 3,
            "supervisions": CUT["supervisions"],
            "text": "hi",
            "speaker": "anna",
        },
    )
    assert items[1] == Item("a.wav", key="c2", columns={"snr": 3})
    (recording,) = items_of(write_jsonl(tmp_path / "recordings.jsonl", CUT["recording"]))
    assert recording == Item("a.wav", key="r")


def test_cuts_that_lhotse_wrote_are_read(tmp_path):
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    (tmp_path / "a.wav").write_bytes(wav_bytes(16000))
    recording = Recording.from_file(tmp_path / "a.wav")
    said = SupervisionSegment("s", recording.id, 0.0, 0.25, text="hi", custom={"mood": "calm"})
    cut = MonoCut("c", 0.25, 0.5, 0, supervisions=[said], recording=recording)
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl.gz")
    (item,) = items_of(tmp_path / "cuts.jsonl.gz")
    assert (item.key, item.start, item.duration) == ("c", 0.25, 0.5)
    assert item.path == str(tmp_path / "a.wav")
    assert item.columns["text"] == "hi"


def test_kaldis_list_has_keys(tmp_path):
    (tmp_path / "wav.scp").write_text("utt1 a b.wav\nutt2\t/x/c.wav\n")
    items = items_of(tmp_path / "wav.scp")
    assert [(item.key, item.path) for item in items] == [("utt1", "a b.wav"), ("utt2", "/x/c.wav")]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("m.jsonl", b'{"path": "a.wav"}\n{"path": \n', r"m.jsonl line 2 is not JSON"),
        ("m.jsonl", b'{"path": "a", "x": NaN}\n', r"line 1 is not JSON: NaN is no number"),
        ("m.jsonl", b'[{"path": "a.wav"}]\n', r"line 1 must be a JSON object, got \[\{"),
        ("m.jsonl", b'{"path": "a"}\n{"x": 1}\n', r"line 2 must name its audio in path or "),
        ("m.jsonl", b'{"path": ""}\n', r"line 1: path must be a file's name, got ''"),
        ("m.jsonl", b'{"path": 3}\n', r"line 1: path must be a file's name, got 3"),
        (
            "m.jsonl",
            b'{"path": "a", "start": -1}\n',
            r"start must be seconds from 0 to 1e\+09, got -1",
        ),
        ("m.jsonl", b'{"path": "a", "duration": 0}\n', r"duration must be above 0 s, got 0"),
        ("m.jsonl", b'{"path": "a", "start": 2, "end": 1.5}\n', r"be above 0 s, got -0.5"),
        ("m.jsonl", b'{"path": "a", "key": [1]}\n', r"key must be text, got \[1\]"),
        ("m.jsonl", b'{"path": "a", "x": "\\ud800"}\n', r"columns of a must be valid Unicode"),
        ("m.jsonl", b'{"path": "a", "x": 1e999}\n', r"columns of a must be .* finite"),
        ("m.jsonl", b'{"path": "a", "start": 1e300}\n', r"from 0 to 1e\+09, got 1e\+300"),
        ("m.jsonl", b'{"path": "a", "row": 1, "input_row": 2}\n', r"input_row beside row"),
        ("m.jsonl", b'{"path": "\xff"}\n', r"m.jsonl line 1 is not in UTF-8"),
        ("m.csv", b"path,x\na.wav,1,2\n", r"m.csv line 2 must have 2 cells, got 3"),
        ("m.csv", b"path,path\na.wav,1\n", r"line 1 must name each column once"),
        ("m.csv", b'path\n"a.wav\n', r"m.csv line 2 cannot be read: unexpected end of data"),
        ("m.jsonl.gz", b"no gzip", r"m.jsonl.gz cannot be read: Not a gzipped file"),
        ("wav.scp", b"utt sox a.wav -t wav - |\n", r"line 1 must name a file, got a command"),
        ("wav.scp", b"utt a.ark:123\n", r"line 1 must name a file, got an archive, a.ark:123"),
        ("wav.scp", b"utt\n", r"line 1 must be a key and a file, got utt"),
        ("x.tar", b"no tar at all", r"x.tar cannot be read as a tar"),
        ("cuts.yaml", b"- id: a\n", r"INPUT must be .* ends in .txt, got .*cuts.yaml"),
        ("files.txt", b"\n", r"INPUT must hold audio, got none"),
        (
            "m.jsonl",
            b'{"path": "a", "key": "k"}\n{"path": "b", "key": "k"}\n',
            r"keys of the input must differ, got k twice",
        ),
        (
            "m.jsonl",
            b'{"path": "a", "key": "k"}\n{"path": "b"}\n',
            r"every item of the input must have a key, or none; see b, item 2",
        ),
    ],
)
def test_what_cannot_be_read_is_told_by_one_line(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=problem) as raised:
        frozen(tmp_path, tmp_path / name)
    assert len(raised.value.problems) == 1
    assert not (tmp_path / "list.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"type": "MixedCut"}, r"line 1 must be a MonoCut or a MultiCut, got MixedCut"),
        ({"recording": None}, r"must have a recording, got none"),
        ({"channel": 1}, r"must have all channels of its recording, .* got \[1\] of \[0\]"),
        ({"sources": [{"type": "command"}]}, r"must have one source, of type file, got command"),
        ({"sources": []}, r"must have one source, of type file, got none"),
        ({"transforms": [{"name": "Speed"}]}, r"a recording with transforms, which are not"),
        ({"sources": [{}]}, r"line 1 is no cut that can be read: KeyError\('type'\)"),
    ],
)
def test_cuts_that_are_no_audio_of_one_file_are_refused(tmp_path, change, problem):
    cut = {**CUT, **change}
    if change.keys() & {"sources", "transforms"}:
        cut = {**CUT, "recording": {**CUT["recording"], **change}}
    with pytest.raises(InputError, match=problem):
        items_of(write_jsonl(tmp_path / "cuts.jsonl", cut))


def test_inputs_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"INPUT must exist, got .*nothing"):
        open_input([tmp_path / "nothing"])
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=r"one folder, list or manifest, or several tars"):
        open_input([tmp_path, tmp_path / "a.txt"])
    with pytest.raises(InputError, match=r"must be a folder, a list, a manifest or tars, got none"):
        open_input([])
    (tmp_path / "a.wav").touch()
    with pytest.raises(InputError, match=r"--root must go with a folder, .* got INPUT .*a.wav"):
        open_input([tmp_path / "a.wav"], root=tmp_path)
    with pytest.raises(InputError, match=r"--path-column must go with a manifest, got .*a.txt"):
        open_input([tmp_path / "a.txt"], path_column="clip")
    packed = tar_of(tmp_path / "x.tar", [("a.wav", wav_bytes())], "w:gz")
    with pytest.raises(InputError, match=r"a compressed one must be decompressed first"):
        items_of(packed)


def test_shards_end_after_some_files_or_some_bytes(tmp_path, monkeypatch):
    for index in range(7):
        (tmp_path / f"{index}.wav").write_bytes(b"x" * (60 if index == 3 else 10))
    whole, _ = frozen(tmp_path, tmp_path, shard_size=3)
    assert len(whole.offsets) - 1 == 3
    monkeypatch.setattr(freezing, "SHARD_BYTES", 60)
    by_size, items = frozen(tmp_path, tmp_path, shard_size=5)
    content = (tmp_path / "list.jsonl").read_bytes()
    parts = [content[i:j] for i, j in zip(by_size.offsets, by_size.offsets[1:], strict=False)]
    assert [len(part.splitlines()) for part in parts] == [4, 3]
    assert len(items) == by_size.num_items == 7


def test_the_first_shards_are_small(tmp_path):
    """So that a corpus of some hundred files keeps every process busy."""
    (tmp_path / "files.txt").write_text("".join(f"{i}.wav\n" for i in range(16 * 32 + 150)))
    result, _ = frozen(tmp_path, tmp_path / "files.txt", shard_size=70)
    content = (tmp_path / "list.jsonl").read_bytes()
    ends = zip(result.offsets, result.offsets[1:], strict=False)
    sizes = [content[i:j].count(b"\n") for i, j in ends]
    assert sizes == [32] * 16 + [64, 64, 22]


def test_items_are_written_as_they_are():
    item = Item("a/ü\u2028.wav", file="x.tar", begin=3, size=4, start=0.1, duration=2.5, key="k")
    assert Item.from_line(item.to_line()) == item
    assert os.linesep not in item.to_line()
