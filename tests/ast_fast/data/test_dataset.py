import csv
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

import ast_fast.data.cache
from ast_fast.data.cache import (
    DamagedCacheError,
    cache_folder,
    content_key,
    decode_settings,
    read_cache,
)
from ast_fast.data.dataset import check_folds, open_dataset
from ast_fast.data.metadata import read_metadata
from ast_fast.settings.config import AudioConfig, Config, FbankConfig, Paths
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files import atomic

RATE = 16000
HEADER = "filename,fold,target,category,esc10,src_file,take"
GOOD_ROWS = ("a.wav,1,0,dog,True,1,A", "b.wav,2,0,dog,False,2,A", "c.wav,2,7,cat,True,3,A")


def write_table(root, *lines, encoding="utf-8"):
    (root / "audio").mkdir(parents=True, exist_ok=True)
    (root / "meta").mkdir(exist_ok=True)
    content = "\n".join(lines) + "\n" if lines else ""
    (root / "meta" / "esc50.csv").write_text(content, encoding, newline="")
    return root


def write_set(root, *, folds=3, classes=2, takes=1, rate=RATE, seconds=0.5):
    """Write a small data set of noise; return its folder."""
    rows = [HEADER]
    for fold in range(1, folds + 1):
        for target in range(classes):
            for take in range(takes):
                name = f"{fold}-{take}-{target}.wav"
                rows.append(f"{name},{fold},{target},class{target},True,{take},A")
    write_table(root, *rows)
    for index, row in enumerate(rows[1:]):
        rng = np.random.default_rng(index)
        samples = rng.integers(-9999, 9999, int(seconds * rate), dtype=np.int16)
        soundfile.write(root / "audio" / row.split(",")[0], samples, rate)
    return root


def settings(root, cache, **changes):
    config = Config(paths=Paths(data=root, cache=cache), audio=AudioConfig(clip_seconds=0.5))
    return replace(config, **changes)


def quiet():
    return Console(file=io.StringIO())


@pytest.fixture
def root(tmp_path):
    return write_set(tmp_path / "set")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


# the table


def test_the_table_gives_its_clips_in_order(tmp_path):
    clips = read_metadata(write_table(tmp_path, HEADER, *GOOD_ROWS))
    assert [(c.filename, c.fold, c.target, c.category) for c in clips] == [
        ("a.wav", 1, 0, "dog"),
        ("b.wav", 2, 0, "dog"),
        ("c.wav", 2, 7, "cat"),
    ]


def test_the_subset_keeps_what_esc10_marks(tmp_path):
    clips = read_metadata(write_table(tmp_path, HEADER, *GOOD_ROWS), subset="esc10")
    assert [c.filename for c in clips] == ["a.wav", "c.wav"]


@pytest.mark.parametrize(
    "lines",
    [
        ("category,extra,target,fold,filename", "dog,?,0,1,a.wav"),
        ("filename,fold,target,category", "", "a.wav,1,0,dog", ""),
        ("\ufefffilename,fold,target,category", "a.wav,1,0,dog"),
        ("filename,fold,target,category\r", "a.wav,1,0,dog\r"),
        ('"filename","fold","target","category"', '"a.wav","1","0","dog"'),
    ],
    ids=["other-order-and-more-columns", "blank-lines", "byte-order-mark", "crlf", "quoted"],
)
def test_harmless_variants_of_the_table_are_read(tmp_path, lines):
    (clip,) = read_metadata(write_table(tmp_path, *lines))
    assert (clip.filename, clip.fold, clip.target, clip.category) == ("a.wav", 1, 0, "dog")


