"""Options and frames are those of the live kaldi-native-fbank."""

from __future__ import annotations

import copy
import math
import pickle
from itertools import pairwise
from types import ModuleType
from typing import Any

import kaldi_native_fbank as theirs
import numpy as np
import pytest
import torch

import ast_fast_kernels.compat.kaldi_native_fbank as ours
from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.testing.budgets import relative_norm
from ast_fast_kernels.testing.processes import run_program

RATE = 16000
SAMPLES = np.random.default_rng(0).normal(0, 1000, 12345).astype(np.float32)
QUIET = {"frame_opts.dither": 0.0}
SLANEY = {"mel_opts.is_librosa": True, "mel_opts.low_freq": 0.0}
TOLERANCE = 3e-5
"""Twice the most seen in 332 random settings, on the logarithm's scale: the library's float32."""

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "kaldi-80": ("Fbank", {"mel_opts.num_bins": 80, "mel_opts.high_freq": -400.0}),
    "mirrored": ("Fbank", {"frame_opts.snip_edges": False}),
    "hop-beyond-window": (
        "Fbank",
        {"frame_opts.snip_edges": False, "frame_opts.frame_shift_ms": 40.0},
    ),
    "hann-no-mean": (
        "Fbank",
        {
            "frame_opts.window_type": "hann",
            "frame_opts.remove_dc_offset": False,
            "frame_opts.preemph_coeff": 0.0,
        },
    ),
    "nemo": ("Fbank", {**SLANEY, "use_log_floor": False, "eps": 2.0**-24}),
    "librosa-htk": (
        "Fbank",
        {**SLANEY, "mel_opts.norm": "", "mel_opts.use_slaney_mel_scale": False},
    ),
    "whole-bins": ("Fbank", {**SLANEY, "mel_opts.norm": "", "mel_opts.floor_to_int_bin": True}),
    "magnitudes": ("Fbank", {"use_power": False}),
    "energies": ("Fbank", {"use_log_fbank": False}),
    "energy": ("Fbank", {"use_energy": True}),
    "energy-last-late": ("Fbank", {"use_energy": True, "raw_energy": False, "htk_compat": True}),
    "energy-floor": ("Fbank", {"use_energy": True, "energy_floor": 1e9}),
    "no-floor": ("Fbank", {"eps": -1.0}),
    "mfcc": ("Mfcc", {}),
    "mfcc-c0": ("Mfcc", {"use_energy": False, "cepstral_lifter": 0.0, "num_ceps": 20}),
    "mfcc-htk": ("Mfcc", {"use_energy": False, "htk_compat": True}),
    "mfcc-energy-last": ("Mfcc", {"htk_compat": True, "raw_energy": False}),
    "whisper": ("WhisperFeature", {"dim": 80}),
}
EXTRACTORS = {"Fbank": "OnlineFbank", "Mfcc": "OnlineMfcc", "WhisperFeature": "OnlineWhisperFbank"}


def options(module: ModuleType, kind: str, changes: dict[str, Any]) -> Any:
    made = getattr(module, f"{kind}Options")()
    for name, value in changes.items():
        *path, field = name.split(".")
        target = made
        for part in path:
            target = getattr(target, part)
        setattr(target, field, value)
    return made


def extractor(module: ModuleType, kind: str, changes: dict[str, Any]) -> Any:
    given = changes if kind == "WhisperFeature" else {**QUIET, **changes}
    return getattr(module, EXTRACTORS[kind])(options(module, kind, given))


def frames_of(stream: Any) -> np.ndarray:
    return np.array([stream.get_frame(i) for i in range(stream.num_frames_ready)])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cuts", [[], [100, 399, 401, 5000, 12344]], ids=["whole", "chunks"])
