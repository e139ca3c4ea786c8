"""Drop-ins for transformers' extractors, beside the live ones."""

from __future__ import annotations

import json
import logging
import pickle
import random
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.testing.processes import modules_loaded_by, run_program

theirs = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from ast_fast_kernels.compat import transformers as ours  # noqa: E402 - needs what may be missing
from ast_fast_kernels.compat.transformers import filterbank  # noqa: E402
from ast_fast_kernels.compat.transformers.library import live_class  # noqa: E402

Options = dict[str, Any]
NAMES = [
    "ASTFeatureExtractor",
    "ClapFeatureExtractor",
    "SeamlessM4TFeatureExtractor",
    "Speech2TextFeatureExtractor",
    "SpeechT5FeatureExtractor",
    "WhisperFeatureExtractor",
]
every = pytest.mark.parametrize("name", NAMES)

# Natural logarithms of two right float32 filterbanks, quiet bins next to loud ones included; a
# normalisation divides by a deviation near 1, dB multiply by 10 / ln 10.
MAX_DIFFERENCE = 4e-3
MEAN_DIFFERENCE = 2e-5


def make_clip(num_samples: int, seed: int = 0) -> np.ndarray:
    """A chirp in noise, 30 dB above it."""
    rng = np.random.default_rng(seed)
    time = np.arange(num_samples) / 16000
    chirp = 0.3 * np.sin(2 * np.pi * (300 + 900 * time) * time + seed)
    return (chirp + 0.01 * rng.standard_normal(num_samples)).astype(np.float32)


def call(extractor: Any, speech: Any, **options: Any) -> Any:
    """Call an extractor, SpeechT5's for features, in a fixed state of both generators."""
    np.random.seed(3)  # noqa: NPY002 - what CLAP's crops and the library's dither come from
    torch.manual_seed(3)
    options = {"sampling_rate": extractor.sampling_rate, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of a clip without a frame
        if "SpeechT5" in type(extractor).__name__:
            return extractor(audio_target=speech, **options)
        return extractor(speech, **options)


def assert_same(actual: Any, expected: Any, scale: float = 1.0) -> None:
    """Same types, shapes and dtypes all the way down; equal integers, close floats."""
    assert type(actual) is type(expected)
    if isinstance(expected, (list, tuple)) or getattr(expected, "dtype", "") == "O":
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other, scale)
        return
    actual_array, expected_array = np.asarray(actual), np.asarray(expected)
    assert actual_array.dtype == expected_array.dtype
    assert actual_array.shape == expected_array.shape
    if expected_array.dtype.kind != "f":
        assert np.array_equal(actual_array, expected_array)
        return
    known = np.isfinite(expected_array)
    assert np.array_equal(actual_array[~known], expected_array[~known], equal_nan=True)
    actual_array, expected_array = actual_array[known], expected_array[known].astype(np.float64)
    # x over a small deviation s is a large v, whose error is that of s times v² / x.
    difference = np.abs(actual_array - expected_array) / np.maximum(1, expected_array**2 / 5)
    if difference.size:
        assert difference.max() <= MAX_DIFFERENCE * scale
        assert difference.mean() <= MEAN_DIFFERENCE * scale


def assert_equal_features(actual: Any, expected: Any, scale: float = 1.0) -> None:
    assert type(actual) is type(expected)
    assert list(actual) == list(expected)
    for key in expected:
        assert_same(actual[key], expected[key], scale)