ROWS_AND_MESSAGES = {
    "fold-is-a-word": ("d.wav,one,0,dog,True,1,A", "column fold: must be a whole number of at"),
    "fold-is-zero": ("d.wav,0,0,dog,True,1,A", "column fold: must be a whole number of at least 1"),
    "fold-is-empty": ("d.wav,,0,dog,True,1,A", "column fold: .* got ''"),
    "fold-is-huge": (f"d.wav,{'9' * 30},0,dog,True,1,A", "column fold: must be a whole number"),
    "fold-is-a-fraction": ("d.wav,1.5,0,dog,True,1,A", "column fold: .* got '1.5'"),
    "target-is-negative": ("d.wav,1,-1,dog,True,1,A", "column target: .* at least 0, got '-1'"),
    "target-is-a-name": ("d.wav,1,dog,dog,True,1,A", "column target: .* got 'dog'"),
    "target-has-two-names": (
        "d.wav,1,0,wolf,True,1,A",
        "column category: must be 'dog' as on line 2, which also has target 0, got 'wolf'",
    ),
    "name-has-two-targets": (
        "d.wav,1,5,dog,True,1,A",
        "column target: must be 0 as on line 2, which is also 'dog', got '5'",
    ),
    "category-is-blank": ("d.wav,1,5, ,True,1,A", "column category: must be a name, got ' '"),
    "category-hides-a-bell": ("d.wav,1,5,\a,True,1,A", "column category: must be a name"),
    "filename-is-empty": (",1,0,dog,True,1,A", "column filename: must name a file, got ''"),
    "filename-twice": (
        "a.wav,2,0,dog,True,1,A",
        "column filename: must be listed once, but is on line 2 too, got 'a.wav'",
    ),
    "filename-twice-in-disguise": (
        "./a.wav,2,0,dog,True,1,A",
        "column filename: must be listed once, but is on line 2 too, got './a.wav'",
    ),
    "filename-goes-up": ("../d.wav,1,0,dog,True,1,A", "column filename: must stay inside audio/"),
    "filename-goes-up-inside": ("x/../../d.wav,1,0,dog,True,1,A", "must stay inside audio/, got"),
    "filename-goes-up-windows": ("..\\d.wav,1,0,dog,True,1,A", "must stay inside audio/, got"),
    "filename-is-absolute": ("/etc/passwd,1,0,dog,True,1,A", "must stay inside audio/, got"),
    "filename-has-a-drive": ("C:d.wav,1,0,dog,True,1,A", "must stay inside audio/, got 'C:d"),
    "too-few-values": ("d.wav,1,0", "must have 7 values, as many as the header, got 3"),
    "too-many-values": (
        "d.wav,1,0,dog,True,1,A,B",
        "must have 7 values, as many as the header, got 8",
    ),
    "open-quote": ('"d.wav,1,0,dog,True,1,A', "is not valid csv"),
}


@pytest.mark.parametrize(
    ("row", "message"), ROWS_AND_MESSAGES.values(), ids=ROWS_AND_MESSAGES.keys()
)
def test_a_malformed_row_is_named_by_line_and_column(tmp_path, row, message):
    write_table(tmp_path, HEADER, *GOOD_ROWS, row)
    with pytest.raises(InputError, match=rf"esc50\.csv, line 5.*{message}"):
        read_metadata(tmp_path)


def test_a_wrong_esc10_matters_only_to_the_subset(tmp_path):
    write_table(tmp_path, HEADER, *GOOD_ROWS, "d.wav,1,0,dog,maybe,1,A")
    assert len(read_metadata(tmp_path)) == 4
    with pytest.raises(InputError, match="line 5, column esc10: must be True or False, got 'mayb"):
        read_metadata(tmp_path, subset="esc10")


@pytest.mark.parametrize(
    ("lines", "subset", "message"),
    [
        ((), "all", "must begin with the columns filename, fold, target, category, but is empty"),
        ((HEADER,), "all", "must list at least one clip, but has no row below its header"),
        ((HEADER, "a.wav,1,0,dog,False,1,A"), "esc10", "but has no row with esc10 True"),
        (("filename,fold,target", "a,1,0"), "all", "line 1: column category must appear once"),
        (("filename;fold;target;category",), "all", "got 0 among 'filename;fold;target;cat"),
        (("filename,fold,fold,target,category",), "all", "column fold must appear once, got 2 "),
        (("filename,fold,target,category", "a,1,0,b"), "esc10", "column esc10 must appear once"),
    ],
    ids=[
        "empty-file",
        "header-alone",
        "empty-subset",
        "no-category",
        "semicolons",
        "fold-twice",
        "no-esc10",
    ],
)
def test_a_malformed_table_says_what_it_must_be(tmp_path, lines, subset, message):
    write_table(tmp_path, *lines)
    with pytest.raises(InputError, match=message):
        read_metadata(tmp_path, subset=subset)


def test_a_table_that_is_no_text_is_named(tmp_path):
    write_table(tmp_path, HEADER, "ä.wav,1,0,dog,True,1,A", encoding="latin-1")
    with pytest.raises(InputError, match=r"esc50\.csv must be text in UTF-8, got byte 0xe4"):
        read_metadata(tmp_path)


def test_a_table_that_is_a_pipe_or_endless_is_named(tmp_path):
    table = write_table(tmp_path, HEADER) / "meta" / "esc50.csv"
    os.truncate(table, 2**40)
    with pytest.raises(InputError, match=r"esc50\.csv cannot be read: Larger than 256 MiB"):
        read_metadata(tmp_path)
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(InputError, match=r"must hold meta/esc50\.csv, which is missing"):
        read_metadata(tmp_path)


def test_what_a_table_holds_is_quoted_short(tmp_path):
    write_table(tmp_path, HEADER, *GOOD_ROWS, f"d.wav,{'9' * 100_000},0,dog,True,1,A")
    with pytest.raises(InputError, match=r"column fold: .*, got '9{98,99}…9{98,99}'$"):
        read_metadata(tmp_path)
    write_table(tmp_path, "filename,fold\x1b[2J,target,category", "a.wav,1,0,dog")
    with pytest.raises(InputError, match=r"got 0 among 'filename', 'fold\\x1b\[2J', 'target'"):
        read_metadata(tmp_path)


