"""A corpus from files to shards: killed and resumed, with bad files, by one process or several."""

import errno
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from ast_fast_kernels import FbankConfig, extract, fbank
from ast_fast_kernels.audio import decode
from ast_fast_kernels.corpus import flush, work
from ast_fast_kernels.corpus.extractor import FbankExtractor
from ast_fast_kernels.corpus.flush import Flusher
from ast_fast_kernels.corpus.jobs import _send_error
from ast_fast_kernels.corpus.output import Output
from ast_fast_kernels.files.atomic import PARTIAL
from tests.kernels.corpus import energy_extract

SCRIPT = Path(__file__).with_name("energy_extract.py")
BAD = {"a.wav": b"", "m.wav": b"no audio", "z.wav": b"RIFF"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of 22 short files in one shape or another, and three that are no audio."""
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for index in range(22):
        noise = rng.uniform(-0.5, 0.5, (2000 + 97 * index, 1 + index % 2))
        soundfile.write(root / f"{index:02d}.wav", noise, (16000, 8000)[index % 3 == 0])
    for name, content in BAD.items():
        (root / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The output of a run in this process that nothing interrupted, by file."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert energy_extract.main(corpus, out, 1) == 1
    return contents(out)


def contents(out):
    """Return the SHA-256 of every file in a folder, by name."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def start(corpus, out, jobs, *flags, **variables):
    return subprocess.Popen(
        [sys.executable, SCRIPT, corpus, out, str(jobs), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )


def test_the_command_gives_what_fbank_gives(tmp_path, capsys):
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (3, 8000)).astype(np.float32)
    for index, samples in enumerate(noise):
        soundfile.write(tmp_path / f"{index}.wav", samples, 16000, subtype="FLOAT")
    manifest = tmp_path / "m.jsonl"
    rows = [{"path": f"{index}.wav", "label": f"l{index}", "n": index} for index in range(3)]
    rows.append({"path": "1.wav", "start": 0.1, "duration": 0.2, "n": None})
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    arguments = [str(manifest), "--out", str(out), "--preset", "kaldi", "--num-mel-bins", "40"]
    arguments += ["--dtype", "float32", "--jobs", "1", "--shard-size", "3"]
    assert extract.main(arguments) == 0
    assert "4 files, 0.00 h of audio in" in capsys.readouterr().out
    config = FbankConfig.preset("kaldi", num_mel_bins=40)
    expected = [fbank(samples, config) for samples in (*noise, noise[1][1600:4800])]
    names = ["shard-000000.arrow", "shard-000001.arrow"]
    tables = [pa.ipc.open_file(pa.memory_map(str(out / name))).read_all() for name in names]
    got = pa.concat_tables(tables).to_pylist()
    for row, features in zip(got, expected, strict=True):
        np.testing.assert_array_equal(np.array(row["features"], np.float32), features)
        assert row["num_frames"] == len(features)
    manifest_lines = lines(out / "manifest.jsonl")
    assert [row["label"] for row in manifest_lines] == ["l0", "l1", "l2", None]
    assert [row["n"] for row in manifest_lines] == [0, 1, 2, None]
    assert [(row["shard"], row["row"]) for row in manifest_lines] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
    ]
    assert manifest_lines[3]["seconds"] == pytest.approx(0.2)
    assert manifest_lines[3]["start"] == 0.1
    assert manifest_lines[1]["digest"] == manifest_lines[3]["digest"]
    assert sorted(path.name for path in out.iterdir()) == [
        "extract.toml",
        "failed.jsonl",
        "manifest.jsonl",
        *names,
        "shards.jsonl",
    ]
    settings = tomllib.loads((out / "extract.toml").read_text())
    assert settings["features"]["preset"] == "kaldi"
    assert FbankConfig(**settings["features"]["fbank"]) == config
    assert settings["result"] == {"files": 4, "bad": 0, "seconds": pytest.approx(1.7)}

    assert extract.main(arguments) == 0
    assert f"nothing to do: {out} is complete (4 files, 0 bad)" in capsys.readouterr().out
    assert extract.main([*arguments, "--num-mel-bins", "41"]) == 2
    error = "holds a finished run of other settings: features.fbank.num_mel_bins was 40 and is now"
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("name", ["shard-000001.arrow", "manifest.jsonl", "shards.jsonl"])
def test_a_finished_output_that_lost_a_file_is_not_complete(tmp_path, capsys, name):
    for k in range(3):
        soundfile.write(tmp_path / f"{k}.wav", np.zeros(1600), 16000)
    out = tmp_path / "out"
    arguments = [str(tmp_path), "--out", str(out), "--num-mel-bins", "40", "--shard-size", "1"]
    arguments += ["--jobs", "1", "--resume"]
    assert extract.main(arguments) == 0
    (out / name).unlink()
    capsys.readouterr()
    assert extract.main(arguments) == 2
    error = f"error: --out {out} holds a finished run that has lost 1 file, {name} first;"
    assert capsys.readouterr().err.startswith(error)
    if name.endswith(".arrow"):
        (out / name).touch()  # as a power cut may leave it
        assert extract.main(arguments) == 2