def test_frames_are_the_librarys(name: str, cuts: list[int]) -> None:
    kind, changes = CASES[name]
    streams = [extractor(module, kind, changes) for module in (ours, theirs)]
    for first, last in pairwise([0, *cuts, len(SAMPLES)]):
        for stream in streams:
            stream.accept_waveform(RATE, SAMPLES[first:last])
        assert streams[0].num_frames_ready == streams[1].num_frames_ready
    for stream in streams:
        stream.input_finished()
    mine, its = map(frames_of, streams)
    assert mine.shape == its.shape
    assert mine.dtype == np.float32
    assert streams[0].dim == streams[1].dim
    assert streams[0].frame_shift_in_seconds == streams[1].frame_shift_in_seconds
    last = len(mine) - 1
    assert [s.is_last_frame(last) for s in streams] == [True, True]
    assert [s.is_last_frame(last - 1) for s in streams] == [False, False]
    if changes.get("use_log_fbank", kind != "WhisperFeature"):
        np.testing.assert_allclose(mine, its, rtol=0, atol=TOLERANCE * max(1, np.abs(its).max()))
    else:
        assert relative_norm(torch.from_numpy(mine), torch.from_numpy(its)) < TOLERANCE


@pytest.mark.parametrize("num_samples", [1, 79, 80, 81, 200, 279, 280, 281, 399, 560])
def test_short_mirrored_clips_have_the_librarys_frames(num_samples: int) -> None:
    clip = SAMPLES[:num_samples]
    found = []
    for module in (ours, theirs):
        stream = extractor(module, *CASES["mirrored"])
        stream.accept_waveform(RATE, clip)
        ready = stream.num_frames_ready
        stream.input_finished()
        found.append((ready, frames_of(stream)))
    assert found[0][0] == found[1][0]
    assert found[0][1].shape == found[1][1].shape
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=0, atol=20 * TOLERANCE)


def another(value: Any) -> Any:
    """Return another value of an option, where one is easily made."""
    if isinstance(value, bool):
        return not value
    return value * 3 + 1 if isinstance(value, (int, float)) else value


OPTIONS = ["FrameExtraction", "MelBanks", "Fbank", "Mfcc", "WhisperFeature"]


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_have_the_librarys_names_defaults_and_text(kind: str) -> None:
    mine, its = (getattr(module, f"{kind}Options")() for module in (ours, theirs))
    assert mine.as_dict() == its.as_dict()
    assert str(mine) == str(its)
    changed = {name: another(value) for name, value in its.as_dict().items()}
    if kind in ("Fbank", "Mfcc"):
        changed |= {"frame_opts": {"dither": 0.1}, "mel_opts": {"vtln_low": 7}}
    mine, its = (getattr(m, f"{kind}Options").from_dict(changed) for m in (ours, theirs))
    assert mine.as_dict() == its.as_dict()
    assert str(mine) == str(its)
    for again in (pickle.loads(pickle.dumps(mine)), copy.deepcopy(mine)):
        assert again.as_dict() == mine.as_dict()
    positional = [
        value
        for value in getattr(theirs, f"{kind}Options")().as_dict().values()
        if not isinstance(value, dict)
    ]
    if kind in ("FrameExtraction", "MelBanks"):
        assert type(mine)(*positional).as_dict() == type(its)(*positional).as_dict()


def test_options_are_kept_by_value() -> None:
    frame = ours.FrameExtractionOptions(samp_freq=8000)
    made = ours.FbankOptions(frame_opts=frame, mel_opts=ours.MelBanksOptions(num_bins=40))
    frame.samp_freq = 4000
    assert made.frame_opts.samp_freq == 8000
    stream = ours.OnlineFbank(made)
    made.mel_opts.num_bins = 23
    assert stream.dim == 40


def test_samples_may_be_lists_arrays_or_tensors() -> None:
    whole = np.round(SAMPLES[:2000])
    kinds: list[Any] = [
        whole.tolist(), tuple(whole), whole.astype(np.int16), whole.astype(np.float64),
        np.repeat(whole, 2)[::2], torch.from_numpy(whole), torch.from_numpy(whole).requires_grad_(),
    ]  # fmt: skip
    wanted = fbank(whole, FbankConfig.preset("kaldi"))
    for given in kinds:
        stream = extractor(ours, "Fbank", {})
        stream.accept_waveform(sampling_rate=np.int64(RATE), waveform=given)
        np.testing.assert_allclose(frames_of(stream), wanted, rtol=0, atol=1e-4)