def test_a_table_with_null_bytes_is_named(tmp_path):
    write_table(tmp_path, HEADER, "a\0.wav,1,0,dog,True,1,A")
    with pytest.raises(InputError, match=r"line 2.*(not valid csv|must name a file)"):
        read_metadata(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--data .*nowhere does not exist; --download fetches"):
        read_metadata(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--data .*file is not a folder"):
        read_metadata(tmp_path / "file")


def test_a_folder_without_a_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"must hold meta/esc50\.csv, which is missing$"):
        read_metadata(tmp_path)


def test_a_folder_one_too_high_gets_a_hint(tmp_path):
    write_set(tmp_path / "ESC-50-master")
    with pytest.raises(InputError, match=r"did you mean --data .*/ESC-50-master\?$"):
        read_metadata(tmp_path)


def test_a_folder_without_audio_is_named(tmp_path):
    write_table(tmp_path, HEADER, *GOOD_ROWS)
    (tmp_path / "audio").rmdir()
    with pytest.raises(InputError, match="must hold the folder audio/, which is missing"):
        read_metadata(tmp_path)


# the data set


def test_a_dataset_holds_every_file_in_the_table_s_order(root, cache):
    dataset = open_dataset(settings(root, cache), console=quiet())
    assert dataset.waveforms.shape == (6, 8000)
    assert dataset.waveforms.dtype == np.int16
    for row, clip in zip(dataset.waveforms, dataset.clips, strict=True):
        samples, _ = soundfile.read(root / "audio" / clip.filename, dtype="int16")
        np.testing.assert_array_equal(row, samples)
    assert dataset.class_names == ("class0", "class1")
    assert dataset.labels.tolist() == [0, 1] * 3
    assert dataset.folds.tolist() == [1, 1, 2, 2, 3, 3]
    assert dataset.sample_rate == RATE
    assert dataset.bad_files == ()
    assert dataset.root == root
    assert not dataset.synthesised


def test_labels_follow_the_targets_of_the_table(tmp_path, cache):
    rows = ("z.wav,1,30,zebra", "a.wav,1,40,ant", "m.wav,2,5,mouse", "y.wav,2,30,zebra")
    root = write_table(tmp_path / "set", "filename,fold,target,category", *rows)
    for name in "zamy":
        soundfile.write(root / "audio" / f"{name}.wav", np.zeros(100), RATE)
    dataset = open_dataset(settings(root, cache), console=quiet())
    assert dataset.class_names == ("mouse", "zebra", "ant")
    assert dataset.labels.tolist() == [1, 2, 0, 1]


def test_files_of_every_kind_share_one_dataset(tmp_path, cache):
    rows = ("a.wav,1,0,x", "b.flac,1,1,y", "c.ogg,2,0,x", "sub/d.wav,2,1,y")
    root = write_table(tmp_path / "set", "filename,fold,target,category", *rows)
    (root / "audio" / "sub").mkdir()
    soundfile.write(root / "audio" / "a.wav", np.zeros((44100, 2)), 44100)
    soundfile.write(root / "audio" / "b.flac", np.zeros(4801), 48000)
    soundfile.write(root / "audio" / "c.ogg", np.zeros(9001), 8000)
    soundfile.write(root / "audio" / "sub" / "d.wav", np.zeros(1), RATE)
    assert open_dataset(settings(root, cache), console=quiet()).waveforms.shape == (4, 8000)


def test_the_waveforms_are_mapped_from_disk_and_cannot_be_changed(root, cache):
    dataset = open_dataset(settings(root, cache), console=quiet())
    assert isinstance(dataset.waveforms, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        dataset.waveforms[0, 0] = 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Config(fbank=FbankConfig(sample_frequency=16000.5)),
            r"fbank\.sample-frequency must be a whole .* from 100 to 1000000, got 16000\.5",
        ),
        (
            Config(fbank=FbankConfig(sample_frequency=99, frame_length=100, frame_shift=100)),
            r"from 100 to 1000000, got 99",
        ),
        (Config(fbank=FbankConfig(sample_frequency=1e12)), r"from 100 to 1000000, got 1e\+12"),
        (
            Config(audio=AudioConfig(clip_seconds=0.0)),
            r"audio\.clip-seconds must be from one sample to 3600 seconds, got 0",
        ),
        (Config(audio=AudioConfig(clip_seconds=float("nan"))), r"audio\.clip-seconds must .* nan"),
        (Config(audio=AudioConfig(clip_seconds=float("inf"))), r"audio\.clip-seconds must .* inf"),
    ],
    ids=["rate", "rate-too-low", "rate-too-high", "no-length", "nan-length", "endless"],
)
def test_settings_without_a_clip_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        open_dataset(config, console=quiet())