@pytest.mark.parametrize("preset", ["ast", "kaldi", "whisper"])
def test_what_has_no_frame_gives_no_row_of_any_convention(preset):
    extractor = FbankExtractor(FbankConfig.preset(preset))
    (row,) = extractor([np.zeros(0, np.float32)])
    assert row.shape == (0, extractor.width)


def test_dither_is_the_same_whoever_makes_a_shard(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16000)
    soundfile.write(tmp_path / "b.wav", np.zeros(1600), 16000)
    arguments = [str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--preset", "kaldi"]
    arguments += ["--num-mel-bins", "40", "--dither", "1", "--jobs", "1"]
    for name in ("one", "two"):
        assert extract.main([*arguments, "--out", str(tmp_path / name)]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    table = pa.ipc.open_file(tmp_path / "one" / "shard-000000.arrow").read_all()
    first, second = table["features"].to_pylist()
    assert first != second


def test_long_files_are_read_in_blocks_and_short_ones_are_listed(tmp_path, monkeypatch):
    noise = np.random.default_rng(2).uniform(-0.5, 0.5, 9000)
    for name, samples in (("long", noise), ("short", noise[:80])):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000)
    arguments = [str(tmp_path / f"{name}.wav") for name in ("long", "short")]
    arguments += ["--preset", "kaldi", "--num-mel-bins", "40", "--dither", "1", "--jobs", "1"]
    assert extract.main([*arguments, "--out", str(tmp_path / "whole")]) == 1
    (failed,) = lines(tmp_path / "whole" / "failed.jsonl")
    assert failed["reason"] == "is too short for one frame: 0.005 s"

    taken = []
    of_blocks = FbankExtractor.of_blocks
    monkeypatch.setattr(
        FbankExtractor, "of_blocks", lambda *given: taken.append(of_blocks(*given)) or taken[-1]
    )
    monkeypatch.setattr(decode, "BLOCK_VALUES", 3001)
    assert extract.main([*arguments, "--out", str(tmp_path / "blocks")]) == 1
    assert len(taken) == 1
    assert contents(tmp_path / "whole") == contents(tmp_path / "blocks")


def test_bad_files_are_listed_and_left_out(corpus, whole, tmp_path, capsys):
    out = tmp_path / "out"
    assert energy_extract.main(corpus, out, 1, "--skip-bad-files") == 0
    shown = capsys.readouterr()
    assert contents(out) == whole
    assert lines(out / "failed.jsonl") == [
        {"path": "a.wav", "reason": "is empty (0 bytes)"},
        {"path": "m.wav", "reason": lines(out / "failed.jsonl")[1]["reason"]},
        {"path": "z.wav", "reason": lines(out / "failed.jsonl")[2]["reason"]},
    ]
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert [error.split()[1] for error in errors] == list(BAD)
    assert "22 files, " in shown.out
    assert "3 bad files in failed.jsonl" in shown.out
    assert len(lines(out / "manifest.jsonl")) == 22


def test_a_run_can_stop_at_a_bad_file_and_go_on_without(corpus, whole, tmp_path, capsys):
    out = tmp_path / "out"
    assert energy_extract.main(corpus, out, 1, "--stop-at-bad-file") == 2
    assert "error: --stop-at-bad-file: 2 bad files; --resume without" in capsys.readouterr().err
    assert energy_extract.main(corpus, out, 1) == 2
    assert "holds a run that is not finished; --resume goes on" in capsys.readouterr().err
    assert energy_extract.main(corpus, out, 1, "--resume") == 1
    assert contents(out) == whole


def test_killed_runs_go_on_to_the_same_bytes_whatever_the_jobs(corpus, whole, tmp_path):
    rng, out = random.Random(0), tmp_path / "out"
    kills = 0
    for jobs, how in ((2, signal.SIGKILL), (1, signal.SIGKILL), (3, signal.SIGINT)):
        run = start(corpus, out, jobs, "--resume", SLOW="1")
        before = len(list(out.glob("shard-*")))
        deadline = time.monotonic() + 60
        while len(list(out.glob("shard-*"))) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.1))
        run.send_signal(how)
        run.communicate()
        kills += run.returncode != 1
    assert kills == 3
    assert not (out / "extract.toml").exists()
    assert contents(out) != whole
    last = start(corpus, out, 2, "--resume")
    assert last.wait() == 1, last.stderr.read()
    assert contents(out) == whole


def test_a_file_that_ends_its_process_is_found_and_listed(corpus, tmp_path):
    root = tmp_path / "deadly"
    root.mkdir()
    for index in range(6):
        size = energy_extract.DEADLY if index == 2 else 3200
        soundfile.write(root / f"{index}.wav", np.zeros(size), 16000)
    run = start(root, tmp_path / "out", 2)
    _, errors = run.communicate()
    assert run.returncode == 1, errors
    assert "error: 2.wav ended the decoder (signal 11)" in errors
    assert lines(tmp_path / "out" / "failed.jsonl") == [
        {"path": "2.wav", "reason": "ended the decoder (signal 11)"}
    ]
    assert [line["path"] for line in lines(tmp_path / "out" / "manifest.jsonl")] == [
        f"{index}.wav" for index in (0, 1, 3, 4, 5)
    ]


