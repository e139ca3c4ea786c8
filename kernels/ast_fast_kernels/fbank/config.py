"""What a log-mel filterbank is, as data: one frozen dataclass that every backend reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

FLOAT32_EPS = 1.1920928955078125e-07
"""Kaldi's log floor: `torch.finfo(torch.float32).eps`."""

FLOAT32_TINY = 1.1754943508222875e-38
"""Smallest normal float32: nothing below it but 0 survives rounding to a kernel's dtype."""

WindowType = Literal["hanning", "hamming", "povey", "rectangular", "blackman"]
MelDtype = Literal["float64", "float32"]
PresetName = Literal["ast", "kaldi", "seed"]


@dataclass(frozen=True)
class FbankConfig:
    """Conventions of a log-mel filterbank; the defaults are the Audio Spectrogram Transformer's.

    Times are in milliseconds as in Kaldi; `window_size` and `window_shift` are the same in samples.
    Source: torchaudio/compliance/kaldi.py; YuanGongND/ast, src/dataloader.py.
    """

    sample_frequency: float = 16000.0
    """Sample rate of the waveform, in Hz."""
    frame_length: float = 25.0
    """Length of a frame (the window), in milliseconds."""
    frame_shift: float = 10.0
    """Hop from one frame to the next, in milliseconds."""
    n_fft: int | None = None
    """FFT length in samples; None is the next power of two of the window."""
    window_type: WindowType = "hanning"
    """Shape of the window."""
    window_periodic: bool = False
    """Whether the window is periodic (scipy's fftbins=True) instead of symmetric."""
    blackman_coeff: float = 0.42
    """Constant coefficient of the generalised Blackman window."""
    waveform_scale: float = 1.0
    """Factor on the waveform before anything else; 32768 for int16-scaled conventions."""
    dither: float = 0.0
    """Standard deviation of the Gaussian noise added to each frame."""
    remove_dc_offset: bool = True
    """Whether each frame's mean is subtracted."""
    preemphasis_coefficient: float = 0.97
    """Coefficient of the per-frame pre-emphasis; 0 is none."""
    snip_edges: bool = True
    """Whether only whole frames are taken; False mirrors the waveform at both ends."""
    use_power: bool = True
    """Whether the spectrum is a power spectrum; False takes magnitudes."""
    num_mel_bins: int = 128
    """Number of triangular mel filters."""
    low_freq: float = 20.0
    """Lower edge of the lowest filter, in Hz."""
    high_freq: float = 0.0
    """Upper edge of the highest filter, in Hz; 0 or below counts down from Nyquist."""
    mel_dtype: MelDtype = "float64"
    """What the filters are computed in; float32 repeats torchaudio's arithmetic step by step, so
    that a bin on a filter's edge weighs what it does there."""
    use_log_fbank: bool = True
    """Whether the natural logarithm is taken."""
    log_floor: float = FLOAT32_EPS
    """Smallest energy that the logarithm sees; 0 is no floor."""
    log_offset: float = 0.0
    """Added to every energy before the logarithm."""
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
        _require(self.window_size >= 2, "frame_length", "at least 2 samples", self.frame_length)
        _require(self.window_shift >= 1, "frame_shift", "at least 1 sample", self.frame_shift)
        if self.n_fft is not None:
            rule = f"even and at least the window's {self.window_size} samples"
            good = self.n_fft >= self.window_size and self.n_fft % 2 == 0
            _require(good, "n_fft", rule, self.n_fft)
        _require(self.num_mel_bins >= 1, "num_mel_bins", "at least 1", self.num_mel_bins)
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

    @classmethod
    def preset(cls, name: PresetName, **changes: object) -> Self:
        """Return the named convention, with fields changed by keyword.

        Args:
            name: `"ast"` (the default of every field), `"kaldi"` (torchaudio's
                `compliance.kaldi.fbank`: 23 bins, Povey window) or `"seed"` (this project's first
                design: periodic Hann, magnitudes, ln(x + 1e-10), no pre-emphasis, no DC removal).
            changes: Fields to set differently.
        Raises:
            ValueError: `name` is no preset.
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        return cls(**{**PRESETS[name], **changes})  # type: ignore[arg-type]

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
            TypeError: A size is no integer.
            ValueError: A size or the sample rate is not above 0, or a changed field does not fit.
        """
        sample_frequency = _number("sample_frequency", sample_frequency)
        _require(sample_frequency > 0, "sample_frequency", "above 0 Hz", sample_frequency)
        return cls(
            sample_frequency=sample_frequency,
            frame_length=_milliseconds("window_size", window_size, sample_frequency),
            frame_shift=_milliseconds("window_shift", window_shift, sample_frequency),
            **changes,  # type: ignore[arg-type]
        )

    def replace(self, **changes: object) -> Self:
        """Return a copy with fields changed, checked again."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def window_size(self) -> int:
        """Length of a frame, in samples (Kaldi truncates)."""
        return int(self.sample_frequency * self.frame_length * 0.001)

    @property
    def window_shift(self) -> int:
        """Hop between frames, in samples (Kaldi truncates)."""
        return int(self.sample_frequency * self.frame_shift * 0.001)

    @property
    def fft_size(self) -> int:
        """FFT length, in samples: `n_fft`, or the next power of two of the window."""
        return self.n_fft if self.n_fft is not None else 1 << (self.window_size - 1).bit_length()

    @property
    def nyquist(self) -> float:
        """Half the sample rate, in Hz."""
        return 0.5 * self.sample_frequency

    @property
    def upper_edge(self) -> float:
        """Upper edge of the highest filter, in Hz."""
        return self.high_freq if self.high_freq > 0 else self.nyquist + self.high_freq

    @property
    def vtln_upper_edge(self) -> float:
        """Upper inflection point of the warp, in Hz."""
        return self.vtln_high if self.vtln_high >= 0 else self.nyquist + self.vtln_high

    @property
    def log_silence(self) -> float:
        """What digital silence becomes: the value that pads batches and spectrograms."""
        energy = max(self.log_offset, self.log_floor)
        if not self.use_log_fbank:
            return 0.0
        return math.log(energy) if energy > 0 else -math.inf

    @overload
    def num_frames(self, num_samples: int) -> int: ...
    @overload
    def num_frames(self, num_samples: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]: ...
    @overload
    def num_frames(self, num_samples: Tensor) -> Tensor: ...
    def num_frames(self, num_samples: Any) -> Any:
        """Return how many frames `num_samples` samples give; 0 when there is not one.

        With `snip_edges` only whole frames count; without, one for each shift, rounded. Integer
        arrays and tensors of lengths give theirs.
        """
        if self.snip_edges:
            frames = 1 + (num_samples - self.window_size) // self.window_shift
        else:
            frames = (num_samples + self.window_shift // 2) // self.window_shift
        return frames * (frames > 0)

    def _check_vtln(self) -> None:
        rule = f"above low_freq ({self.low_freq:g} Hz) and below vtln_high"
        rule += f" ({self.vtln_upper_edge:g} Hz)"
        good = self.low_freq < self.vtln_low < self.vtln_upper_edge
        _require(good, "vtln_low", rule, self.vtln_low)
        rule = f"below the upper edge ({self.upper_edge:g} Hz)"
        _require(self.vtln_upper_edge < self.upper_edge, "vtln_high", rule, self.vtln_high)


PRESETS: dict[str, dict[str, object]] = {
    "ast": {},
    "kaldi": {"window_type": "povey", "num_mel_bins": 23},
    "seed": {
        "window_periodic": True,
        "remove_dc_offset": False,
        "preemphasis_coefficient": 0.0,
        "use_power": False,
        "low_freq": 0.0,
        "log_floor": 0.0,
        "log_offset": 1e-10,
    },
}


def _require(good: bool, argument: str, rule: str, value: object) -> None:
    if not good:
        raise ValueError(f"{argument} must be {rule}, got {value}")


def _number(argument: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{argument} must be a number, got {value!r}")
    _require(math.isfinite(value), argument, "finite", value)
    return float(value)


def _integer(argument: str, value: object) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{argument} must be an integer, got {value!r}")
    return int(value)


def _integer_or_none(argument: str, value: object) -> int | None:
    return None if value is None else _integer(argument, value)


def _boolean(argument: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, got {value!r}")
    return value


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
    "MelDtype": _one_of(MelDtype),
}
_KINDS = [(field.name, _CHECKS[field.type]) for field in fields(FbankConfig)]
"""Each field's check, by its annotation; it returns the value as a plain Python one."""


def _milliseconds(argument: str, size: int, sample_frequency: float) -> float:
    """Return the time that truncates to `size` samples."""
    size = _integer(argument, size)
    _require(size > 0, argument, "at least 1 sample", size)
    milliseconds = size / sample_frequency * 1000.0
    while int(sample_frequency * milliseconds * 0.001) < size:
        milliseconds = math.nextafter(milliseconds, math.inf)
    return milliseconds