# bad files


def spoil(root):
    """Make four of twelve files bad, each in its own way."""
    audio = root / "audio"
    (audio / "1-0-0.wav").unlink()
    (audio / "1-1-0.wav").write_bytes(b"")
    (audio / "2-0-1.wav").write_bytes((audio / "2-0-1.wav").read_bytes()[:5000])
    (audio / "3-1-1.wav").write_text("no audio" * 99)
    return ["1-0-0.wav", "1-1-0.wav", "2-0-1.wav", "3-1-1.wav"]


def test_all_bad_files_are_listed_at_once(tmp_path, cache):
    root = write_set(tmp_path / "set", takes=2)
    spoil(root)
    with pytest.raises(InputError) as caught:
        open_dataset(settings(root, cache), console=quiet())
    message = str(caught.value)
    assert message == (
        f"4 of 12 files in {root}/audio cannot be used: 1-0-0.wav is absent; "
        "1-1-0.wav is empty (0 bytes); 2-0-1.wav is cut short: its header promises 16000 bytes of "
        "audio, it holds 4956; 3-1-1.wav is not audio that libsndfile can decode (Format not "
        "recognised); --skip-bad-files leaves them out"
    )
    assert not list(cache.glob("audio-*/"))
    assert not list(cache.glob(".*"))


def test_bad_files_are_left_out_and_counted_when_asked(tmp_path, cache):
    root = write_set(tmp_path / "set", takes=2)
    bad = spoil(root)
    dataset = open_dataset(settings(root, cache, skip_bad_files=True), console=quiet())
    assert dataset.waveforms.shape == (8, 8000)
    assert [file.filename for file in dataset.bad_files] == bad
    assert dataset.bad_files[0].reason == "is absent"
    assert dataset.bad_files[0].category == "class0"
    for row, clip in zip(dataset.waveforms, dataset.clips, strict=True):
        samples, _ = soundfile.read(root / "audio" / clip.filename, dtype="int16")
        np.testing.assert_array_equal(row, samples)
    with pytest.raises(InputError, match=r"4 of 12 files .* cannot be used"):
        open_dataset(settings(root, cache), console=quiet())
    again = open_dataset(settings(root, cache, skip_bad_files=True), console=quiet())
    assert again.bad_files == dataset.bad_files
    assert again.decode_seconds == 0.0


def test_a_repaired_file_is_taken_in_again(tmp_path, cache):
    root = write_set(tmp_path / "set", takes=2)
    good = (root / "audio" / "1-0-0.wav").read_bytes()
    (root / "audio" / "1-0-0.wav").write_bytes(b"")
    config = settings(root, cache, skip_bad_files=True)
    assert len(open_dataset(config, console=quiet()).clips) == 11
    (root / "audio" / "1-0-0.wav").write_bytes(good)
    assert len(open_dataset(config, console=quiet()).clips) == 12


@pytest.mark.parametrize(
    ("listed", "there"),
    [
        ("dog.wav", "Dog.WAV"),
        ("STRASSE.wav", "straße.wav"),
        (unicodedata.normalize("NFC", "café.wav"), unicodedata.normalize("NFD", "café.wav")),
        (unicodedata.normalize("NFD", "café.wav"), unicodedata.normalize("NFC", "CAFÉ.wav")),
        ("low/dog.wav", "Low/dog.wav"),
    ],
    ids=["case", "sharp-s", "composed", "decomposed-and-case", "folder"],
)
def test_a_file_under_another_spelling_is_told_as_that(tmp_path, cache, listed, there):
    rows = (f"{listed},1,0,x", "b.wav,2,0,x")
    root = write_table(tmp_path / "set", "filename,fold,target,category", *rows)
    for name in (there, "b.wav"):
        (root / "audio" / name).parent.mkdir(exist_ok=True)
        soundfile.write(root / "audio" / name, np.ones(100), RATE)
    if (root / "audio" / listed).exists():
        pytest.skip("this file system takes both spellings for one")
    with pytest.raises(InputError) as caught:
        open_dataset(settings(root, cache), console=quiet())
    assert f": {listed} is absent, but is there as {there!r}; --skip-bad-" in str(caught.value)


def test_a_file_that_is_absent_in_every_spelling_is_absent(root, cache):
    (root / "audio" / "1-0-0.wav").unlink()
    (root / "audio" / "1-0-00.wav").touch()
    with pytest.raises(InputError, match=r"1-0-0\.wav is absent; --skip-bad-files leaves them out"):
        open_dataset(settings(root, cache), console=quiet())