def test_a_chunks_memory_may_be_used_again() -> None:
    stream, chunk = extractor(ours, "Fbank", {}), np.empty(100, np.float32)
    for at in range(0, 2000, 100):
        chunk[:] = SAMPLES[at : at + 100]
        stream.accept_waveform(RATE, chunk)
    whole = extractor(ours, "Fbank", {})
    whole.accept_waveform(RATE, SAMPLES[:2000])
    np.testing.assert_array_equal(frames_of(stream), frames_of(whole))


def test_128_filters_may_leave_one_empty() -> None:
    with pytest.raises(ValueError, match="num_mel_bins too large"):
        extractor(theirs, "Fbank", {"mel_opts.num_bins": 128})
    stream = extractor(ours, "Fbank", {"mel_opts.num_bins": 128})
    stream.accept_waveform(RATE, SAMPLES)
    wanted = fbank(SAMPLES, FbankConfig.preset("kaldi", num_mel_bins=128))
    np.testing.assert_allclose(frames_of(stream), wanted, rtol=0, atol=1e-4)


def test_popped_frames_are_gone_and_the_others_keep_their_numbers() -> None:
    for module in (ours, theirs):
        stream = extractor(module, "Fbank", {})
        stream.accept_waveform(RATE, SAMPLES)
        ready = stream.num_frames_ready
        eleventh = np.array(stream.get_frame(11))
        stream.pop(10)
        stream.pop(-1)
        assert stream.num_frames_ready == ready
        np.testing.assert_array_equal(stream.get_frame(11), eleventh)
        for gone in (9, -1):
            with pytest.raises(RuntimeError):
                stream.get_frame(gone)
        with pytest.raises(IndexError):
            stream.get_frame(ready)
        stream.pop(1000)
        assert stream.num_frames_ready == ready
        stream.input_finished()
        assert stream.is_last_frame(ready - 1)


@pytest.mark.parametrize("energy", [False, True], ids=["plain", "energy"])
def test_dither_is_noise_of_its_size_that_a_seed_repeats(energy: bool) -> None:
    changes = {"frame_opts.dither": 0.5, "use_energy": energy, "frame_opts.preemph_coeff": 0.0}
    found = []
    for cut in (len(SAMPLES), 160):
        np.random.seed(3)  # noqa: NPY002 - what draws the noise
        stream = extractor(ours, "Fbank", changes)
        for at in range(0, len(SAMPLES), cut):
            stream.accept_waveform(RATE, np.zeros(cut, np.float32)[: len(SAMPLES) - at])
        found.append(frames_of(stream))
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)
    its = extractor(theirs, "Fbank", changes)
    its.accept_waveform(RATE, np.zeros(len(SAMPLES), np.float32))
    np.testing.assert_allclose(found[0].mean(0), frames_of(its).mean(0), rtol=0, atol=0.5)
    if energy:
        assert found[0][:, 0].mean() == pytest.approx(math.log(400 * 0.25), abs=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_opts.window_type": "sine"}, "window_type must be one of hanning, hann, .*'sine'"),
        ({"mel_opts.htk_mode": True}, "htk_mode must be False, got True"),
        ({"mel_opts.debug_mel": True}, "debug_mel must be False, got True"),
        ({**SLANEY, "mel_opts.norm": "x"}, "norm must be '' or 'slaney', got 'x'"),
        ({**SLANEY, "mel_opts.floor_to_int_bin": True}, "norm must be '' when floor_to_int_bin"),
        ({"frame_opts.preemph_coeff": 1.5}, "preemphasis_coefficient must be from 0 to 1, got 1.5"),
        ({"mel_opts.high_freq": 9000}, "high_freq must be at most Nyquist"),
    ],
)
def test_what_cannot_be_followed_says_so(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extractor(ours, "Fbank", changes)


def test_refusals_name_what_came() -> None:
    stream = extractor(ours, "Fbank", {})
    for error, given, message in (
        (ValueError, SAMPLES[None], r"waveform must be \(num_samples,\), got \(1, 12345\)"),
        (TypeError, "abc", "waveform must be a sequence of numbers, an array or a tensor, got str"),
        (TypeError, ["a"], "waveform must consist of numbers: required argument is not"),
        (TypeError, np.array(["a"]), "waveform must be numbers, got an array of <U1"),
    ):
        with pytest.raises(error, match=message):
            stream.accept_waveform(RATE, given)
    with pytest.raises(ValueError, match=r"sampling_rate must be 16000 \(samp_freq\), got 8000"):
        stream.accept_waveform(8000, SAMPLES)
    stream.input_finished()
    with pytest.raises(RuntimeError, match="cannot be called after input_finished"):
        stream.accept_waveform(RATE, SAMPLES)
    with pytest.raises(TypeError, match="opts must be FbankOptions, got MfccOptions"):
        ours.OnlineFbank(ours.MfccOptions())  # type: ignore[arg-type]
    for num_ceps in (0, 24):
        with pytest.raises(ValueError, match=r"num_ceps must be from 1 to num_bins \(23\)"):
            ours.OnlineMfcc(ours.MfccOptions(num_ceps=num_ceps))
    with pytest.raises(ValueError, match="cepstral_lifter must be at least 0 and finite, got -1"):
        ours.OnlineMfcc(ours.MfccOptions(cepstral_lifter=-1))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("energy_floor", "1", "energy_floor must be a number, got '1'"),
        ("use_power", "no", "use_power must be True or False, got 'no'"),
        ("frame_opts", {}, "frame_opts must be FrameExtractionOptions, got {}"),
        ("mel_opts", None, "mel_opts must be MelBanksOptions, got None"),
    ],
)
def test_options_are_checked_when_they_are_set(field: str, value: Any, message: str) -> None:
    made = ours.FbankOptions()
    with pytest.raises(TypeError, match=message):
        setattr(made, field, value)
    with pytest.raises(AttributeError):
        made.use_enrgy = True  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"num_bins must be an integer, got 23\.5"):
        made.mel_opts.num_bins = 23.5  # type: ignore[assignment]
    with pytest.raises(TypeError, match="window_type must be a string, got 3"):
        made.frame_opts.window_type = 3  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"keys must be among frame_opts, .*, got 'bogus'"):
        ours.FbankOptions.from_dict({"bogus": 1})


