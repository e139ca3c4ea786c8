"""Our extractor beside lhotse's own Fbank, alone and in lhotse's pipelines."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lhotse
import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, NumpyFilesWriter, Recording
from lhotse.dataset import OnTheFlyFeatures
from lhotse.features.base import FeatureExtractor, get_extractor_type
from torch.utils.data import DataLoader, Dataset

import ast_fast_kernels
from ast_fast_kernels import FbankConfig
from ast_fast_kernels.compat import lhotse as compat
from ast_fast_kernels.testing.signals import make_signal

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")  # of lhotse's mel scale

RATE = 16000

# As in test_conventions.py: what two correct float32 implementations differ by, in nepers.
MAX_DIFFERENCE = 4e-3
MEAN_DIFFERENCE = 1e-5

CONFIGS: list[dict[str, Any]] = [
    {},
    {"num_mel_bins": 40, "window_type": "hamming", "low_freq": 0.0, "high_freq": 0.0},
    {"num_filters": 23, "frame_length": 0.02, "frame_shift": 0.0125, "window_type": "blackman"},
    {"use_fft_mag": True, "preemph_coeff": 0.5, "remove_dc_offset": False},
    {"round_to_power_of_two": False, "window_type": "rectangular"},
    {"snip_edges": True, "window_type": "hanning"},
    {"sampling_rate": 8000, "num_filters": 40, "high_freq": 3500.0},
    {"sampling_rate": 11025, "num_filters": 40},
    {"use_energy": True},
    {"use_energy": True, "raw_energy": False, "energy_floor": 1.0},
]


def clip(num_samples: int, seed: int = 0) -> np.ndarray:
    return (0.3 * make_signal("noise", num_samples, seed=seed) + 0.02).astype(np.float32)


def lhotses(**options: Any) -> lhotse.FbankConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of snip_edges
        return lhotse.FbankConfig(**options)


def assert_close(out: Any, expected: Any) -> None:
    out, expected = np.asarray(out, np.float64), np.asarray(expected, np.float64)
    assert out.shape == expected.shape
    difference = np.abs(out - expected)
    assert difference.max() <= MAX_DIFFERENCE
    assert difference.mean() <= MEAN_DIFFERENCE


@pytest.mark.filterwarnings("ignore:Setting snip_edges")
@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_features_are_lhotses(options: dict[str, Any]) -> None:
    config = lhotses(**options)
    theirs, ours = lhotse.Fbank(config), compat.Fbank(config)
    samples = clip(round(0.3 * config.sampling_rate) + 77)
    backend = "auto" if not options else "reference"  # a kernel compiles for each FFT and window
    with ast_fast_kernels.use_backend(backend):
        out = ours.extract(samples, config.sampling_rate)
    assert_close(out, theirs.extract(samples, config.sampling_rate))
    assert ours.frame_shift == theirs.frame_shift
    assert ours.feature_dim(config.sampling_rate) == out.shape[1]


def kind(value: Any) -> Any:
    """Say of what kind and shape features are, in their list if they are in one."""
    if isinstance(value, list):
        return [kind(one) for one in value]
    return type(value).__name__, str(value.dtype).removeprefix("torch."), tuple(value.shape)


@pytest.mark.parametrize(
    "samples",
    [
        clip(16000),
        clip(16000)[None],
        np.stack((clip(16000), clip(16000, 1))),
        torch.from_numpy(clip(16000)),
        torch.from_numpy(clip(16000))[None],
    ],
    ids=["array", "array of one channel", "two channels", "tensor", "tensor of one channel"],
)
def test_one_clip_gives_what_lhotse_gives(samples: Any) -> None:
    expected = lhotse.Fbank().extract(samples, RATE)
    out = compat.Fbank().extract(samples, RATE)
    assert kind(out) == kind(expected)
    assert_close(out, expected)


def tensors(*lengths: int) -> list[torch.Tensor]:
    return [torch.from_numpy(clip(length, length)) for length in lengths]


BATCHES: dict[str, Any] = {
    "arrays": [clip(16000), clip(16000, 1)],
    "arrays of one channel": [clip(16000)[None], clip(12345)[None]],
    "tensors": tensors(16000, 16000),
    "tensors of several lengths": tensors(16000, 12345, 1600),
    "as many frames": tensors(16000, 16001),
    "mixed": [clip(16000), *tensors(9000)],
    "list of one array": [clip(16000)],
    "list of one tensor": tensors(16000),
    "array": clip(16000),
    "tensor": tensors(16000)[0],
    "batch": np.stack((clip(16000), clip(16000, 1))),
    "batch of tensors": torch.stack(tensors(16000, 16000)),
    "batch of one": clip(16000)[None],
    "batch of one channel": torch.stack(tensors(16000, 16000))[:, None],
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_give_what_lhotse_gives(name: str) -> None:
    samples = BATCHES[name]
    theirs, extractor = lhotse.Fbank(), compat.Fbank()
    expected, out = theirs.extract_batch(samples, RATE), extractor.extract_batch(samples, RATE)
    assert kind(out) == kind(expected)
    if not isinstance(samples, list):
        assert_close(out, expected)
        return
    # Clips of other lengths are mirrored at their own end, as they are alone.
    for features, one in zip(out, samples, strict=True):
        assert_close(features, theirs.extract(one, RATE))
        assert np.array_equal(features, extractor.extract(one, RATE))
    for features, of_theirs in zip(out, expected, strict=True):
        assert_close(features[:-2], of_theirs[:-2])


@pytest.mark.parametrize(
    "lengths", [[16000, 12345], [16000, 16000], [16000, 15999], [15000, 15000]]
)
@pytest.mark.parametrize("use_energy", [False, True])
def test_padded_batches_give_what_lhotse_gives(lengths: list[int], use_energy: bool) -> None:
    padded = torch.stack(tensors(16000, 16001 - 1))
    extractor = compat.Fbank(lhotses(use_energy=use_energy))
    counts = torch.tensor(lengths)
    expected = lhotse.Fbank(lhotses(use_energy=use_energy)).extract_batch(padded, RATE, counts)
    out = extractor.extract_batch(padded, RATE, counts)
    assert kind(out) == kind(expected)
    for row, features, length in zip(padded, out, lengths, strict=True):
        assert np.array_equal(features, extractor.extract(row[:length].numpy(), RATE))


def test_every_row_is_its_own_in_a_batch_with_energy() -> None:
    extractor = compat.Fbank(lhotses(use_energy=True))
    out = extractor.extract_batch(tensors(16000, 12345), RATE)
    for features, one in zip(out, tensors(16000, 12345), strict=True):
        assert torch.equal(features, extractor.extract(one, RATE))


def test_dither_is_of_torchs_generator() -> None:
    """Its energy and its filters see the same noise, and a batch's that of its clips alone."""
    extractor = compat.Fbank(lhotses(dither=0.1, use_energy=True))
    plain = compat.Fbank(lhotses(dither=0.1))
    torch.manual_seed(0)
    out = extractor.extract(clip(16000), RATE)
    torch.manual_seed(0)
    assert np.array_equal(out[:, 1:], plain.extract(clip(16000), RATE))
    torch.manual_seed(0)
    batch = plain.extract_batch([clip(16000), clip(9000, 1)], RATE)
    torch.manual_seed(0)
    for features, one in zip(batch, (clip(16000), clip(9000, 1)), strict=True):
        assert np.array_equal(features, plain.extract(one, RATE))
    assert np.abs(out[:, 1:] - batch[0]).max() == 0