def spoil_audio(root):
    """Ruin five of twelve files' audio, each a little differently; return their names by kind."""
    audio = root / "audio"
    noise = np.random.default_rng(0).uniform(-1, 1, 8000)
    soundfile.write(audio / "1-0-0.wav", 32768 * noise, RATE, subtype="FLOAT")
    soundfile.write(audio / "1-1-0.wav", np.stack([noise, -noise], 1), RATE)
    soundfile.write(audio / "2-0-1.wav", np.zeros(8000), RATE)
    soundfile.write(audio / "3-1-1.wav", np.zeros((99, 2)), RATE)
    return {
        "clipped": ["1-0-0.wav"],
        "cancelled": ["1-1-0.wav"],
        "silent": ["2-0-1.wav", "3-1-1.wav"],
    }


def test_ruined_audio_is_named_by_kind_from_a_warm_cache_too(tmp_path, cache):
    root = write_set(tmp_path / "set", takes=2)
    assert open_dataset(settings(root, cache), console=quiet()).flaws == {}
    spoiled = spoil_audio(root)
    cold = open_dataset(settings(root, cache), console=quiet())
    warm = open_dataset(settings(root, cache), console=quiet())
    assert cold.decode_seconds > 0 == warm.decode_seconds
    assert cold.flaws == warm.flaws == spoiled


def test_many_bad_files_are_counted_beyond_the_first_twenty(tmp_path, cache):
    root = write_set(tmp_path / "set", takes=10)
    for path in sorted((root / "audio").iterdir())[:25]:
        path.unlink()
    with pytest.raises(InputError, match=r"^25 of 60 files .*is absent; and 5 more; --skip"):
        open_dataset(settings(root, cache), console=quiet())


def test_a_class_without_any_usable_file_is_named(root, cache):
    for fold in (1, 2, 3):
        (root / "audio" / f"{fold}-0-1.wav").unlink()
    with pytest.raises(InputError, match=r"is left for class 'class1': 1-0-1\.wav is abs"):
        open_dataset(settings(root, cache, skip_bad_files=True), console=quiet())


def test_a_dataset_without_any_usable_file_is_named(root, cache):
    shutil.rmtree(root / "audio")
    (root / "audio").mkdir()
    with pytest.raises(InputError, match="no usable file is left for class 'class0', 'class1'"):
        open_dataset(settings(root, cache, skip_bad_files=True), console=quiet())


# folds


def test_no_fold_named_means_all_of_them(root, cache):
    assert check_folds(open_dataset(settings(root, cache), console=quiet())) == (1, 2, 3)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ((7,), r"--folds must name folds of .*esc50\.csv \(1, 2, 3\), got 7"),
        ((1, 0), r"--folds must name folds .*, got 0"),
        ((1, 2, 1), r"--folds must name each fold once, got 1 twice"),
    ],
    ids=["absent", "zero", "twice"],
)
def test_wrong_folds_are_named(root, cache, folds, message):
    dataset = open_dataset(settings(root, cache), console=quiet())
    assert check_folds(dataset, (3, 1)) == (3, 1)
    with pytest.raises(InputError, match=message):
        check_folds(dataset, folds)


def test_a_class_that_a_fold_leaves_untrained_is_named(tmp_path, cache):
    rows = ("a.wav,1,0,dog", "b.wav,2,0,dog", "c.wav,2,1,cat", "d.wav,2,1,cat")
    root = write_table(tmp_path / "set", "filename,fold,target,category", *rows)
    for name in "abcd":
        soundfile.write(root / "audio" / f"{name}.wav", np.zeros(100), RATE)
    dataset = open_dataset(settings(root, cache), console=quiet())
    assert check_folds(dataset, (1,)) == (1,)
    with pytest.raises(InputError, match="class 'cat' has no training clip when fold 2 is tested"):
        check_folds(dataset)


def test_a_fold_whose_files_are_all_bad_has_nothing_to_test(root, cache):
    for target in (0, 1):
        (root / "audio" / f"2-0-{target}.wav").unlink()
    dataset = open_dataset(settings(root, cache, skip_bad_files=True), console=quiet())
    assert check_folds(dataset, (1, 3)) == (1, 3)
    with pytest.raises(InputError, match=r"fold 2 has no test clip \(bad files skipped: 2\)"):
        check_folds(dataset)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"folds": 1}, "must have at least 2 folds to cross-validate, got only fold 1"),
        ({"classes": 1}, "must have at least 2 classes, got only 'class0'"),
    ],
    ids=["one-fold", "one-class"],
)
def test_what_cannot_be_cross_validated_is_named(tmp_path, cache, shape, message):
    root = write_set(tmp_path / "set", **shape)
    dataset = open_dataset(settings(root, cache), console=quiet())
    with pytest.raises(InputError, match=message):
        check_folds(dataset)


# the cache


