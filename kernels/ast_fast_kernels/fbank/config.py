"""What a log-mel filterbank is, as data: one frozen dataclass that every backend reads."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, overload

from ast_fast_kernels.fbank.presets import PRESETS, ROUNDING, PresetName, follow

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

FLOAT32_EPS = 1.1920928955078125e-07
"""Kaldi's log floor: `torch.finfo(torch.float32).eps`."""

FLOAT32_TINY = 1.1754943508222875e-38
"""Smallest normal float32; a smaller value, other than 0, does not survive a kernel's dtype."""

WindowType = Literal["hanning", "hamming", "povey", "rectangular", "blackman"]
PadMode = Literal["symmetric", "reflect", "constant"]
DitherOver = Literal["frame", "waveform"]
PreemphasisOver = Literal["frame", "waveform"]
LeftPadding = Literal["kaldi", "lhotse"]
MelScale = Literal["htk", "slaney"]
MelNorm = Literal["none", "slaney"]
FilterShape = Literal["triangular", "symmetric", "rectangular", "gaussian"]
TriangleAxis = Literal["mel", "hertz", "bins"]
MelDtype = Literal["float64", "float32"]
LogType = Literal["ln", "log10", "db"]


@dataclass(frozen=True)
class FbankConfig:
    """Conventions of a log-mel filterbank; the defaults are the Audio Spectrogram Transformer's.

    Fields are in the order in which they apply to a waveform. Times are in milliseconds, as in
    Kaldi; `window_size` and `window_shift` give them in samples.
    Source: torchaudio/compliance/kaldi.py; YuanGongND/ast, src/dataloader.py.
    """

    sample_frequency: float = 16000.0
    """Sample rate of the waveform, in Hz."""
    frame_length: float = 25.0
    """Length of a frame (the window), in milliseconds."""
    frame_shift: float = 10.0
    """Hop from one frame to the next, in milliseconds."""
    n_fft: int | None = None
    """FFT length in samples; None is the smallest power of two that holds the window."""
    window_type: WindowType = "hanning"
    """Shape of the window."""
    window_periodic: bool = False
    """Whether the window is periodic (scipy's fftbins=True) instead of symmetric."""
    blackman_coeff: float = 0.42
    """Constant coefficient of the generalised Blackman window."""
    waveform_scale: float = 1.0
    """Factor applied to the waveform first; 32768 for conventions in int16's scale."""
    dither: float = 0.0
    """Standard deviation of the Gaussian noise that is added; 0 is none."""
    dither_over: DitherOver = "frame"
    """Whether each frame has noise of its own (Kaldi), or the waveform has it, before pre-emphasis,
    so that frames that overlap share it (lhotse, Whisper, NeMo)."""
    preemphasis_coefficient: float = 0.97
    """Fraction of the previous sample that is subtracted from each sample; 0 is none."""
    preemphasis_over: PreemphasisOver = "frame"
    """Whether pre-emphasis runs over each frame, after its mean is removed (the first sample is its
    own predecessor), or over the waveform, before padding and framing (the first sample stays)."""
    snip_edges: bool = True
    """Whether the first frame starts at the first sample and only whole frames are taken; False
    pads the waveform at both ends and takes one frame per shift."""
    center: bool = False
    """Whether frames are centred on multiples of the shift, as in torch.stft; False centres them
    halfway between, as in Kaldi. Only without snip_edges."""
    pad_mode: PadMode = "symmetric"
    """Padding beyond the ends, without snip_edges: the waveform mirrored with its edge sample
    repeated (symmetric, as in Kaldi), mirrored without it (reflect), or zeros (constant)."""
    left_padding: LeftPadding = "kaldi"
    """Samples before the first frame that are padding, without snip_edges and center: half a window
    less half a shift, each rounded down (Kaldi), or half of window less shift (lhotse). They differ
    by one if the window is even and the shift odd."""
    pad_tail: bool = False
    """Whether the last, partial frame is taken too, padded with zeros; only with snip_edges."""
    drop_last_frame: bool = False
    """Whether the last frame is left out."""
    remove_dc_offset: bool = True
    """Whether each frame's mean is subtracted."""
    use_power: bool = True
    """Whether the spectrum is a power spectrum; False takes magnitudes."""
    divide_by_n_fft: bool = False
    """Whether the spectrum is divided by the FFT length."""
    mel_filters: bool = True
    """Whether mel filters sum the spectrum; False gives every bin of it, a log spectrogram, and
    ignores the other fields of the filters."""
    num_mel_bins: int = 128
    """Number of mel filters; without them, of the spectrum's bins: n_fft // 2 + 1."""
    low_freq: float = 20.0
    """Lower edge of the lowest filter, in Hz."""
    high_freq: float = 0.0
    """Upper edge of the highest filter, in Hz; 0 or below counts down from Nyquist."""
    whole_nyquist: bool = False
    """Whether the filters take Nyquist to be a whole number of Hz, rounded down (torchaudio's
    transforms, transformers); only an odd sample rate tells them apart."""
    mel_scale: MelScale = "htk"
    """Mel scale: logarithmic from 0 Hz on (HTK, Kaldi) or only above 1 kHz (Slaney)."""
    mel_norm: MelNorm = "none"
    """Whether each filter peaks at 1 (none) or has area 1 in Hz (slaney)."""
    filter_shape: FilterShape = "triangular"
    """Shape of a filter: a triangle from the centre below it to the one above; or, as wide above
    its centre as below (speechbrain), a triangle (symmetric), ones (rectangular), or a bell with
    half that width as its deviation (gaussian)."""
    triangle_axis: TriangleAxis = "mel"
    """Axis on which the filters' sides are straight: mel, Hz, or FFT bins with every edge rounded
    down to a whole bin (python_speech_features)."""
    mel_dtype: MelDtype = "float64"
    """Precision in which the filters are computed; float32 repeats torchaudio's arithmetic step by
    step, so that a bin on a filter's edge gets the same weight as there."""
    use_log_fbank: bool = True
    """Whether the logarithm is taken; False gives the mel energies and ignores the fields from
    log_type to norm_per_feature."""
    log_type: LogType = "ln"
    """Logarithm: natural, to base 10, or decibels (ten times the one to base 10)."""
    log_floor: float = FLOAT32_EPS
    """Smaller energies are raised to this before the logarithm; 0 is no floor."""
    floor_zeros_only: bool = False
    """Whether the floor replaces only energies of exactly 0 (python_speech_features)."""
    log_offset: float = 0.0
    """Added to every energy before the logarithm."""
    top_db: float = 0.0
    """Range of a clip, in dB of power: values further below its largest are raised to this limit; 0
    is no limit."""
    output_shift: float = 0.0
    """Added to every logarithm."""
    output_scale: float = 1.0
    """Factor on the shifted logarithm."""
    norm_per_feature: bool = False
    """Whether each mel bin is normalised over its clip: its mean subtracted, the rest divided by
    its standard deviation (unbiased, plus 1e-5)."""
    vtln_low: float = 100.0
    """Lower inflection point of the vocal-tract-length warp, in Hz."""
    vtln_high: float = -500.0
    """Upper inflection point of the warp, in Hz; below 0 counts down from Nyquist."""
    vtln_warp: float = 1.0
    """Vocal-tract-length warp factor; 1 is none."""

    def __post_init__(self) -> None:
        for name, kind in _KINDS:
            object.__setattr__(self, name, kind(name, getattr(self, name)))
        _require(self.sample_frequency > 0, "sample_frequency", "above 0 Hz", self.sample_frequency)
        _require_finite_size("frame_length", self.sample_frequency, self.frame_length)
        _require_finite_size("frame_shift", self.sample_frequency, self.frame_shift)
        _require(self.window_size >= 2, "frame_length", "at least 2 samples", self.frame_length)
        _require(self.window_shift >= 1, "frame_shift", "at least 1 sample", self.frame_shift)
        if self.n_fft is not None:
            rule = f"even and at least the window's {self.window_size} samples"
            good = self.n_fft >= self.window_size and self.n_fft % 2 == 0
            _require(good, "n_fft", rule, self.n_fft)
        _require(self.num_mel_bins >= 1, "num_mel_bins", "at least 1", self.num_mel_bins)
        bins = self.fft_size // 2 + 1
        good = self.mel_filters or self.num_mel_bins == bins
        rule = f"the spectrum's {bins} bins when mel_filters is False"
        _require(good, "num_mel_bins", rule, self.num_mel_bins)
        _require(self.dither >= 0, "dither", "at least 0", self.dither)
        rule = "from 0 to 1"
        good = 0 <= self.preemphasis_coefficient <= 1
        _require(good, "preemphasis_coefficient", rule, self.preemphasis_coefficient)
        rule = f"from 0 to below the upper edge ({self.upper_edge:g} Hz)"
        _require(0 <= self.low_freq < self.upper_edge, "low_freq", rule, self.low_freq)
        rule = f"at most Nyquist ({self.nyquist:g} Hz)"
        _require(self.upper_edge <= self.nyquist, "high_freq", rule, self.high_freq)
        _require(self.vtln_warp > 0, "vtln_warp", "above 0", self.vtln_warp)
        if self.vtln_warp != 1.0:
            self._check_vtln()
        rule = f"0 or at least float32's smallest normal number ({FLOAT32_TINY:.3g})"
        for name in ("log_floor", "log_offset"):
            value = getattr(self, name)
            _require(value == 0 or value >= FLOAT32_TINY, name, rule, value)
        _require(self.top_db >= 0, "top_db", "at least 0", self.top_db)
        _require(self.output_scale > 0, "output_scale", "above 0", self.output_scale)
        good = not (self.center and self.snip_edges)
        _require(good, "center", "False when snip_edges is True", self.center)
        good = self.window_shift <= self.window_size or not self._pads_as_lhotse
        rule = f"kaldi when the shift ({self.window_shift} samples) is above the window's "
        rule += f"{self.window_size}"
        _require(good, "left_padding", rule, self.left_padding)
        good = self.snip_edges or not self.pad_tail
        _require(good, "pad_tail", "False when snip_edges is False", self.pad_tail)
        good = self.filter_shape == "triangular" or (
            self.triangle_axis == "hertz" and self.mel_norm == "none"
        )
        rule = "triangular unless triangle_axis is hertz and mel_norm is none"
        _require(good, "filter_shape", rule, self.filter_shape)
        kaldis = (self.mel_scale, self.mel_norm, self.triangle_axis) == ("htk", "none", "mel")
        good = self.mel_dtype == "float64" or kaldis
        rule = "float64 unless mel_scale is htk, mel_norm is none and triangle_axis is mel"
        _require(good, "mel_dtype", rule, self.mel_dtype)
        # Made now, because a traced call cannot make them.
        self.as_json, self.fft_size, self.needs_whole_clip  # noqa: B018

    @classmethod
    def preset(cls, name: PresetName, **changes: object) -> Self:
        """Return the named convention, with fields changed by keyword.

        Every preset gives (..., num_frames, num_mel_bins), also those of libraries that return
        (num_mel_bins, num_frames): librosa, melspectrogram, whisper and nemo. The first three of
        these define window and shift in samples, and keep them at any `sample_frequency`.

        A field that the library derives from another one follows a change of that, unless it is
        changed too: the window's size from `n_fft` (librosa, melspectrogram, whisper), the shift
        from the window (melspectrogram), whole samples from milliseconds (rounded to the nearest by
        python_speech_features, speechbrain and vggish), the Blackman window's period (lhotse),
        `snip_edges` from `center=False` (librosa, melspectrogram). `replace` knows no library: it
        changes what it names.

        Args:
            name: `"ast"` (the default of every field);
                `"kaldi"` (torchaudio's `compliance.kaldi.fbank`: 23 bins, Povey window);
                `"seed"` (this project's first design);
                `"lhotse"` (`lhotse.Fbank`);
                `"librosa"` (`feature.melspectrogram` through `power_to_db`, at 22,050 Hz);
                `"melspectrogram"` (`torchaudio.transforms.MelSpectrogram`; no logarithm);
                `"nemo"` (NeMo's `AudioToMelSpectrogramPreprocessor`, its valid frames);
                `"python_speech_features"` (`logfbank`);
                `"speechbrain"` (`lobes.features.Fbank`);
                `"vggish"` (`mel_features.log_mel_spectrogram` with its parameters);
                `"whisper"` (OpenAI's and transformers' extractor, without its padding to 30 s).
            changes: Fields to set differently, or `window_size` and `window_shift` in samples.
        Raises:
            ValueError: `name` is not a preset, a changed field does not fit, or it would mean
                something else in the library than here.
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        values = {**PRESETS[name], **changes}
        values["sample_frequency"] = rate = _sample_frequency(values)
        values["n_fft"] = _integer_or_none("n_fft", values.get("n_fft"))
        for size, length in _SIZES.items():
            if size in changes and length in changes:
                _require(False, size, f"left out when {length} is given", changes[size])
            if size in values and length not in changes:
                values[size] = _size(size, values[size])
                values.pop(length, None)
            else:
                values[length] = time = _number(length, values.get(length, getattr(cls, length)))
                _require_finite_size(length, rate, time)
                values[size] = _truncated(rate, time)
                if name in ROUNDING:
                    values[size] = ROUNDING[name](rate * (time / 1000.0))
        return cls(**_in_milliseconds(follow(name, values, changes)))

    @classmethod
    def from_samples(
        cls, *, window_size: int, window_shift: int, sample_frequency: float, **changes: object
    ) -> Self:
        """Return a config whose frames have exactly these sizes; other fields by keyword.

        Args:
            window_size: Length of a frame, in samples.
            window_shift: Hop between frames, in samples.
            sample_frequency: Sample rate, in Hz.
            changes: Fields to set differently from the default.
        Raises:
            TypeError: A size is not an integer.
            ValueError: A size or the sample rate is not above 0, or a changed field does not fit.
        """
        values = {
            "sample_frequency": sample_frequency,
            "window_size": window_size,
            "window_shift": window_shift,
            **changes,
        }
        return cls(**_in_milliseconds(values))

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Say what to use instead when lhotse takes this config for its own."""
            words = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name == "to_dict":
                words = "ast_fast_kernels.FbankConfig is no config of lhotse's; its extractor is "
                words += "ast_fast_kernels.compat.lhotse.Fbank"
            raise AttributeError(words)

    # By a string, which caches its hash: thirty fields would cost each call microseconds.

    def __hash__(self) -> int:
        return hash(self.as_json)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FbankConfig):
            return NotImplemented
        return self is other or self.as_json == other.as_json

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the config that `as_json` described.

        Raises:
            TypeError: A field's name or type is wrong.
            ValueError: The text is not JSON, or a value is out of range.
        """
        return cls(**json.loads(text))

    @cached_property
    def as_json(self) -> str:
        """The fields that differ from their defaults, as a JSON object."""
        return json.dumps(
            {
                field.name: value
                for field in fields(self)
                if (value := getattr(self, field.name)) != field.default
            }
        )

    def replace(self, **changes: object) -> Self:
        """Return a copy with fields changed, and check it."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @cached_property
    def window_size(self) -> int:
        """Length of a frame, in samples (Kaldi truncates)."""
        return _truncated(self.sample_frequency, self.frame_length)

    @cached_property
    def window_shift(self) -> int:
        """Hop between frames, in samples (Kaldi truncates)."""
        return _truncated(self.sample_frequency, self.frame_shift)

    @cached_property
    def fft_size(self) -> int:
        """FFT length, in samples: `n_fft`, or the smallest power of two that holds the window."""
        return self.n_fft if self.n_fft is not None else 1 << (self.window_size - 1).bit_length()

    @property
    def nyquist(self) -> float:
        """Half the sample rate, in Hz; without its fraction if `whole_nyquist`."""
        half = 0.5 * self.sample_frequency
        return float(math.floor(half)) if self.whole_nyquist else half

    @property
    def upper_edge(self) -> float:
        """Upper edge of the highest filter, in Hz."""
        return self.high_freq if self.high_freq > 0 else self.nyquist + self.high_freq

    @property
    def vtln_upper_edge(self) -> float:
        """Upper inflection point of the warp, in Hz."""
        return self.vtln_high if self.vtln_high >= 0 else self.nyquist + self.vtln_high

    @property
    def first_sample(self) -> int:
        """Index of the first frame's first sample; negative if it lies in the padding."""
        if self.snip_edges:
            return 0
        if self.center:
            return (self.fft_size - self.window_size) // 2 - self.fft_size // 2
        if self.left_padding == "lhotse":
            return -((self.window_size - self.window_shift) // 2)
        return self.window_shift // 2 - self.window_size // 2

    @property
    def log_factor(self) -> float:
        """Factor on the natural logarithm; the output is the product plus `log_shift`."""
        return {"ln": 1.0, "log10": _LOG10_E, "db": 10 * _LOG10_E}[
            self.log_type
        ] * self.output_scale

    @property
    def log_shift(self) -> float:
        """Added to the natural logarithm times `log_factor`."""
        return self.output_shift * self.output_scale

    @property
    def log_per_decibel(self) -> float:
        """How much the output grows for each decibel of the waveform's level."""
        return math.log(10) / (10 if self.use_power else 20) * self.log_factor

    @property
    def top_range(self) -> float:
        """`top_db` in the output's own unit; 0 is no limit."""
        return self.top_db / (10 * _LOG10_E) * self.log_factor

    @cached_property
    def needs_whole_clip(self) -> bool:
        """Whether a frame's energies depend on the rest of its clip."""
        return self.use_log_fbank and (self.top_db > 0 or self.norm_per_feature)

    @property
    def log_silence(self) -> float:
        """Output for digital silence: the value that pads batches and spectrograms.

        With `norm_per_feature` it is the mean, 0; with `top_db`, the value in a silent clip.
        """
        if self.norm_per_feature or not self.use_log_fbank:
            return 0.0
        energy = max(self.log_offset, self.log_floor)
        return self.log_factor * math.log(energy) + self.log_shift if energy > 0 else -math.inf

    @overload
    def num_frames(self, num_samples: int) -> int: ...
    @overload
    def num_frames(self, num_samples: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]: ...
    @overload
    def num_frames(self, num_samples: Tensor) -> Tensor: ...
    def num_frames(self, num_samples: Any) -> Any:
        """Return how many frames `num_samples` samples give.

        For an integer array or tensor, the result has one count for each element.
        """
        size, shift = self.window_size, self.window_shift
        if self.center:
            frames = (1 + num_samples // shift) * (num_samples > 0)
        elif not self.snip_edges:
            frames = (num_samples + shift // 2) // shift
        elif self.pad_tail:
            more = -((size - num_samples) // shift)
            frames = (1 + more * (more > 0)) * (num_samples > 0)
        else:
            frames = 1 + (num_samples - size) // shift
        frames = frames - int(self.drop_last_frame)
        return frames * (frames > 0)

    @property
    def _pads_as_lhotse(self) -> bool:
        return self.left_padding == "lhotse" and not (self.snip_edges or self.center)

    def _check_vtln(self) -> None:
        rule = f"above low_freq ({self.low_freq:g} Hz) and below vtln_high"
        rule += f" ({self.vtln_upper_edge:g} Hz)"
        good = self.low_freq < self.vtln_low < self.vtln_upper_edge
        _require(good, "vtln_low", rule, self.vtln_low)
        rule = f"below the upper edge ({self.upper_edge:g} Hz)"
        _require(self.vtln_upper_edge < self.upper_edge, "vtln_high", rule, self.vtln_high)


_LOG10_E = math.log10(math.e)


def _require(good: bool, argument: str, rule: str, value: object) -> None:
    if not good:
        raise ValueError(f"{argument} must be {rule}, got {value}")


def _number(argument: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{argument} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # of whole numbers
        number = math.inf
    _require(math.isfinite(number), argument, "finite", reprlib.repr(value))
    return number + 0.0  # -0.0 becomes 0.0, which it equals


def _integer(argument: str, value: object) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{argument} must be an integer, got {value!r}")
    return int(value)


def _integer_or_none(argument: str, value: object) -> int | None:
    return None if value is None else _integer(argument, value)


def _boolean(argument: str, value: object) -> bool:
    kind = type(value)
    numpys = kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_")  # it is not loaded
    if not (isinstance(value, bool) or numpys):
        raise TypeError(f"{argument} must be True or False, got {value!r}")
    return bool(value)


def _one_of(choice: Any) -> Callable[[str, object], str]:
    names = get_args(choice)

    def check(argument: str, value: object) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{argument} must be a string, got {value!r}")
        _require(value in names, argument, f"one of {', '.join(names)}", value)
        return value

    return check


_CHECKS: dict[Any, Callable[[str, object], object]] = {
    "float": _number,
    "int": _integer,
    "int | None": _integer_or_none,
    "bool": _boolean,
    "WindowType": _one_of(WindowType),
    "PadMode": _one_of(PadMode),
    "DitherOver": _one_of(DitherOver),
    "PreemphasisOver": _one_of(PreemphasisOver),
    "LeftPadding": _one_of(LeftPadding),
    "MelScale": _one_of(MelScale),
    "MelNorm": _one_of(MelNorm),
    "FilterShape": _one_of(FilterShape),
    "TriangleAxis": _one_of(TriangleAxis),
    "MelDtype": _one_of(MelDtype),
    "LogType": _one_of(LogType),
}
_KINDS = [(field.name, _CHECKS[field.type]) for field in fields(FbankConfig)]
"""Each field's check, by its annotation; it returns the value as a plain Python type."""


_SIZES = {"window_size": "frame_length", "window_shift": "frame_shift"}
"""Size in samples → the field that holds it in milliseconds."""


def _in_milliseconds(values: dict[str, Any]) -> dict[str, Any]:
    """Return fields with each size in samples replaced by a time that truncates to it.

    A time that stands beside the size stays if it does.
    """
    values = dict(values)
    rate = _sample_frequency(values)
    for argument, length in _SIZES.items():
        if argument not in values:
            continue
        size = values.pop(argument)
        if length in values and _truncated(rate, _number(length, values[length])) == size:
            continue
        values[length] = milliseconds_of(_size(argument, size), rate)
    return values


def milliseconds_of(size: int, rate: float) -> float:
    """Return a time that truncates to so many samples at a rate in Hz."""
    milliseconds = size / rate * 1000.0
    while _truncated(rate, milliseconds) < size:
        milliseconds = math.nextafter(milliseconds, math.inf)
    return milliseconds


def _sample_frequency(values: Mapping[str, object]) -> float:
    rate = _number("sample_frequency", values.get("sample_frequency", 16000.0))
    _require(rate > 0, "sample_frequency", "above 0 Hz", rate)
    return rate


def _size(argument: str, value: object) -> int:
    size = _integer(argument, value)
    _require(size > 0, argument, "at least 1 sample", size)
    return size


def _require_finite_size(argument: str, rate: float, milliseconds: float) -> None:
    rule = "a finite number of samples"
    _require(math.isfinite(rate * milliseconds), argument, rule, milliseconds)


def _truncated(rate: float, milliseconds: float) -> int:
    """Return a time in whole samples, as Kaldi makes them."""
    return int(rate * milliseconds * 0.001)