OURS: list[Callable[[], FbankConfig]] = [
    lambda: FbankConfig.preset("lhotse", num_mel_bins=40),
    lambda: FbankConfig.preset("kaldi", snip_edges=False, waveform_scale=32768.0),
    FbankConfig,
    lambda: FbankConfig.preset("speechbrain"),
]


@pytest.mark.filterwarnings("ignore:this config gives other numbers")
@pytest.mark.parametrize("make", OURS, ids=["lhotse", "kaldi", "ast", "speechbrain"])
def test_takes_any_config_of_ours(make: Callable[[], FbankConfig], tmp_path: Path) -> None:
    config = make()
    extractor = compat.Fbank(config)
    assert extractor.frame_shift == 0.01
    assert extractor.feature_dim(RATE) == config.num_mel_bins
    with ast_fast_kernels.use_backend("reference"):
        out = extractor.extract(clip(8000), RATE)
        assert np.array_equal(out, ast_fast_kernels.fbank(clip(8000), config))
    extractor.to_yaml(tmp_path / "fbank.yaml")
    again = FeatureExtractor.from_yaml(tmp_path / "fbank.yaml")
    assert isinstance(again, compat.Fbank)
    assert again.config == config
    assert again.name == extractor.name


@pytest.mark.parametrize("options", [{}, {"num_filters": 40, "dither": 1e-5, "use_energy": True}])
def test_yaml_holds_lhotses_fields(options: dict[str, Any], tmp_path: Path) -> None:
    extractor = compat.Fbank(compat.FbankConfig(**options))
    extractor.to_yaml(tmp_path / "fbank.yaml")
    again = FeatureExtractor.from_yaml(tmp_path / "fbank.yaml")
    assert type(again) is compat.Fbank
    assert again.config == extractor.config
    assert extractor.to_dict() == {
        **lhotse.Fbank(lhotse.FbankConfig(**options)).to_dict(),
        "feature_type": "ast-fast-fbank",
    }