def test_a_second_opening_decodes_nothing(root, cache, monkeypatch):
    first = open_dataset(settings(root, cache), console=quiet())
    monkeypatch.delattr("ast_fast.data.cache.read_clip")
    second = open_dataset(settings(root, cache), console=quiet())
    assert first.decode_seconds > 0
    assert second.decode_seconds == 0.0
    assert second.key == first.key
    np.testing.assert_array_equal(second.waveforms, first.waveforms)


def test_a_copied_and_touched_data_set_uses_the_same_cache(root, cache, tmp_path, monkeypatch):
    open_dataset(settings(root, cache), console=quiet())
    copy = shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    monkeypatch.delattr("ast_fast.data.cache.read_clip")
    assert open_dataset(settings(copy, cache), console=quiet()).decode_seconds == 0.0


def _change_one_sample(root):
    path = root / "audio" / "2-0-1.wav"
    status = path.stat()
    samples, rate = soundfile.read(path, dtype="int16")
    samples[100] += 1
    soundfile.write(path, samples, rate)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _drop_a_row(root):
    table = root / "meta" / "esc50.csv"
    table.write_text(table.read_text().rsplit("\n", 2)[0] + "\n")


def _swap_rows(root):
    table = root / "meta" / "esc50.csv"
    header, first, second, *rest = table.read_text().splitlines()
    table.write_text("\n".join([header, second, first, *rest]) + "\n")


@pytest.mark.parametrize("change", [_change_one_sample, _drop_a_row, _swap_rows])
def test_a_changed_data_set_is_decoded_anew(root, cache, change):
    before = open_dataset(settings(root, cache), console=quiet())
    change(root)
    after = open_dataset(settings(root, cache), console=quiet())
    assert after.key != before.key
    for row, clip in zip(after.waveforms, after.clips, strict=True):
        samples, _ = soundfile.read(root / "audio" / clip.filename, dtype="int16")
        np.testing.assert_array_equal(row, samples)


@pytest.mark.parametrize(
    "changes",
    [
        {"audio": AudioConfig(clip_seconds=0.4)},
        {"audio": AudioConfig(clip_seconds=0.5, resample_quality="VHQ")},
        {"fbank": FbankConfig(sample_frequency=8000.0)},
    ],
    ids=["length", "quality", "rate"],
)
def test_other_settings_have_another_cache(root, cache, changes):
    before = open_dataset(settings(root, cache), console=quiet())
    after = open_dataset(settings(root, cache, **changes), console=quiet())
    assert after.key != before.key
    assert len(list(cache.glob("audio-*/"))) == 2


def test_labels_are_read_from_the_table_not_from_the_cache(root, cache):
    open_dataset(settings(root, cache), console=quiet())
    table = root / "meta" / "esc50.csv"
    table.write_text(table.read_text().replace("class1", "cat"))
    dataset = open_dataset(settings(root, cache), console=quiet())
    assert dataset.class_names == ("class0", "cat")
    assert dataset.decode_seconds == 0.0


def _swap_folds(table):
    first, second = table.splitlines()[1], table.splitlines()[3]
    moved = first.replace(",1,", ",2,", 1), second.replace(",2,", ",1,", 1)
    return table.replace(first, moved[0]).replace(second, moved[1])


@pytest.mark.parametrize(
    "change",
    [
        _swap_folds,
        lambda table: table.replace("class1", "cat"),
        lambda table: table.replace(",0,class0", ",9,class0"),
    ],
    ids=["two-clips-swap-folds", "a-class-is-renamed", "a-target-is-renumbered"],
)
def test_a_changed_table_changes_the_key_and_decodes_nothing(root, cache, change):
    before = open_dataset(settings(root, cache), console=quiet())
    table = root / "meta" / "esc50.csv"
    table.write_text(change(table.read_text()))
    after = open_dataset(settings(root, cache), console=quiet())
    assert after.key != before.key
    assert after.decode_seconds == 0.0


def test_a_large_file_counts_by_its_beginning_size_and_time(root, monkeypatch):
    monkeypatch.setattr("ast_fast.data.cache.HASHED_BYTES", 1000)
    clips = read_metadata(root)
    decoding = decode_settings(settings(root, None))
    before = content_key(root, clips, decoding, workers=1)
    assert content_key(root, clips, decoding, workers=2) == before
    os.utime(root / "audio" / "1-0-0.wav", ns=(1, 1))
    assert content_key(root, clips, decoding, workers=1) != before


def _truncate(folder):
    os.truncate(folder / "waveforms.npy", 5000)


def _empty_waveforms(folder):
    (folder / "waveforms.npy").write_bytes(b"")


def _empty_notes(folder):
    (folder / "about.json").write_text("")


def _other_notes(folder):
    (folder / "about.json").write_text(json.dumps({"bad_files": {"1-0-0.wav": "is absent"}}))


def _no_waveforms(folder):
    (folder / "waveforms.npy").unlink()


def _no_notes(folder):
    (folder / "about.json").unlink()