def compare(name: str, speech: Any, made: Options, given: Options) -> None:
    """Run both; where the library raises, ours raises the same kind of error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of empty filters
        library, drop_in = getattr(theirs, name)(**made), getattr(ours, name)(**made)
    try:
        expected = call(library, speech, **given)
    except (ArithmeticError, ValueError, RuntimeError):
        with pytest.raises((ArithmeticError, ValueError, RuntimeError)):
            call(drop_in, speech, **given)
        return
    scale = 10 / np.log(10) if "Clap" in name else 1.0
    assert_equal_features(call(drop_in, speech, **given), expected, scale)


def draw_common(rng: random.Random) -> tuple[list[np.ndarray], Options]:
    """Clips of different lengths, and options that most extractors take."""
    count = rng.choice([1, 1, 2, 3])
    clips = [make_clip(rng.randint(500, 6000), rng.randint(0, 99)) for _ in range(count)]
    if rng.random() < 0.3:
        clips = [clip[: len(clips[0])] for clip in clips if len(clip) >= len(clips[0])]
    return clips, {"return_tensors": rng.choice([None, "np", "pt"])}


def draw_padding(rng: random.Random, given: Options, unit: int = 1) -> None:
    given["padding"] = rng.choice([True, "longest", "max_length", "max_length", "do_not_pad"])
    if given["padding"] == "max_length" or rng.random() < 0.3:
        given["max_length"] = rng.choice([5, 20, 33, 40]) * unit
    given["truncation"] = rng.random() < 0.4 and "max_length" in given
    if rng.random() < 0.5:
        given["pad_to_multiple_of"] = rng.choice([2, 3, 8]) * unit
    if rng.random() < 0.5:
        given["return_attention_mask"] = rng.random() < 0.7


def draw_ast(rng: random.Random, made: Options, given: Options) -> None:
    made |= {
        "max_length": rng.choice([1, 20, 37]),
        "num_mel_bins": rng.choice([80, 128]),
        "do_normalize": rng.random() < 0.7,
        "mean": rng.choice([-4.2677393, 0.0, 3.0]),
        "std": rng.choice([4.5689974, 1.0, -2.0]),
        "sampling_rate": rng.choice([16000, 16000, 8000, 22050, 11025]),
    }


def draw_seamless(rng: random.Random, made: Options, given: Options) -> None:
    made |= {
        "num_mel_bins": rng.choice([80, 80, 40]),
        "stride": rng.choice([2, 2, 3, 1]),
        "padding_value": rng.choice([0.0, 1.0]),
        "padding_side": rng.choice(["right", "right", "right", "left"]),
        "sampling_rate": rng.choice([16000, 16000, 8000]),
    }
    draw_padding(rng, given)
    given["do_normalize_per_mel_bins"] = rng.random() < 0.7


def draw_speech_to_text(rng: random.Random, made: Options, given: Options) -> None:
    made |= {
        "num_mel_bins": rng.choice([80, 80, 40]),
        "padding_value": rng.choice([0.0, 1.0]),
        "padding_side": rng.choice(["right", "right", "right", "left"]),
        "do_ceptral_normalize": rng.random() < 0.7,
        "normalize_means": rng.random() < 0.7,
        "normalize_vars": rng.random() < 0.7,
        "dither": rng.choice([0.0, 0.0, 0.0, 4.0]),
    }
    draw_padding(rng, given)
    if made["do_ceptral_normalize"]:
        given.pop("return_attention_mask", None)  # the library fails on False


def draw_speecht5(rng: random.Random, made: Options, given: Options) -> None:
    made |= {
        "num_mel_bins": rng.choice([80, 80, 40]),
        "win_function": rng.choice(["hann_window", "hann_window", "hamming_window", "boxcar"]),
        "hop_length": rng.choice([16, 10]),
        "mel_floor": rng.choice([1e-10, 1e-5]),
        "fmax": rng.choice([7600, 4000, 9000]),
        "padding_value": rng.choice([0.0, 1.0]),
        "padding_side": rng.choice(["right", "right", "right", "left"]),
        "do_normalize": rng.random() < 0.5,
    }
    draw_padding(rng, given)


def draw_whisper(rng: random.Random, made: Options, given: Options) -> None:
    made |= {
        "feature_size": rng.choice([80, 80, 128]),
        "chunk_length": 1,
        "padding_value": rng.choice([0.0, 0.0, 0.01]),
        "padding_side": rng.choice(["right", "right", "right", "left"]),
        "dither": rng.choice([0.0, 0.0, 0.001]),
        "sampling_rate": rng.choice([16000, 16000, 16000, 8000]),
        "hop_length": rng.choice([160, 160, 200]),
        "n_fft": rng.choice([400, 400, 400, 401]),
        "return_attention_mask": rng.random() < 0.2,
    }
    draw_padding(rng, given, unit=100)
    if given["padding"] is True:
        given.pop("padding")
    given["do_normalize"] = rng.choice([None, None, False, True])


def draw_clap(rng: random.Random, made: Options, given: Options) -> None:
    made |= {
        "feature_size": 64,
        "max_length_s": 0.05,
        "sampling_rate": rng.choice([48000, 48000, 16000]),
        "truncation": rng.choice(["fusion", "rand_trunc"]),
        "padding": rng.choice(["repeatpad", "repeat", "pad"]),
        "frequency_min": rng.choice([0, 50]),
    }
    given |= {"max_length": rng.choice([2400, 4800])}


DRAWS: dict[str, tuple[int, Callable[[random.Random, Options, Options], None]]] = {
    "ASTFeatureExtractor": (24, draw_ast),
    "ClapFeatureExtractor": (60, draw_clap),
    "SeamlessM4TFeatureExtractor": (60, draw_seamless),
    "Speech2TextFeatureExtractor": (60, draw_speech_to_text),
    "SpeechT5FeatureExtractor": (50, draw_speecht5),
    "WhisperFeatureExtractor": (60, draw_whisper),
}


@every
def test_random_calls_give_what_the_library_gives(name: str) -> None:
    count, draw = DRAWS[name]
    for seed in range(count):
        rng = random.Random(seed)
        clips, given = draw_common(rng)
        made: Options = {}
        draw(rng, made, given)
        speech = clips[0] if len(clips) == 1 and rng.random() < 0.5 else clips
        try:
            compare(name, speech, made, given)
        except BaseException as error:
            error.add_note(f"draw {seed}: {made}, {given}, {list(map(len, clips))} samples")
            raise


def features(name: str, speech: Any, **options: Any) -> Any:
    """Return ours, as arrays."""
    return call(getattr(ours, name)(), speech, return_tensors="np", **options)


@every
def test_forms_of_one_clip_give_the_same_features(name: str) -> None:
    clip = np.round(make_clip(4800) * 32767).astype(np.int16)
    floats = clip.astype(np.float32)
    expected = call(getattr(theirs, name)(), floats, return_tensors="np")
    forms = {
        "float32": floats,
        "float64": clip.astype(np.float64),
        "int16": clip,
        "a batch": floats[None],
        "numbers": clip.tolist(),
        "a list of numbers": [clip.tolist()],
        "a list of a batch": [floats[None]],
        "a tuple": (floats,),
        "a view": np.repeat(floats, 2)[::2],
        "reversed": floats[::-1].copy()[::-1],
        "a tensor": torch.from_numpy(floats),
        "a tensor of a batch": torch.from_numpy(floats)[None],
        "a tensor of short": torch.from_numpy(clip),
        "a list of tensors": [torch.from_numpy(floats)],
        "a list of tensors of a batch": [torch.from_numpy(floats)[None]],
    }
    scale = 10 / np.log(10) if "Clap" in name else 1.0
    for form, speech in forms.items():
        try:
            assert_equal_features(features(name, speech), expected, scale)
        except AssertionError as error:
            error.add_note(form)
            raise


@every
def test_a_batch_gives_each_clip_what_it_gives_alone(name: str) -> None:
    clips = [make_clip(4800, seed) for seed in range(3)]
    in_turn = np.concatenate([next(iter(features(name, clip).values())) for clip in clips])
    for batch in (np.stack(clips), torch.from_numpy(np.stack(clips)), clips):
        together = next(iter(features(name, batch).values()))
        assert np.array_equal(together, in_turn)


@every
def test_clips_of_several_channels_raise_or_give_their_first(name: str) -> None:
    first, second = make_clip(4800, 0), make_clip(4800, 1)
    stereo = np.stack((first, second))
    if "Seamless" in name:
        for batch in ([stereo], stereo[None], torch.from_numpy(stereo)[None]):
            expected = features(name, first)["input_features"]
            assert np.array_equal(features(name, batch)["input_features"], expected)
        with pytest.raises(ValueError, match="Only mono-channel or stereo-channel audio is"):
            features(name, stereo[None, None])
        with pytest.raises(ValueError, match=re.escape("for each clip, got (1, 2, 4800)")):
            features(name, [stereo[None]])
        return
    with pytest.raises(ValueError, match=re.escape("must have one channel, (num_samples,)")):
        features(name, [stereo])
    for batch in (stereo[None], torch.from_numpy(stereo)[None]):
        with pytest.raises(ValueError, match="Only mono-channel audio is supported for input"):
            features(name, batch)


@every
def test_complex_samples_raise(name: str) -> None:
    with pytest.raises(ValueError, match="Complex-valued input waveforms are not currently"):
        features(name, make_clip(4800).astype(np.complex64))


@every
def test_errors_and_warnings_are_the_librarys(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    clip, both = make_clip(4800), (getattr(theirs, name)(), getattr(ours, name)())
    messages = []
    for extractor in both:
        with pytest.raises(ValueError, match="sampling rate of") as caught:
            call(extractor, clip, sampling_rate=11025)
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            call(extractor, clip, sampling_rate=None)
        logged = [(record.name, record.getMessage()) for record in caplog.records]
        assert "sampling_rate" in logged[0][1]
        with pytest.raises(ValueError, match="is not a valid TensorType"):
            call(extractor, clip, return_tensors="no tensors")
        messages.append((str(caught.value), logged))
    # SpeechT5 names `audio` where others name `raw_speech`, both by the library.
    assert messages[0] == messages[1]


@every
def test_folders_are_read_and_written_by_both(name: str, tmp_path: Path) -> None:
    for first, second in ((ours, theirs), (theirs, ours)):
        saved = getattr(first, name)(sampling_rate=16000, return_attention_mask=True)
        saved.save_pretrained(tmp_path)
        text = (tmp_path / "preprocessor_config.json").read_text()
        read = getattr(second, name).from_pretrained(tmp_path)
        assert type(read).__module__ != type(saved).__module__
        assert read.to_json_string() == text == saved.to_json_string()
        assert json.loads(text)["feature_extractor_type"] == name
        again = getattr(second, name).from_dict(saved.to_dict())
        assert again.to_dict() == saved.to_dict()
    automatic = theirs.AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(getattr(ours, name)(), type(automatic))


@every
def test_extractors_are_pickled(name: str) -> None:
    clip, extractor = make_clip(4800), getattr(ours, name)(padding_value=0.0)
    again = pickle.loads(pickle.dumps(extractor))
    assert type(again) is type(extractor)
    assert_equal_features(call(again, clip), call(extractor, clip))


@every
def test_tensors_are_the_memory_that_the_kernel_wrote(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whisper's are transposed after the kernel, into the array that is returned."""
    written = []

    def note(samples: np.ndarray, config: FbankConfig, *, out: np.ndarray) -> np.ndarray:
        written.append(out.ctypes.data)
        return fbank(samples, config, out=out)

    if "Whisper" not in name:
        monkeypatch.setattr(filterbank, "fbank", note)
    clips = [make_clip(4800), make_clip(3200)]
    padding = "pad" if "Clap" in name else "longest"
    result = call(getattr(ours, name)(), clips, padding=padding, return_tensors="pt")
    tensor = next(iter(result.values()))
    assert tensor.is_contiguous()
    if "Whisper" not in name:
        assert written == [clip.data_ptr() for clip in tensor]