def test_is_registered_by_name() -> None:
    assert get_extractor_type("ast-fast-fbank") is compat.Fbank
    assert get_extractor_type("kaldi-fbank") is lhotse.Fbank
    made = FeatureExtractor.from_dict({"feature_type": "ast-fast-fbank", "num_filters": 40})
    assert made.feature_dim(RATE) == 40


@pytest.fixture
def cuts(tmp_path: Path) -> CutSet:
    """Four cuts of about half a second, of two lengths."""
    made = []
    for i, num_samples in enumerate((8000, 8000, 7400, 7400)):
        path = tmp_path / f"{i}.wav"
        soundfile.write(path, clip(num_samples, i), RATE)
        made.append(Recording.from_file(path).to_cut())
    return CutSet.from_cuts(made)


def stored(cuts: CutSet) -> list[np.ndarray]:
    return [cut.load_features() for cut in cuts]


def test_stores_features_of_cuts(cuts: CutSet, tmp_path: Path) -> None:
    by_name = []
    for name in ("kaldi-fbank", "ast-fast-fbank"):
        extractor = get_extractor_type(name)()
        by_name.append(
            cuts.compute_and_store_features(
                extractor, tmp_path / name, storage_type=NumpyFilesWriter, progress_bar=False
            )
        )
    theirs, ours = by_name
    for out, expected in zip(stored(ours), stored(theirs), strict=True):
        assert_close(out, expected)
    assert {cut.features.type for cut in ours} == {"ast-fast-fbank"}


def test_stores_features_of_cuts_from_a_spawned_process(cuts: CutSet, tmp_path: Path) -> None:
    options = {"storage_type": NumpyFilesWriter, "progress_bar": False}
    extractor = compat.Fbank()
    alone = cuts.compute_and_store_features(extractor, tmp_path / "one", **options)
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        parts = cuts.compute_and_store_features(
            extractor, tmp_path / "two", num_jobs=2, executor=executor, **options
        )
    features = {cut.id: cut.load_features() for cut in parts}
    assert len(features) == 4
    for cut in alone:
        assert np.array_equal(features[cut.id], cut.load_features())


@pytest.mark.parametrize("collate", [False, True])
def test_stores_features_of_batches(cuts: CutSet, tmp_path: Path, collate: bool) -> None:
    extractor = compat.Fbank()
    made = cuts.compute_and_store_features_batch(
        extractor,
        tmp_path / "features",
        batch_duration=10.0,
        num_workers=1,
        collate=collate,
        storage_type=NumpyFilesWriter,
    )
    assert len(made) == 4
    for cut in made:
        samples = cut.load_audio()
        assert np.array_equal(cut.load_features(), extractor.extract(samples, RATE))


