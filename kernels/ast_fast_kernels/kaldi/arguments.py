"""What callers give: numbers of any type, checked and kept as one convention.

A function's arguments come as a tuple, in the order of `NAMES`, so that equal calls are read once.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from ast_fast_kernels.fbank.config import FbankConfig, milliseconds_of
from ast_fast_kernels.fbank.scalars import as_number, as_whole

_T = TypeVar("_T")

NAMES = {
    "fbank": (
        "blackman_coeff", "channel", "dither", "energy_floor", "frame_length", "frame_shift",
        "high_freq", "htk_compat", "low_freq", "min_duration", "num_mel_bins",
        "preemphasis_coefficient", "raw_energy", "remove_dc_offset", "round_to_power_of_two",
        "sample_frequency", "snip_edges", "subtract_mean", "use_energy", "use_log_fbank",
        "use_power", "vtln_high", "vtln_low", "vtln_warp", "window_type",
    ),
    "mfcc": (
        "blackman_coeff", "cepstral_lifter", "channel", "dither", "energy_floor", "frame_length",
        "frame_shift", "high_freq", "htk_compat", "low_freq", "num_ceps", "min_duration",
        "num_mel_bins", "preemphasis_coefficient", "raw_energy", "remove_dc_offset",
        "round_to_power_of_two", "sample_frequency", "snip_edges", "subtract_mean", "use_energy",
        "vtln_high", "vtln_low", "vtln_warp", "window_type",
    ),
    "spectrogram": (
        "blackman_coeff", "channel", "dither", "energy_floor", "frame_length", "frame_shift",
        "min_duration", "preemphasis_coefficient", "raw_energy", "remove_dc_offset",
        "round_to_power_of_two", "sample_frequency", "snip_edges", "subtract_mean", "window_type",
    ),
}  # fmt: skip
"""Function → its arguments after the waveform, in order."""

INT16_SCALE = 32768.0
"""Undoes, exactly, that a backend divides int16."""

PLAIN = frozenset((float, int, bool, str, type(None)))
"""Types of arguments whose values never change."""


class Clip(NamedTuple):
    """What is read before the clip's length is known to suffice; the rest is checked after it."""

    framing: FbankConfig
    channel: int
    least: float  # a clip of fewer samples gives nothing