@every
def test_other_filters_are_taken_as_they_are(name: str) -> None:
    """Wider ones, which no config has: the clip is computed from the extractor's tables."""
    clip, pair = make_clip(4800), (getattr(theirs, name)(), getattr(ours, name)())
    usual = call(pair[1], clip, return_tensors="np")
    for extractor in pair:
        wider = extractor.mel_filters + 0.1 * np.roll(extractor.mel_filters, 3, axis=0)
        extractor.mel_filters = wider
        if "Clap" not in name:
            continue
        extractor.mel_filters_slaney = wider[::-1].copy()
    expected, actual = (call(extractor, clip, return_tensors="np") for extractor in pair)
    key = next(iter(expected))
    assert np.abs(expected[key] - usual[key]).max() > 0.01
    assert_equal_features(actual, expected, 10 / np.log(10) if "Clap" in name else 1.0)


@pytest.mark.parametrize("num_samples", [0, 100, 239, 240, 399, 400, 559, 560])
@every
def test_shortest_clips_have_the_librarys_frames_or_raise(name: str, num_samples: int) -> None:
    given = {"padding": "longest"} if "Whisper" in name else {}
    if "Clap" in name:
        given["max_length"] = 4800
    if name in ("ASTFeatureExtractor", "Speech2TextFeatureExtractor"):
        given["return_tensors"] = "np"
    compare(name, make_clip(num_samples), {}, given)