class OnTheFly(Dataset):
    """A batch of cuts whose features a worker process computes."""

    def __init__(self, cuts: CutSet, extractor: FeatureExtractor) -> None:
        self.cuts, self.strategy = cuts, OnTheFlyFeatures(extractor)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.strategy(self.cuts)


@pytest.mark.parametrize("batched", [False, True])
def test_computes_features_on_the_fly(cuts: CutSet, batched: bool) -> None:
    ours, lengths = OnTheFlyFeatures(compat.Fbank(), use_batch_extract=batched)(cuts)
    theirs, expected = OnTheFlyFeatures(lhotse.Fbank(), use_batch_extract=False)(cuts)
    assert torch.equal(lengths, expected)
    assert_close(ours, theirs)


def test_computes_features_in_a_forked_worker(cuts: CutSet) -> None:
    extractor = compat.Fbank()
    expected = OnTheFlyFeatures(extractor)(cuts)[0]  # the kernels have run in the parent
    loader = DataLoader(
        OnTheFly(cuts, extractor),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="fork",
        timeout=60,
    )
    (batch,) = loader
    assert torch.equal(batch[0], expected)


def test_survives_pickling() -> None:
    for config in (None, lhotses(num_filters=40), FbankConfig.preset("lhotse")):
        extractor = compat.Fbank(config)
        again = pickle.loads(pickle.dumps(extractor))
        assert again.to_dict() == extractor.to_dict()
        samples = clip(3200)
        assert np.array_equal(again.extract(samples, RATE), extractor.extract(samples, RATE))


def test_features_are_mixed_as_lhotse_mixes_its_own(cuts: CutSet, tmp_path: Path) -> None:
    mixed = []
    for name in ("kaldi-fbank", "ast-fast-fbank"):
        made = cuts.compute_and_store_features(
            get_extractor_type(name)(),
            tmp_path / name,
            storage_type=NumpyFilesWriter,
            progress_bar=False,
        )
        first, second, *_ = made
        mixed.append(first.drop_recording().mix(second.drop_recording(), snr=10).load_features())
    theirs, ours = mixed
    assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:this config gives other numbers")
def test_features_that_cannot_be_mixed_have_a_name_of_their_own() -> None:
    for changes in ({"log_type": "db"}, {"use_log_fbank": False}, {"norm_per_feature": True}):
        extractor = compat.Fbank(FbankConfig.preset("lhotse", **changes))
        assert extractor.name == "ast-fast-fbank-unmixed"
        made = get_extractor_type(extractor.name)()
        with pytest.raises(ValueError, match='"mix" operation is undefined'):
            made.mix(np.zeros((1, 80)), np.zeros((1, 80)), 1.0)
    assert compat.Fbank(FbankConfig()).name == "ast-fast-fbank"


def test_device_is_the_configs() -> None:
    extractor = compat.Fbank(lhotses(device="meta"))
    assert extractor.device == "meta"
    extractor.to("cpu")
    assert (extractor.device, extractor.config.device) == ("cpu", "cpu")
    assert extractor.extract(clip(1600), RATE).shape == (10, 80)


def test_other_numbers_of_frames_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="other numbers of frames than one for each shift"):
        compat.Fbank(FbankConfig())


