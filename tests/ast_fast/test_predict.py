"""Classifying files with a trained model, as a user of the command would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread

from ast_fast.classifier import load_classifier
from ast_fast.cv import main as train
from ast_fast.data.audio import read_clip, read_windows
from ast_fast.explain import attention_rollout
from ast_fast.predict import classify, main
from ast_fast.settings.config import Config
from ast_fast.training import checkpoint
from ast_fast.training.calibration import at_temperature
from ast_fast_kernels.audio.find import SUFFIXES, find_audio

RATE = 16000
SECONDS = 0.5


def tone(hertz: float, seconds: float = SECONDS, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tells a low tone from a high one, in seconds."""
    root = tmp_path_factory.mktemp("trained")
    (root / "data" / "audio").mkdir(parents=True)
    (root / "data" / "meta").mkdir()
    rows = ["filename,fold,target,category"]
    for fold in (1, 2):
        for take in range(4):
            for target, (name, hertz) in enumerate((("low", 300.0), ("high", 3000.0))):
                file = f"{fold}-{take}-{target}.wav"
                soundfile.write(root / "data" / "audio" / file, tone(hertz + 20 * take), RATE)
                rows.append(f"{file},{fold},{target},{name}")
    (root / "data" / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    flags = [
        *("--data", str(root / "data"), "--cache", str(root / "cache"), "--out", str(root / "run")),
        *("--audio.clip-seconds", str(SECONDS), "--fbank.num-mel-bins", "32"),
        *("--features.target-frames", "48", "--model.embed-dim", "16", "--model.num-heads", "2"),
        *("--model.depth", "2", "--training.epochs", "25", "--training.batch-size", "4"),
        *("--training.learning-rate", "3e-3", "--training.ema-decay", "0.5", "--folds", "1"),
        *(
            "--augment.mix-probability",
            "0",
            "--augment.patch-drop",
            "0",
            "--augment.num-masks",
            "0",
        ),
        *("--backend", "reference", "--device", "cpu"),
    ]
    assert train(flags) == 0
    return root / "run" / "fold-1" / "model.safetensors"


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    folder = tmp_path / "audio"
    (folder / "deeper").mkdir(parents=True)
    soundfile.write(folder / "a-low.wav", tone(310.0), RATE)
    soundfile.write(folder / "deeper" / "b-high.flac", tone(3020.0, 1.7), RATE)
    (folder / "notes.txt").write_text("no audio")
    return folder


def test_a_folder_is_classified(model: Path, audio: Path, capsys) -> None:
    assert main([str(model), str(audio), "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{audio / 'a-low.wav'} (1 clip)"
    assert lines[1].endswith("%  low")
    assert lines[2] == f"{audio / 'deeper' / 'b-high.flac'} (4 clips)"
    assert lines[3].endswith("%  high")
    assert len(lines) == 4


def test_json_has_every_class(model: Path, audio: Path, capsys) -> None:
    assert main([str(model), str(audio / "a-low.wav"), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["file"] == str(audio / "a-low.wav")
    assert result["clips"] == 1
    assert list(result["probabilities"]) == ["low", "high"]  # most probable first
    assert sum(result["probabilities"].values()) == pytest.approx(1.0)


def test_it_agrees_with_the_run_s_own_predictions(model: Path, capsys) -> None:
    data = model.parents[2] / "data" / "audio"
    rows = (model.parent / "predictions.csv").read_text().splitlines()
    header = rows[0].split(",")
    file = dict(zip(header, rows[1].split(","), strict=True))
    command = [str(model), str(data / file["filename"]), "--json", "--device", "cpu"]
    assert main(command) == 0
    ours = json.loads(capsys.readouterr().out)["probabilities"]
    for name, probability in ours.items():
        column = next(key for key in header if key.endswith(name) and key != "category")
        assert probability == pytest.approx(float(file[column]), abs=1e-5)


def test_a_temperature_changes_how_sure_it_is_and_nothing_else(
    model: Path, audio: Path, tmp_path: Path, capsys
) -> None:
    tensors, facts = checkpoint.load(model)
    assert "temperature" not in facts  # one fold alone
    found = []
    for given in ({}, {"temperature": 3.0}):
        checkpoint.save(tmp_path / "one.safetensors", tensors, facts | given)
        command = [str(tmp_path / "one.safetensors"), str(audio / "a-low.wav"), "--json"]
        assert main([*command, "--device", "cpu"]) == 0
        found.append(json.loads(capsys.readouterr().out)["probabilities"])
    assert list(found[0]) == list(found[1])
    shares = np.array([[*of.values()] for of in found])
    assert shares[1].max() < shares[0].max()
    np.testing.assert_allclose(at_temperature(shares[:1], 3.0), shares[1:], atol=1e-5)


def test_a_model_of_a_version_without_a_setting_is_used(
    model: Path, audio: Path, tmp_path: Path, capsys
) -> None:
    tensors, facts = checkpoint.load(model)
    for name in ("conv_depth", "conv_mlp_ratio", "token_positions", "qkv_bias", "norm_eps",
                 "head_norm", "head_norm_eps"):  # fmt: skip
        del facts["run"]["model"][name]
    del facts["run"]["features"]["padding"]
    checkpoint.save(tmp_path / "earlier.safetensors", tensors, facts)
    shown = []
    for path in (model, tmp_path / "earlier.safetensors"):
        assert main([str(path), str(audio / "a-low.wav"), "--device", "cpu"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


def test_a_model_of_another_device_s_precision_is_used_and_said(
    model: Path, audio: Path, tmp_path: Path, capsys
) -> None:
    tensors, facts = checkpoint.load(model)
    facts["run"]["training"]["amp"] = "float16"
    checkpoint.save(tmp_path / "half.safetensors", tensors, facts)
    arguments = [str(audio / "a-low.wav"), "--top", "1", "--device", "cpu"]
    assert main([str(tmp_path / "half.safetensors"), *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1].endswith("%  low")
    assert (
        "trained with training.amp float16, which this cpu does not support; classifying in"
        in shown.err
    )
    assert main([str(model), *arguments]) == 0
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batches_do_not_matter(model: Path, audio: Path, batch_size: int) -> None:
    classifier = load_classifier(model, torch.device("cpu"))
    paths = sorted(audio.rglob("*.wav")) * 3 + sorted(audio.rglob("*.flac"))
    results = list(classify(classifier, paths, batch_size))
    assert [file.path for file in results] == paths
    assert [file.count for file in results] == [1, 1, 1, 4]
    alone = [next(iter(classify(classifier, [path], 1))).probabilities for path in paths]
    for file, expected in zip(results, alone, strict=True):
        np.testing.assert_allclose(file.probabilities, expected, atol=1e-5)


def test_bad_files_are_named_and_the_rest_classified(model: Path, audio: Path, capsys) -> None:
    whole = (audio / "deeper" / "b-high.flac").read_bytes()
    (audio / "cut.flac").write_bytes(whole[: len(whole) // 3])
    (audio / "empty.wav").touch()
    missing = audio / "missing.wav"
    assert main([str(model), str(audio), str(missing), "--top", "1"]) == 1
    shown = capsys.readouterr()
    assert shown.out.count("clip") == 2
    errors = [line for line in shown.err.splitlines() if line.startswith("error")]
    assert f"error: {audio / 'empty.wav'} is empty (0 bytes)" in errors
    assert f"error: {missing} is absent" in errors
    assert any(str(audio / "cut.flac") in line for line in errors)
    assert len(errors) == 3


def test_ruined_audio_is_noted_and_classified(model: Path, audio: Path, capsys) -> None:
    wave = tone(310.0)
    soundfile.write(audio / "loud.wav", 32768 * wave, RATE, subtype="FLOAT")
    soundfile.write(audio / "inverted.wav", np.stack([wave, -wave], axis=1), RATE)
    soundfile.write(audio / "silent.wav", np.zeros(4 * RATE), RATE)
    assert main([str(model), str(audio), "--json"]) == 0
    shown = capsys.readouterr()
    assert len([json.loads(line) for line in shown.out.splitlines()]) == 5
    assert [line for line in shown.err.splitlines() if line.startswith("note")] == [
        f"note: {audio / 'inverted.wav'} is nearly silent: a channel is inverted, and the mean of "
        "all is taken",
        f"note: {audio / 'loud.wav'} is clipped: over 1 % of the samples are beyond full scale",
        f"note: {audio / 'silent.wav'} is silent: no change is as large as one step of int16",
    ]


def test_a_folder_gives_what_libsndfile_reads_and_nothing_hidden(tmp_path: Path) -> None:
    taken = [f"a{suffix}" for suffix in sorted(SUFFIXES)] + ["B.WAV", "c.d.aifc", "x/e.snd"]
    for suffix in (".aifc", ".snd", ".wave", ".bwf", ".sph", ".oga", ".opus", ".mp2", ".w64"):
        assert suffix in SUFFIXES
    left = ["a.raw", "a.txt", "._a.wav", ".hidden.wav", ".x/a.wav", "x/._e.snd", "x/.y/z.wav"]
    inside = tmp_path / ".root"  # a hidden folder that is named itself is searched
    for name in taken + left:
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).touch()
    assert find_audio([inside]) == sorted(inside / name for name in taken)
    assert find_audio([inside / "._a.wav"]) == [inside / "._a.wav"]


def test_every_format_of_libsndfile_has_its_suffix() -> None:
    for name in set(soundfile.available_formats()) - {"RAW"}:
        assert f".{name.lower()}" in SUFFIXES
    assert ".raw" not in SUFFIXES


def test_explanations_are_drawn(model: Path, audio: Path, tmp_path: Path) -> None:
    out = tmp_path / "explained"
    (audio / "a-low.wav").rename(audio / "a-$\\low$.wav")  # no formula, as matplotlib might think
    files = [str(audio / "a-$\\low$.wav"), str(audio), "--explain", str(out)]
    assert main([str(model), *files]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "a-$\\low$-2.png", "a-$\\low$.png", "b-high.png",
    ]  # fmt: skip
    image = imread(out / "a-$\\low$.png")
    assert min(image.shape[:2]) > 300
    assert image.std() > 0.05


def test_a_picture_that_cannot_be_written_is_named(
    model: Path, audio: Path, tmp_path: Path, capsys
) -> None:
    maps = tmp_path / "maps"
    (maps / "a-low.png").mkdir(parents=True)
    assert main([str(model), str(audio), "--top", "1", "--explain", str(maps)]) == 1
    shown = capsys.readouterr()
    assert shown.out.count("clip") == 2
    assert f"error: {audio / 'a-low.wav'} cannot be drawn: Is a directory" in shown.err
    assert sorted(path.name for path in maps.iterdir()) == ["a-low.png", "b-high.png"]


ODD_NAMES = (
    b"low-\xff",  # not UTF-8
    b"\xfe" * 251,
    b"low\nerror: forged",
    b"low\x1b[2J\x1b]0;title\x07",
    "\u202elow\u3164".encode(),
    "音".encode() * 83,
    b"x" * 251,
    b"=1+1",
    b"$\\frac$",
)


def test_odd_names_spoil_nothing_for_their_neighbours(
    model: Path, audio: Path, tmp_path: Path, capsys
) -> None:
    """Each name gets a line of JSON, and the bytes of one that is no text; five get a picture."""
    stems = (*ODD_NAMES, b"a-low")
    for stem in ODD_NAMES:
        os.link(audio / "a-low.wav", os.fsencode(audio) + b"/" + stem + b".wav")
    assert main([str(model), str(audio), "--json", "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.encode().decode().splitlines()
    assert all(line.isprintable() for line in lines)
    results = [json.loads(line) for line in lines]
    names = [
        bytes.fromhex(r["file_bytes"]) if "file_bytes" in r else r["file"].encode() for r in results
    ]
    wanted = {os.fsencode(audio) + b"/" + stem + b".wav" for stem in stems}
    assert set(names) == wanted | {os.fsencode(audio / "deeper" / "b-high.flac")}
    assert len(names) == len(stems) + 1
    maps = tmp_path / "maps"
    drawn = [os.fsdecode(os.fsencode(audio) + b"/" + stem + b".wav") for stem in stems[:5]]
    command = [str(model), *drawn, "--explain", str(maps), "--device", "cpu"]
    assert main(command) == 0
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if not line.startswith("classifying")] == []
    assert sorted(name.encode().decode() for name in os.listdir(maps)) == sorted(
        f"{stem}.png"
        for stem in (
            r"low-\xff",
            r"\xfe" * 24 + "…" + r"\xfe" * 24,
            r"low\nerror: forged",
            r"low\x1b[2J\x1b]0;title\x07",
            r"\u202elow\u3164",
        )
    )


def test_odd_names_forge_no_line(model: Path, tmp_path: Path, capsys) -> None:
    """The results, the errors of bad files, and the error of a folder."""
    folder = tmp_path / "odd\x1b[31m"
    folder.mkdir()
    for stem in ODD_NAMES:
        name = os.fsencode(folder) + b"/" + stem + b".wav"
        if len(stem) % 2:
            soundfile.write(name, tone(310.0), RATE, format="WAV")
        else:
            os.mknod(name)
    assert main([str(model), str(folder), "--top", "1", "--device", "cpu"]) == 1
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2 * sum(len(stem) % 2 for stem in ODD_NAMES)
    errors = shown.err.splitlines()
    assert len(errors) == sum(1 - len(stem) % 2 for stem in ODD_NAMES)
    assert all(line.endswith(".wav is empty (0 bytes)") for line in errors)
    assert all(line.startswith(f"error: {tmp_path}/odd\\x1b[31m/") for line in errors)
    assert not set(shown.out + shown.err) & set("\x1b\x07\u202e\udcff\udcfe")
    assert main([str(model), str(tmp_path / "none\nerror: x"), "--device", "cpu"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_class_names_of_a_stranger_are_shown_escaped(
    model: Path, audio: Path, tmp_path: Path, capsys
) -> None:
    tensors, facts = checkpoint.load(model)
    facts["class_names"] = ["low\x1b[2J\nerror: forged", "h" * 10_000]
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, tensors, facts)
    arguments = [str(path), str(audio / "a-low.wav"), "--device", "cpu"]
    assert main([*arguments, "--explain", str(tmp_path / "maps")]) == 0
    first, low, high = capsys.readouterr().out.splitlines()
    assert first == f"{audio / 'a-low.wav'} (1 clip)"
    assert low.endswith(r" %  low\x1b[2J\nerror: forged")
    assert len(high) < 300
    assert main([*arguments, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    assert set(json.loads(line)["probabilities"]) == set(facts["class_names"])


def test_a_reader_that_leaves_ends_it_quietly(model: Path, audio: Path) -> None:
    command = [sys.executable, "-m", "ast_fast.predict", str(model), str(audio), "--json"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stem", [(), (4, 8)])
@pytest.mark.parametrize("pool", ["mean", "strongest", "cls", "distilled"])
def test_rollout_shares_out_all_attention(model: Path, pool: str, stem: tuple[int, ...]) -> None:
    from dataclasses import replace

    from ast_fast.model import AudioSpectrogramTransformer

    classifier = load_classifier(model, torch.device("cpu"))
    config = replace(
        classifier.config.model,
        pool=pool,
        stem_widths=stem,
        conditional_position=bool(stem),
        conv_depth=len(stem),
    )
    torch.manual_seed(0)
    fresh = AudioSpectrogramTransformer(config, num_mel_bins=32, num_frames=48, num_classes=2)
    features = torch.randn(3, 48, 32, generator=torch.Generator().manual_seed(0))
    shares = attention_rollout(fresh.eval(), features)
    assert shares.shape == (3, *fresh.patch_embedding.grid)
    assert (shares > 0).all()
    if pool in ("mean", "strongest"):
        torch.testing.assert_close(shares.sum(dim=(1, 2)), torch.ones(3))
    else:
        assert (shares.sum(dim=(1, 2)) < 1).all()


def test_what_cannot_be_done_is_one_line(model: Path, audio: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "nothing").mkdir()
    half = tmp_path / "checkpoint.safetensors"
    checkpoint.save(half, {"optimizer.x": torch.zeros(1)}, {"class_names": ["a"]})
    for arguments, message in (
        (
            [str(tmp_path / "no.safetensors"), str(audio)],
            "CHECKPOINT must be a run's fold-N/model.",
        ),
        ([str(half), str(audio)], "CHECKPOINT must be a finished fold's model.safetensors, got"),
        ([str(audio / "a-low.wav"), str(audio)], "must be a whole file written by ast_fast"),
        (
            [str(model), str(tmp_path / "nothing")],
            "AUDIO must be files or folders of audio files, got",
        ),
        ([str(model), ""], "a path must not be empty, got ''"),
        ([str(model), str(audio), ""], "a path must not be empty, got ''"),
        ([str(model), str(audio), "--explain="], "a path must not be empty, got ''"),
        ([str(model)], "AUDIO must name at least one file or folder, got none"),
        ([str(model), str(audio), "--top", "0"], "--top must be at least 1, got 0"),
        ([str(model), str(audio), "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        ([str(model), str(audio), "--explain", str(half)], "cannot be made: File exists"),
    ):
        assert main(arguments) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1
        assert errors[0].startswith("error: ")
        assert message in errors[0]


def test_a_name_that_is_too_long_spoils_nothing_for_its_neighbours(
    model: Path, audio: Path, capsys
) -> None:
    long = "x" * 300 + ".wav"
    assert main([str(model), long, str(audio / "a-low.wav")]) == 1
    out, errors = capsys.readouterr()
    assert out.startswith(str(audio / "a-low.wav"))
    assert errors == f"error: {long} cannot be read: File name too long\n"


def test_settings_come_back_from_the_checkpoint(model: Path) -> None:
    config = load_classifier(model, torch.device("cpu")).config
    assert config.model.embed_dim == 16
    assert config.fbank.num_mel_bins == 32
    assert config.audio.clip_seconds == SECONDS
    assert config.model.patch_size == Config().model.patch_size


@pytest.mark.parametrize("rate", [16000, 44100, 8000])
@pytest.mark.parametrize("seconds", [0.3, 0.5, 0.51, 1.0, 1.26])
def test_windows_cover_the_whole_file(tmp_path: Path, rate: int, seconds: float) -> None:
    path = tmp_path / "sweep.wav"
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(
        path, 0.5 * np.sin(2 * np.pi * (200 + 400 * time) * time), rate, subtype="FLOAT"
    )
    settings = {"sample_rate": RATE, "num_samples": 8000, "resample_quality": "HQ"}
    windows = list(read_windows(path, **settings))
    assert len(windows) == max(1, int(np.ceil(round(seconds * RATE) / 8000 - 1e-9)))
    assert all(window.dtype == np.int16 and len(window) == 8000 for window in windows)
    if seconds <= 0.5:
        np.testing.assert_array_equal(windows[0], read_clip(path, **settings))
        return
    whole = read_clip(path, **{**settings, "num_samples": round(seconds * RATE)})
    for index, window in enumerate(windows[:-1]):
        expected = whole[index * 8000 : (index + 1) * 8000]
        assert np.abs(window.astype(int) - expected).max() <= 2  # resampled in one piece or in two
    if rate == RATE:
        np.testing.assert_array_equal(windows[-1], whole[-8000:])


def test_a_long_file_is_never_held_whole(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for _ in range(20):
            file.write(np.zeros(30 * RATE, np.float32))
    tracemalloc.start()
    count = sum(
        1 for _ in read_windows(path, sample_rate=RATE, num_samples=8000, resample_quality="HQ")
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 1200
    assert peak < 30 * 2**20  # a block of 2 ** 20 values, as floats and as int16; the file is 19 MB