@every
def test_silence_and_values_that_are_no_numbers_agree(name: str) -> None:
    """Without normalisation by bin, where silence leaves rounding errors over rounding errors."""
    made = {"do_ceptral_normalize": False} if "Speech2Text" in name else {}
    given = {"do_normalize_per_mel_bins": False} if "Seamless" in name else {}
    silence, broken = np.zeros(4800, np.float32), make_clip(4800)
    broken[2000] = np.nan
    for clip in (silence, broken):
        compare(name, clip, made, {"return_tensors": "np", **given})


@pytest.mark.parametrize("padding", ["repeat", "repeatpad", "pad"])
def test_clap_repeats_no_empty_clip(padding: str) -> None:
    """The library divides by zero; both take silence for it where nothing is repeated."""
    compare("ClapFeatureExtractor", make_clip(0), {}, {"max_length": 4800, "padding": padding})


def test_whisper_fills_frames_of_padding_with_silence() -> None:
    """Clips that end anywhere in the 30 s, and beyond."""
    for num_samples in (0, 159, 4800, 479_700, 479_900, 480_001):
        clip = make_clip(num_samples)
        compare("WhisperFeatureExtractor", clip, {}, {"return_attention_mask": True})


def test_whisper_computes_on_a_device_and_returns_to_the_cpu() -> None:
    clips = [make_clip(4800), make_clip(3200)]
    for made in ({}, {"dither": 1e-3}, {"sampling_rate": 8000}):
        given = {"device": "cpu:0", "return_tensors": "pt", "padding": "longest"}
        compare("WhisperFeatureExtractor", clips, made, given)