def refusals() -> dict[str, tuple[Callable[[], object], type[Exception], str]]:
    extractor = compat.Fbank()
    return {
        "rate": (
            lambda: extractor.extract(clip(1600), 8000),
            ValueError,
            "sampling_rate must be the config's 16000 Hz, got 8000; CutSet.resample",
        ),
        "rate of a batch": (
            lambda: extractor.extract_batch([clip(1600)], 8000),
            ValueError,
            "sampling_rate must be the config's 16000 Hz",
        ),
        "shape": (
            lambda: extractor.extract(np.zeros((1, 2, 1600), np.float32), RATE),
            ValueError,
            "samples must be (num_samples,) or (channels, num_samples), got (1, 2, 1600)",
        ),
        "channels in a batch": (
            lambda: extractor.extract_batch([np.zeros((2, 1600), np.float32)], RATE),
            ValueError,
            "samples must be clips of shape (num_samples,) or (1, num_samples), got (2, 1600)",
        ),
        "batch of channels": (
            lambda: extractor.extract_batch(np.zeros((3, 2, 1600), np.float32), RATE),
            ValueError,
            "samples must be (clips, num_samples), got (3, 2, 1600)",
        ),
        "no clip": (
            lambda: extractor.extract_batch([], RATE),
            ValueError,
            "samples must hold at least one clip, got none",
        ),
        "lengths of arrays": (
            lambda: extractor.extract_batch(clip(1600)[None], RATE, lengths=[1600]),
            TypeError,
            "samples must be a tensor when lengths are given, got ndarray",
        ),
        "fewer lengths than clips": (
            lambda: extractor.extract_batch(torch.zeros(2, 1600), RATE, torch.tensor([1600])),
            ValueError,
            "lengths must have shape (2,), got (1,)",
        ),
        "length beyond the samples, with energies": (
            lambda: compat.Fbank(lhotses(use_energy=True)).extract_batch(
                torch.zeros(2, 1600), RATE, torch.tensor([1600, 1700])
            ),
            ValueError,
            "lengths must be from 0 to num_samples (1600), got 1700",
        ),
        "mel scale": (
            lambda: compat.Fbank(lhotses(torchaudio_compatible_mel_scale=False)),
            ValueError,
            "torchaudio_compatible_mel_scale must be True, because no field",
        ),
        "another config": (
            lambda: compat.Fbank(lhotse.MfccConfig()),
            TypeError,
            "config must be lhotse's FbankConfig or ast_fast_kernels.FbankConfig, got MfccConfig",
        ),
    }


@pytest.mark.parametrize("name", refusals())
def test_refuses(name: str) -> None:
    call, error, message = refusals()[name]
    with pytest.raises(error, match=re.escape(message)):
        call()


USE = "ast_fast_kernels.compat.lhotse.Fbank"
MISTAKES: dict[str, Callable[[CutSet, Path], object]] = {
    "stored": lambda cuts, path: cuts.compute_and_store_features(
        ast_fast_kernels.Fbank(), path / "x", storage_type=NumpyFilesWriter, progress_bar=False
    ),
    "stored in batches": lambda cuts, path: cuts.compute_and_store_features_batch(
        ast_fast_kernels.Fbank(), path / "x", storage_type=NumpyFilesWriter
    ),
    "on the fly": lambda cuts, path: OnTheFlyFeatures(ast_fast_kernels.Fbank())(cuts),
    "on the fly, one by one": lambda cuts, path: OnTheFlyFeatures(
        ast_fast_kernels.Fbank(), use_batch_extract=False
    )(cuts),
    "one cut": lambda cuts, path: cuts[0].compute_features(ast_fast_kernels.Fbank()),
    "lhotse's class of our config": lambda cuts, path: lhotse.Fbank(FbankConfig()),
    "our class of lhotse's config": lambda cuts, path: ast_fast_kernels.Fbank(
        lhotse.FbankConfig()  # type: ignore[arg-type]
    ),
    "our function of lhotse's config": lambda cuts, path: ast_fast_kernels.fbank(
        clip(1600), lhotse.FbankConfig()
    ),
    "our function of the config here": lambda cuts, path: ast_fast_kernels.fbank(
        clip(1600), compat.FbankConfig()
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_our_other_objects_tell_lhotse_what_to_use(name: str, cuts: CutSet, tmp_path: Path) -> None:
    with pytest.raises((AttributeError, TypeError), match=re.escape(USE)) as caught:
        MISTAKES[name](cuts, tmp_path)
    assert "\n" not in str(caught.value)


def test_other_missing_attributes_are_named_as_ever() -> None:
    with pytest.raises(AttributeError, match="'FbankConfig' object has no attribute 'mels'"):
        FbankConfig().mels  # noqa: B018
    with pytest.raises(AttributeError, match="'Fbank' object has no attribute 'mels'"):
        ast_fast_kernels.Fbank().mels  # noqa: B018
    assert not hasattr(FbankConfig(), "to_dict")
    assert not hasattr(ast_fast_kernels.Fbank(), "extract")