@pytest.mark.parametrize(
    ("changes", "warp"),
    [
        ({"num_bins": 40}, 1.0),
        ({"num_bins": 40}, 1.1),
        ({"num_bins": 80, "is_librosa": True, "low_freq": 0.0}, 1.0),
    ],
    ids=["kaldi", "warped", "slaney"],
)
def test_filters_and_windows_are_the_librarys(changes: dict[str, Any], warp: float) -> None:
    spectrum = np.random.default_rng(0).random(257).astype(np.float32)
    found = []
    for module in (ours, theirs):
        banks = module.MelBanks(module.MelBanksOptions(**changes), vtln_warp_factor=warp)
        frame = module.FrameExtractionOptions(window_type="hann")
        window = module.FeatureWindowFunction(frame)
        scales = [
            getattr(banks, name)(value)
            for name in ("mel_scale", "inverse_mel_scale")
            for name in (name, f"{name}_slaney")
            for value in (500.0, 10.0)
        ]
        found.append(
            (banks.dim, banks.get_matrix(), banks.compute(spectrum), scales, window.window,
             window.apply([1.0] * 400))
        )  # fmt: skip
    for mine, its in zip(*found, strict=True):
        np.testing.assert_allclose(mine, its, rtol=2e-5, atol=2e-5)
    with pytest.raises(ValueError, match=r"fft_energies must be \(257,\), got \(3,\)"):
        ours.MelBanks().compute([1, 2, 3])
    with pytest.raises(ValueError, match=r"wave must be \(400,\), got \(1,\)"):
        ours.FeatureWindowFunction(ours.FrameExtractionOptions()).apply([1.0])


def test_neither_torch_nor_the_library_is_needed() -> None:
    run_program(
        "import sys; sys.modules['torch'] = sys.modules['kaldi_native_fbank'] = None\n"
        "import numpy as np\n"
        "import ast_fast_kernels.compat.kaldi_native_fbank as knf\n"
        "stream = knf.OnlineMfcc(knf.MfccOptions())\n"
        "stream.accept_waveform(16000, np.ones(800).tolist())\n"
        "assert stream.get_frame(2).shape == (13,)\n"
    )
