import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from ast_fast.data import synth
from ast_fast.data.dataset import check_folds, open_dataset
from ast_fast.data.metadata import read_metadata
from ast_fast.data.synth import synthesise
from ast_fast.settings.config import Config, Paths


def quiet():
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return synthesise(tmp_path_factory.mktemp("cache"), console=quiet())


def digest(root):
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }


def test_the_set_has_esc50_s_layout_with_ten_classes_in_five_folds(made):
    clips = read_metadata(made)
    assert len(clips) == 300
    assert {clip.fold for clip in clips} == {1, 2, 3, 4, 5}
    names = {clip.target: clip.category for clip in clips}
    assert sorted(names) == list(range(10))
    assert names[0] == "chirp_up"
    for fold in range(1, 6):
        for target in range(10):
            assert sum(c.fold == fold and c.target == target for c in clips) == 6
    assert len(read_metadata(made, subset="esc10")) == 300
    assert sorted(os.listdir(made / "audio")) == sorted(clip.filename for clip in clips)


def test_the_files_exercise_the_loader(made):
    shapes = {
        (info.samplerate, info.channels, np.sign(round(info.duration - 5.0, 3)))
        for info in map(soundfile.info, sorted((made / "audio").iterdir()))
    }
    assert shapes == {
        (16000, 1, 0),
        (16000, 1, -1),
        (16000, 1, 1),
        (16000, 2, 0),
        (44100, 1, 0),
    }


def test_the_set_is_the_same_to_the_byte_in_every_process(made, tmp_path):
    script = (
        "import sys; from pathlib import Path; from rich.console import Console;"
        "from ast_fast.data.synth import synthesise;"
        "synthesise(Path(sys.argv[1]), console=Console(stderr=True))"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=True, cwd=Path(__file__).parents[3]
    )
    assert digest(tmp_path / made.name) == digest(made)


def test_no_two_clips_are_alike_and_none_is_silent_or_clipped(made):
    waves = {}
    for path in (made / "audio").iterdir():
        samples, _ = soundfile.read(path, dtype="int16", always_2d=True)
        assert 3000 < np.abs(samples.astype(int)).max() < 32767, path.name
        waves[samples.tobytes()] = path.name
    assert len(waves) == 300


def test_the_set_is_made_once(made, monkeypatch):
    monkeypatch.delattr(synth, "_write_set")
    assert synthesise(made.parent, console=quiet()) == made


def test_a_set_broken_off_half_way_is_not_there(tmp_path, monkeypatch):
    calls = []

    def stop(path, *args):
        calls.append(path)
        if len(calls) > 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(synth, "_write_clip", stop)
    with pytest.raises(KeyboardInterrupt):
        synthesise(tmp_path, console=quiet())
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_the_classes_can_be_told_apart_by_plain_spectra(made):
    """Nearest class mean over a few spectral features finds most; pitch direction needs more."""
    dataset = open_dataset(Config(paths=Paths(cache=made.parent)), console=quiet())
    assert dataset.synthesised
    assert check_folds(dataset) == (1, 2, 3, 4, 5)
    spectra = np.abs(np.fft.rfft(dataset.waveforms.reshape(300, 125, 640) / 32768.0))
    bands = np.log10(np.add.reduceat(spectra**2, 2 ** np.arange(9) - 1, axis=2) + 1e-6)
    features = np.concatenate(
        [bands.mean(1), bands.std(1), np.abs(np.diff(bands, axis=1)).mean(1)], axis=1
    )
    features = (features - features.mean(0)) / features.std(0)
    test = dataset.folds == 1
    means = np.stack([features[~test & (dataset.labels == label)].mean(0) for label in range(10)])
    nearest = ((features[test][:, None] - means) ** 2).sum(2).argmin(1)
    # rising and falling chirps, classes 0 and 1, count as one here
    found = np.maximum(nearest, 1) == np.maximum(dataset.labels[test], 1)
    assert found.mean() > 0.8