def test_whisper_refuses_a_device_that_there_is_not() -> None:
    with pytest.raises(RuntimeError, match="nonsense"):
        features("WhisperFeatureExtractor", make_clip(4800), device="nonsense")


def test_speecht5_takes_samples_and_targets_at_once() -> None:
    clips = [make_clip(4800), make_clip(3200)]
    for options in ({}, {"padding": True}, {"padding": True, "return_tensors": "pt"}):
        for do_normalize in (False, True):
            for speech in ({"audio": clips}, {"audio": clips, "audio_target": clips}):
                expected, actual = (
                    module.SpeechT5FeatureExtractor(do_normalize=do_normalize)(
                        sampling_rate=16000, **speech, **options
                    )
                    for module in (theirs, ours)
                )
                assert_equal_features(actual, expected)


def test_speech_to_text_normalises_without_a_mask() -> None:
    """The library fails here: it would need the mask to know which frames are padding."""
    clips = [make_clip(4800), make_clip(3200)]
    expected = features("Speech2TextFeatureExtractor", clips, padding=True)
    actual = features(
        "Speech2TextFeatureExtractor", clips, padding=True, return_attention_mask=False
    )
    assert list(actual) == ["input_features"]
    assert np.array_equal(actual["input_features"], expected["input_features"])


def test_the_library_is_loaded_by_the_first_class_that_is_asked_for() -> None:
    loaded = modules_loaded_by(
        "import ast_fast_kernels.compat.transformers as t; dir(t); assert len(t.__all__) == 6"
    )
    assert not {"transformers", "torch"} & loaded
    with pytest.raises(AttributeError, match="has no attribute 'Wav2Vec2FeatureExtractor'"):
        ours.Wav2Vec2FeatureExtractor  # noqa: B018


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="needs transformers: pip install transformers"):
        live_class("whisper", "WhisperFeatureExtractor")


BROKEN = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import transformers
try:
    transformers.WhisperFeatureExtractor
except Exception:
    print("broken")
from ast_fast_kernels.compat import transformers as ours
for name in ours.__all__:
    extractor = getattr(ours, name)()
    clip, rate = np.ones(4800, np.float32), extractor.sampling_rate
    key = "audio_target" if "SpeechT5" in name else "raw_speech"
    features = extractor(**{key: clip}, sampling_rate=rate, return_tensors="pt")
    print(name, *next(iter(features.values())).shape)
print(transformers.utils.is_torchaudio_available())
"""


def test_they_work_beside_broken_libraries(tmp_path: Path) -> None:
    """As of another build than torch's: installed, but an error when imported."""
    for library in ("torchaudio", "torchcodec"):
        folder = tmp_path / library
        folder.mkdir()
        (folder / "__init__.py").write_text("raise OSError('undefined symbol')")
    printed = run_program(BROKEN, str(tmp_path)).splitlines()
    assert printed[0] == "broken"
    assert printed[1:] == [
        "ASTFeatureExtractor 1 1024 128",
        "ClapFeatureExtractor 1 4 1001 64",
        "SeamlessM4TFeatureExtractor 1 14 160",
        "Speech2TextFeatureExtractor 1 28 80",
        "SpeechT5FeatureExtractor 1 19 80",
        "WhisperFeatureExtractor 1 80 3000",
        "True",  # the library's own view is as it was
    ]