def test_a_resumed_run_keeps_its_settings_and_its_list(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert energy_extract.main(corpus, out, 1, "--stop-at-bad-file") == 2
    (corpus.parent / "other").mkdir(exist_ok=True)
    capsys.readouterr()
    assert energy_extract.main(corpus.parent / "other", out, 1, "--resume") == 2
    assert "--resume must keep the settings of the run: input.paths was" in capsys.readouterr().err
    with (out / ".run" / "input.jsonl").open("a") as file:
        file.write("\n")
    assert energy_extract.main(corpus, out, 1, "--resume") == 2
    assert "input.jsonl was changed" in capsys.readouterr().err


def test_a_full_disk_is_told_and_leaves_nothing_half_written(
    corpus, whole, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(work, "publish_shard", full)
        assert energy_extract.main(corpus, out, 1) == 2
    assert "No space left on device; free some, and --resume goes on" in capsys.readouterr().err
    assert not [path for path in out.rglob("*") if PARTIAL.fullmatch(path.name)]
    assert energy_extract.main(corpus, out, 1, "--resume") == 1
    assert contents(out) == whole


def test_an_output_belongs_to_one_run(corpus, tmp_path, capsys):
    from filelock import FileLock

    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").touch()
    assert energy_extract.main(corpus, out, 1) == 2
    assert f"--out {out} must be new or empty, and holds notes.txt" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt"]
    (out / "notes.txt").unlink()
    with FileLock(out / ".lock"):
        assert energy_extract.main(corpus, out, 1) == 2
    assert f"--out {out} is in use by another run" in capsys.readouterr().err


def test_what_killed_processes_left_is_removed_wherever_shards_lie(tmp_path):
    """Lhotse would take every file of that folder for a shard's."""
    left = [tmp_path / ".shard-000000.0123abcd.partial.arrow"]
    left.append(tmp_path / "shar/.cuts.000000.jsonl.0123abcd.partial.gz")
    (tmp_path / "shar").mkdir()
    for path in left:
        path.touch()
    Output(tmp_path).clean()
    assert [path for path in left if path.exists()] == []


def test_an_error_that_cannot_be_pickled_is_sent_as_its_text():
    ours, theirs = multiprocessing.Pipe()
    _send_error(theirs, OSError(lambda: None))
    assert "lambda" in str(ours.recv())


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--shard-size", "0"), "error: --shard-size must be at least 1, got 0"),
        (("--jobs", "-1"), "error: --jobs must be at least 0, got -1"),
        (("--num-mel-bins", "0"), "error: --num-mel-bins must be at least 1, got 0"),
        (("--sample-frequency", "16000.5"), "error: sample_frequency must be a whole number"),
    ],
)
def test_settings_are_checked_before_anything_is_read(tmp_path, capsys, flags, error):
    out = tmp_path / "out"
    assert extract.main([str(tmp_path), "--out", str(out), *flags]) == 2
    assert error in capsys.readouterr().err
    assert not out.exists()


def test_an_input_without_audio_leaves_no_output(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    assert extract.main([str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert "error: INPUT must hold audio, got none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_shard_that_a_power_cut_took_is_made_again(corpus, whole, tmp_path, monkeypatch, capsys):
    """Nothing is flushed here: of two shards then, one lost its end, the other a bit of its record.

    A third is whole, and is not made again.
    """
    out = tmp_path / "out"
    monkeypatch.setattr(Flusher, "add", lambda *arguments: None)
    monkeypatch.setattr(Output, "settle", lambda self: None)
    with monkeypatch.context() as patch:
        patch.setattr(Output, "finish", cut)
        with pytest.raises(KeyboardInterrupt):
            energy_extract.main(corpus, out, 1)
    monkeypatch.undo()
    shards = sorted(out.glob("shard-*"))
    records = sorted((out / ".run").glob("shard-*"))
    assert [path.name.partition(".")[2] for path in records] == ["unflushed.json"] * len(records)
    shards[0].write_bytes(shards[0].read_bytes()[:-1] + b"?")
    records[1].write_text(records[1].read_text().replace('"frames"', '"frame"', 1))
    capsys.readouterr()
    assert energy_extract.main(corpus, out, 1, "--resume") == 1
    assert f"{len(records)} shards, 2 to make" in capsys.readouterr().out
    assert contents(out) == whole


def cut(*arguments):
    raise KeyboardInterrupt


def test_a_shard_that_cannot_be_flushed_does_not_count(
    corpus, whole, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"

    def broken(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(flush, "flush", broken)
        assert energy_extract.main(corpus, out, 1) == 2
    assert "cannot be written: Input/output error; --resume goes on" in capsys.readouterr().err
    assert "shard-000000.unflushed.json" not in os.listdir(out / ".run")
    assert energy_extract.main(corpus, out, 1, "--resume") == 1
    assert contents(out) == whole
