"""The options of kaldi-native-fbank: names, defaults, dictionaries and text are the library's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from operator import index
from typing import Any, Self

import numpy as np

from ast_fast_kernels.fbank.config import FLOAT32_EPS


class _Options:
    """Checks every field when it is set; numbers are rounded to float32, as in the library."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        kind = _KINDS.get((type(self).__name__, name))
        super().__setattr__(name, value if kind is None else kind(name, value))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return options with the fields that are given; others have their defaults.

        Raises:
            ValueError: A key is not the name of an option.
        """
        options = cls()
        names = [each.name for each in fields(options)]  # type: ignore[arg-type]
        for name, value in values.items():
            if name not in names:
                raise ValueError(f"keys must be among {', '.join(names)}, got {name!r}")
            kind = _NESTED.get(name)
            given = kind.from_dict(value) if kind and isinstance(value, Mapping) else value
            setattr(options, name, given)
        return options

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, those of nested options as dictionaries too."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        return {
            name: value.as_dict() if isinstance(value, _Options) else value
            for name, value in values.items()
        }


@dataclass(slots=True, eq=False, repr=False)
class FrameExtractionOptions(_Options):
    """How a waveform is cut into frames; `dither` is in the waveform's own scale.

    `window_type` is one of hanning, hann (periodic), hamming, povey, rectangular and blackman.
    """

    samp_freq: float = 16000.0
    frame_shift_ms: float = 10.0
    frame_length_ms: float = 25.0
    dither: float = 0.00003
    preemph_coeff: float = 0.97
    remove_dc_offset: bool = True
    window_type: str = "povey"
    round_to_power_of_two: bool = True
    blackman_coeff: float = 0.42
    snip_edges: bool = True

    def __str__(self) -> str:
        return _lines(self.as_dict())


@dataclass(slots=True, eq=False, repr=False)
class MelBanksOptions(_Options):
    """The mel filters: Kaldi's, or librosa's if `is_librosa`, which alone minds the last three."""

    num_bins: int = 25
    low_freq: float = 20.0
    high_freq: float = 0.0
    vtln_low: float = 100.0
    vtln_high: float = -500.0
    debug_mel: bool = False
    htk_mode: bool = False
    is_librosa: bool = False
    norm: str = "slaney"
    use_slaney_mel_scale: bool = True
    floor_to_int_bin: bool = False

    def __str__(self) -> str:
        return _lines(self.as_dict())


def _mel_options() -> MelBanksOptions:
    return MelBanksOptions(num_bins=23)


@dataclass(slots=True, eq=False, repr=False)
class FbankOptions(_Options):
    """Options of `OnlineFbank`."""

    frame_opts: FrameExtractionOptions = field(default_factory=FrameExtractionOptions)
    mel_opts: MelBanksOptions = field(default_factory=_mel_options)
    use_energy: bool = False
    energy_floor: float = 0.0
    raw_energy: bool = True
    htk_compat: bool = False
    use_log_fbank: bool = True
    use_log_floor: bool = True
    eps: float = FLOAT32_EPS
    use_power: bool = True

    def __str__(self) -> str:
        values = self.as_dict()
        nested = f"frame_opts: \n{self.frame_opts}\n\nmel_opts: \n{self.mel_opts}\n"
        return nested + _lines({name: values[name] for name in values if name not in _NESTED})


@dataclass(slots=True, eq=False, repr=False)
class MfccOptions(_Options):
    """Options of `OnlineMfcc`."""

    frame_opts: FrameExtractionOptions = field(default_factory=FrameExtractionOptions)
    mel_opts: MelBanksOptions = field(default_factory=_mel_options)
    num_ceps: int = 13
    use_energy: bool = True
    energy_floor: float = 0.0
    raw_energy: bool = True
    cepstral_lifter: float = 22.0
    htk_compat: bool = False

    def __str__(self) -> str:
        return _call(self)


@dataclass(slots=True, eq=False, repr=False)
class WhisperFeatureOptions(_Options):
    """Options of `OnlineWhisperFbank`, which ignores `frame_opts`, as the library's does."""

    frame_opts: FrameExtractionOptions = field(default_factory=FrameExtractionOptions)
    dim: int = 80

    def __str__(self) -> str:
        return _call(self)


_NESTED: dict[str, type[_Options]] = {
    "frame_opts": FrameExtractionOptions,
    "mel_opts": MelBanksOptions,
}


def _float32(name: str, value: Any) -> float:
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _whole(name: str, value: Any) -> int:
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, (str, bytes)) or not (value is None or hasattr(value, "__bool__")):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r}")
    return value


def _copied(kind: type[_Options], name: str, value: Any) -> Any:
    """Return a copy: the library keeps options by value too."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {value!r}")
    return copy.copy(value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "float": _float32,
    "int": _whole,
    "bool": _flag,
    "str": _text,
    **{kind.__name__: partial(_copied, kind) for kind in _NESTED.values()},
}
_KINDS = {
    (options.__name__, each.name): _CHECKS[str(each.type)]
    for options in (
        FrameExtractionOptions,
        MelBanksOptions,
        FbankOptions,
        MfccOptions,
        WhisperFeatureOptions,
    )
    for each in fields(options)
}
"""Class and field → its check, by its annotation."""


def _lines(values: Mapping[str, Any]) -> str:
    return "".join(f"{name}: {_shown(value)}\n" for name, value in values.items())


def _call(options: Any) -> str:
    """Show MFCC's and Whisper's options as the library does: the nested ones keep their lines."""
    shown = []
    for each in fields(options):
        value = getattr(options, each.name)
        text = str(value) if isinstance(value, (bool, _Options)) else _shown(value)
        shown.append(f"{each.name}={text}")
    return f"{type(options).__name__}({', '.join(shown)})"


def _shown(value: Any) -> str:
    """Show a value as C++ streams do."""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