def _other_type(folder):
    np.save(folder / "waveforms.npy", np.zeros((6, 8000), np.float32))


def _columns_first(folder):
    np.save(folder / "waveforms.npy", np.asfortranarray(np.load(folder / "waveforms.npy")))


def _swap_clips(folder):
    np.save(folder / "waveforms.npy", np.load(folder / "waveforms.npy")[::-1])


def _silence(folder):
    np.save(folder / "waveforms.npy", np.zeros((6, 8000), np.int16))


def _pipe(name):
    def replace(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return replace


def _edit_notes(change):
    def edit(folder):
        about = json.loads((folder / "about.json").read_text())
        change(about)
        (folder / "about.json").write_text(json.dumps(about))

    return edit


DAMAGES = {
    "truncated": (_truncate, "a file is not readable"),
    "empty-waveforms": (_empty_waveforms, "a file is not readable"),
    "empty-notes": (_empty_notes, "a file is not readable"),
    "other-notes": (_other_notes, "about.json"),
    "notes-are-a-pipe": (_pipe("about.json"), "about.json cannot be read: Not a regular file"),
    "waveforms-are-a-pipe": (_pipe("waveforms.npy"), "waveforms.npy cannot be read: Not a regular"),
    "no-notes": (_no_notes, "about.json is missing"),
    "no-waveforms": (_no_waveforms, "waveforms.npy is missing"),
    "other-type": (_other_type, "waveforms.npy"),
    "columns-first": (_columns_first, "waveforms.npy"),
    "clips-swapped": (_swap_clips, "waveforms.npy"),
    "silence": (_silence, "waveforms.npy"),
    "a-flaw-added": (_edit_notes(lambda about: about["flaws"].update(silent=["x"])), "about.json"),
    "a-file-made-bad": (_edit_notes(lambda about: about["bad_files"].update(x="")), "about.json"),
    "another-checksum": (_edit_notes(lambda about: about.update(waveforms="0" * 64)), "about.json"),
    "no-checksum": (_edit_notes(lambda about: about.pop("waveforms")), "about.json"),
    "notes-are-a-list": (lambda folder: (folder / "about.json").write_text("[]"), "not readable"),
    "notes-are-deep": (
        lambda folder: (folder / "about.json").write_text("[" * 100_000),
        "not readable",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_built_again(root, cache, damage, said):
    first = np.array(open_dataset(settings(root, cache), console=quiet()).waveforms)
    (folder,) = cache.glob("audio-*/")
    damage(folder)
    console = quiet()
    again = open_dataset(settings(root, cache), console=console)
    assert again.decode_seconds > 0
    np.testing.assert_array_equal(again.waveforms, first)
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith(f"cache {folder} is damaged (")
    assert said in line
    assert line.endswith("); the audio is decoded again")
    console = quiet()
    assert open_dataset(settings(root, cache), console=console).decode_seconds == 0.0
    assert console.file.getvalue() == ""


def test_any_flipped_bit_is_noticed(root, cache):
    config = settings(root, cache)
    first = np.array(open_dataset(config, console=quiet()).waveforms)
    (folder,) = cache.glob("audio-*/")
    rng = np.random.default_rng(0)
    for name, times in (("waveforms.npy", 40), ("about.json", 40)):
        whole = (folder / name).read_bytes()
        for _ in range(times):
            content = bytearray(whole)
            at = int(rng.integers(len(content)))
            content[at] ^= 1 << int(rng.integers(8))
            (folder / name).write_bytes(content)
            try:
                cached = read_cache(folder, 6, 8000, workers=1)
            except DamagedCacheError:
                continue
            # a letter of the padding, of no meaning
            np.testing.assert_array_equal(cached.waveforms, first)
            assert cached.flaws == {}
            assert cached.reasons == {}
        (folder / name).write_bytes(whole)
    assert read_cache(folder, 6, 8000, workers=1) is not None


def test_what_is_verified_is_the_memory_that_is_read(root, cache, monkeypatch):
    open_dataset(settings(root, cache), console=quiet())
    seen = []
    plain = ast_fast.data.cache._row_digest

    def row_digest(row):
        seen.append(row)
        return plain(row)

    monkeypatch.setattr("ast_fast.data.cache._row_digest", row_digest)
    dataset = open_dataset(settings(root, cache), console=quiet())
    assert [np.shares_memory(row, dataset.waveforms[n]) for n, row in enumerate(seen)] == [True] * 6


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(tmp_path, cache, workers, monkeypatch):
    monkeypatch.setattr("ast_fast.data.cache.BATCH", 2)
    root = write_set(tmp_path / "set", takes=4)
    audio = AudioConfig(clip_seconds=0.5, workers=workers)
    dataset = open_dataset(settings(root, cache, audio=audio), console=quiet())
    for row, clip in zip(dataset.waveforms, dataset.clips, strict=True):
        samples, _ = soundfile.read(root / "audio" / clip.filename, dtype="int16")
        np.testing.assert_array_equal(row, samples)


def test_a_full_disk_is_one_error_and_leaves_nothing(root, cache, monkeypatch):
    def no_space(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "flush", no_space)
    with pytest.raises(InputError, match=r"No space left on device; free some space or name anoth"):
        open_dataset(settings(root, cache), console=quiet())
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_full_disk_while_rows_are_written_is_one_error(root, cache, monkeypatch):
    def no_space(file, num_clips, num_samples):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ast_fast.data.cache._write_header", no_space)
    with pytest.raises(InputError, match=rf"cache folder {cache} cannot be written: No space left"):
        open_dataset(settings(root, cache), console=quiet())


def test_a_cache_folder_that_cannot_be_made_is_named(root, tmp_path):
    (tmp_path / "file").write_text("")
    cache = tmp_path / "file" / "cache"
    with pytest.raises(
        InputError, match=rf"cache folder {cache} cannot .*; name another with --ca"
    ):
        open_dataset(settings(root, cache), console=quiet())


def test_the_cache_lies_in_the_user_s_folder_unless_named(root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_folder(Config()).name == "ast-fast"
    assert cache_folder(settings(root, tmp_path)) == tmp_path


SLOW_BUILD = """
import sys, time
from pathlib import Path
from ast_fast.data import cache
from ast_fast.data.dataset import open_dataset
from ast_fast.settings.config import AudioConfig, Config, Paths
plain = cache.read_clip
def slow(*args, **kwargs):
    time.sleep(float(sys.argv[3]))
    return plain(*args, **kwargs)
cache.read_clip = slow
paths = Paths(data=Path(sys.argv[1]), cache=Path(sys.argv[2]))
dataset = open_dataset(Config(paths=paths, audio=AudioConfig(clip_seconds=0.5)))
print(dataset.decode_seconds > 0, int(dataset.waveforms.astype("int64").sum()))
"""


def start_build(root, cache, pause):
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_BUILD, str(root), str(cache), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def test_sound_levels_are_rms_of_full_scale(root, cache):
    samples = [[0] * 4, [16384, -16384, 16384, -16384], [-32768] * 4]
    dataset = replace(open_dataset(settings(root, cache)), waveforms=np.array(samples, np.int16))
    np.testing.assert_array_equal(dataset.sound_levels, np.array([0.0, 0.5, 1.0], np.float32))
    assert dataset.sound_levels is dataset.sound_levels


def test_two_processes_at_once_decode_once(root, cache):
    processes = [start_build(root, cache, 0.2) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    built, sums = zip(*(stdout.split() for stdout, _ in outputs), strict=True)
    assert sorted(built) == ["False", "True"]
    assert sums[0] == sums[1]


def test_a_build_killed_half_way_is_never_read_and_is_cleared_away(root, cache):
    process = start_build(root, cache, 30)
    deadline = time.monotonic() + 60
    while not list(cache.glob(".audio-*.partial/waveforms.npy")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    dataset = open_dataset(settings(root, cache), console=quiet())
    assert dataset.decode_seconds > 0
    for row, clip in zip(dataset.waveforms, dataset.clips, strict=True):
        samples, _ = soundfile.read(root / "audio" / clip.filename, dtype="int16")
        np.testing.assert_array_equal(row, samples)
    assert not list(cache.glob(".audio-*"))


# real clips


@pytest.mark.data
def test_esc10_s_own_clips_make_a_dataset(data_root, cache):
    root = data_root / "esc10"
    dataset = open_dataset(Config(paths=Paths(data=root, cache=cache)), console=quiet())
    assert dataset.waveforms.shape == (400, 80000)
    assert len(dataset.class_names) == 10
    assert dataset.class_names[:2] == ("dog", "rooster")
    assert np.bincount(dataset.labels).tolist() == [40] * 10
    assert np.bincount(dataset.folds).tolist() == [0, 80, 80, 80, 80, 80]
    assert dataset.bad_files == ()
    assert check_folds(dataset) == (1, 2, 3, 4, 5)
    assert np.abs(dataset.waveforms[::40]).max(axis=1).min() > 1000
    with (root / "meta" / "esc50.csv").open() as file:
        rows = list(csv.DictReader(file))
    named = [dataset.class_names[label] for label in dataset.labels]
    assert named == [row["category"] for row in rows]


@pytest.mark.data
def test_esc50_s_table_names_its_subset(data_root):
    table = data_root / "esc50"
    if not (table / "meta" / "esc50.csv").is_file():
        pytest.skip(f"{data_root} holds no esc50/meta/esc50.csv")
    assert len(read_metadata(table)) == 2000
    subset = read_metadata(table, subset="esc10")
    assert len(subset) == 400
    assert len({clip.category for clip in subset}) == 10