class Settings(NamedTuple):
    """A whole call but its waveform."""

    config: FbankConfig
    channel: int
    least: float  # a clip of fewer samples gives nothing
    upside_down: bool  # dither is below 0
    energy: bool  # the features have an energy
    raw_energy: bool
    energy_floor: float
    energy_last: bool  # or the first coefficient, where there is no energy
    subtract_mean: bool
    num_ceps: int  # 0: no cepstra
    cepstral_lifter: float

    @property
    def num_columns(self) -> int:
        """Numbers in a frame's features."""
        if self.num_ceps:
            return self.num_ceps
        return self.config.num_mel_bins + int(self.energy and self.has_more_with_energy)

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the filterbank of one channel is asked for."""
        return not (self.upside_down or self.energy or self.num_ceps or self.subtract_mean)

    @property
    def has_more_with_energy(self) -> bool:
        """Whether the energy is a column more; otherwise it takes another one's place."""
        return self.config.mel_filters and not self.num_ceps

    @property
    def energy_column(self) -> int:
        """Column of the energy."""
        return self.num_columns - 1 if self.energy_last else 0

    @property
    def as_json(self) -> str:
        """The settings as text, which `from_json` reads."""
        return json.dumps([self.config.as_json, *self[1:]])

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Return the settings that `as_json` described."""
        config, *rest = json.loads(text)
        return cls(FbankConfig.from_json(config), *rest)


def _once(read: Callable[..., _T]) -> Callable[..., _T]:
    """Keep what is read, unless an argument is of a type whose values may change.

    Types are told apart: a rate that is a whole number makes other sizes than a float.
    """

    @lru_cache(maxsize=64)
    def kept(kinds: tuple[type, ...], function: str, given: tuple[Any, ...], *more: Any) -> _T:
        return read(function, given, *more)

    @wraps(read)
    def call(function: str, given: tuple[Any, ...], *more: Any) -> _T:
        kinds = tuple(map(type, given))
        if PLAIN.issuperset(kinds):
            return kept(kinds, function, given, *more)
        return read(function, given, *more)

    return call


@_once
def read_clip(function: str, given: tuple[Any, ...]) -> Clip:
    """Return what is checked before `min_duration`.

    Raises:
        TypeError: A number is none.
        ValueError: A number is out of range.
    """
    values = dict(zip(NAMES[function], given, strict=True))
    if function == "mfcc":
        _check_num_ceps(values["num_ceps"], values["num_mel_bins"])
    rate = values["sample_frequency"]
    framing = FbankConfig(
        sample_frequency=as_number("sample_frequency", rate),
        frame_length=_milliseconds("frame_length", values["frame_length"], rate),
        frame_shift=_milliseconds("frame_shift", values["frame_shift"], rate),
        preemphasis_coefficient=as_number(
            "preemphasis_coefficient", values["preemphasis_coefficient"]
        ),
        low_freq=0.0,
        mel_dtype="float32",
    )
    if not as_flag("round_to_power_of_two", values["round_to_power_of_two"]):
        if framing.window_size % 2:
            raise ValueError(
                "frame_length must be an even number of samples when round_to_power_of_two is "
                f"False, got {as_number('frame_length', values['frame_length']):g} ms "
                f"({framing.window_size} samples)"
            )
        framing = framing.replace(n_fft=framing.window_size)
    if isinstance(values["channel"], (bool, np.bool_)):
        raise TypeError(f"channel must be a number, got {values['channel']}")
    channel = max(as_whole("channel", values["channel"]), 0)
    as_number("min_duration", values["min_duration"])
    return Clip(framing, channel, _product(values["min_duration"], rate))


@_once
def read(function: str, given: tuple[Any, ...], is_int16: bool) -> Settings:
    """Return all settings; raise what `read_clip` does."""
    clip = read_clip(function, given)
    values = dict(zip(NAMES[function], given, strict=True))
    changes: dict[str, Any] = {
        "waveform_scale": INT16_SCALE if is_int16 else 1.0,
        "mel_filters": False,
        "num_mel_bins": clip.framing.fft_size // 2 + 1,
    }
    if function != "spectrogram":
        changes |= {"mel_filters": True, "num_mel_bins": _num_mel_bins(values["num_mel_bins"])}
    floor = as_number("energy_floor", values["energy_floor"])
    if not 0 <= floor < math.inf:
        raise ValueError(f"energy_floor must be at least 0 and finite, got {floor}")
    dither = as_number("dither", values["dither"])
    changes |= {name: as_number(name, values[name]) for name in _NUMBERS if name in values}
    changes |= {name: as_flag(name, values[name]) for name in _FLAGS if name in values}
    changes |= {"dither": abs(dither), "window_type": values["window_type"]}
    num_ceps, lifter = 0, 0.0
    if function == "mfcc":
        num_ceps = as_whole("num_ceps", values["num_ceps"])
        lifter = as_number("cepstral_lifter", values["cepstral_lifter"])
        if not math.isfinite(lifter):
            raise ValueError(f"cepstral_lifter must be finite, got {lifter}")
    return Settings(
        config=clip.framing.replace(**changes),
        channel=clip.channel,
        least=clip.least,
        upside_down=dither < 0,
        energy=as_flag("use_energy", values.get("use_energy", True)),
        raw_energy=as_flag("raw_energy", values["raw_energy"]),
        energy_floor=floor,
        energy_last=as_flag("htk_compat", values.get("htk_compat", False)),
        subtract_mean=as_flag("subtract_mean", values["subtract_mean"]),
        num_ceps=num_ceps,
        cepstral_lifter=lifter,
    )


_NUMBERS = ("blackman_coeff", "high_freq", "low_freq", "vtln_high", "vtln_low", "vtln_warp")
_FLAGS = ("remove_dc_offset", "snip_edges", "use_log_fbank", "use_power")


def take_channel(waveform: Tensor, channel: int) -> Tensor:
    """Return one channel, shape (num_samples,), of a waveform (channels, num_samples).

    Raises:
        TypeError: The waveform is not a tensor.
        ValueError: It has another shape, or no such channel.
    """
    if not isinstance(waveform, Tensor):
        raise TypeError(f"waveform must be a tensor, got {type(waveform).__name__}")
    if waveform.dim() != 2:
        raise ValueError(f"waveform must be (channels, samples), got {tuple(waveform.shape)}")
    if channel >= waveform.shape[0]:
        raise ValueError(
            f"channel must be below the waveform's {waveform.shape[0]} channels, got {channel}"
        )
    return waveform[channel]


def as_flag(argument: str, value: Any) -> bool:
    """Say whether a value counts as true."""
    try:
        return bool(value)
    except (RuntimeError, ValueError):  # of tensors and arrays of several elements
        raise ValueError(f"{argument} must be true or false, got {reprlib.repr(value)}") from None


def _num_mel_bins(value: Any) -> int:
    number = as_whole("num_mel_bins", value)
    if number < 4:
        raise ValueError(f"num_mel_bins must be at least 4, got {number}")
    return number


def _check_num_ceps(num_ceps: Any, num_mel_bins: Any) -> None:
    number, most = as_whole("num_ceps", num_ceps), as_whole("num_mel_bins", num_mel_bins)
    if not 1 <= number <= most:
        raise ValueError(f"num_ceps must be from 1 to num_mel_bins ({most}), got {number}")


def _milliseconds(argument: str, value: Any, rate: Any) -> float:
    """Return a time that truncates to as many samples as torchaudio makes of it."""
    time, hertz = as_number(argument, value), as_number("sample_frequency", rate)
    if type(value) is float and type(rate) is float:
        return time
    samples = _product(value, rate, 0.001)
    if not (math.isfinite(samples) and math.isfinite(time) and hertz > 0):
        return time
    size = int(samples)
    if size == int(hertz * time * 0.001) or size < 1:
        return time
    return milliseconds_of(size, hertz)


def _product(*factors: Any) -> float:
    """Multiply numbers in the precision of the least precise, as torch and numpy do."""
    product: Any = 1.0
    for factor in factors:
        own = type(factor) is not float and (
            isinstance(factor, np.floating)
            or (isinstance(factor, Tensor) and factor.is_floating_point())
        )
        product = product * (factor if own else float(factor))
    return float(product)
