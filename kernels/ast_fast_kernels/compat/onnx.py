"""The filterbank in ONNX: a table for `torch.onnx.export(dynamo=True)`, by onnxscript.

Mean, pre-emphasis, window and DFT of a frame are linear, so they are one convolution, whose stride
is the shift. Squares, filters and logarithm follow: six to ten nodes where nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._torch.optional import needs_torch

try:
    import torch
except ModuleNotFoundError as error:
    raise needs_torch("ast_fast_kernels.compat.onnx") from error

from ast_fast_kernels.fbank import ops, tables  # noqa: F401 - ops registers the operators
from ast_fast_kernels.fbank.config import FbankConfig

Value = Any
"""A value of the graph: what onnxscript's operators take and return."""

_DTYPES = {"FLOAT": 1.0, "INT16": 2.0**-15}
"""Dtype of a waveform → the factor that it is read with."""


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what `torch.onnx.export` takes as its `custom_translation_table`.

    It has the filterbank: float32 or int16 waveforms of any number that give at least one frame
    each, and every `FbankConfig` without dither, with or without `lengths`. The other kernels need
    no entry: under `use_backend("reference")` they are torch's operators, which torch exports.

    Raises:
        ImportError: onnxscript, which torch needs for an export, is not installed.
    """
    import onnxscript  # noqa: F401 - else the export would say so, in the middle

    operators = torch.ops.ast_fast
    return {operators.fbank.default: _fbank, operators.fbank_keys.default: _refuse_dither}


def _refuse_dither(waveform: Value) -> Value:
    raise ValueError(
        "config must have dither 0.0 to be exported, because ONNX has no such noise; "
        "config.replace(dither=0.0) has"
    )


def _fbank(
    waveform: Value,
    config: str,
    lengths: Value | None = None,
    backend: str = "auto",
    keys: Value | None = None,
) -> Value:
    """Build what the operator `ast_fast::fbank` computes."""
    return _Graph(FbankConfig.from_json(config)).fbank(waveform, lengths)


class _Graph:
    """Adds the filterbank of one config to the graph that is being exported."""

    def __init__(self, config: FbankConfig) -> None:
        from onnxscript import ir, opset18

        self.config = config
        self.op: Any = opset18
        self.ir: Any = ir

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> Value:
        """Add numbers to the graph, rounded once."""
        return self.op.Constant(value=self.ir.tensor(np.asarray(value).astype(dtype)))

    def whole(self, *values: int) -> Value:
        """Add whole numbers to the graph, as a vector."""
        return self.constant(values, np.int64)

    def fbank(self, waveform: Value, lengths: Value | None) -> Value:
        """Return the energies, (..., num_frames, num_mel_bins), of samples (..., num_samples)."""
        op, config = self.op, self.config
        if waveform.dtype.name not in _DTYPES:
            given = waveform.dtype.name.lower()
            raise ValueError(f"waveform must be float32 or int16 to be exported, got {given}")
        if config.dither != 0.0:
            _refuse_dither(waveform)
        scale = config.waveform_scale * _DTYPES[waveform.dtype.name]
        leading = len(waveform.shape) - 1
        samples = op.Cast(waveform, to=1) if waveform.dtype.name == "INT16" else waveform
        match leading:
            case 0:
                samples = op.Unsqueeze(samples, self.whole(0, 1))
            case 1:
                samples = op.Unsqueeze(samples, self.whole(1))
            case _:
                last = op.Shape(samples, start=leading)
                samples = op.Reshape(samples, op.Concat(self.whole(-1, 1), last, axis=0))
        if lengths is not None:  # (batch, 1, 1)
            lengths = op.Reshape(op.Cast(lengths, to=7), self.whole(-1, 1, 1))
        energies = self.energies(samples, lengths, scale)
        match leading:
            case 0:
                return op.Squeeze(energies, self.whole(0))
            case 1:
                return energies
            case _:
                batch = op.Shape(waveform, end=leading)
                rest = op.Shape(energies, start=1)
                return op.Reshape(energies, op.Concat(batch, rest, axis=0))

    def energies(self, samples: Value, counts: Value | None, scale: float) -> Value:
        """Return the energies, (batch, num_frames, num_mel_bins).

        Args:
            samples: Shape (batch, 1, num_samples).
            counts: How many of them count, shape (batch, 1, 1); None if all do.
            scale: Factor on them.
        """
        op, config = self.op, self.config
        num_samples = op.Shape(samples, start=2)
        coefficient = config.preemphasis_coefficient
        if config.preemphasis_over == "waveform" and coefficient != 0.0:
            taps = self.constant([[[-coefficient, 1.0]]])
            samples = op.Conv(samples, taps, pads=[1, 0])
        banks = tables.mel_banks(config)
        heard = np.flatnonzero(banks.any(axis=0))  # bins that a filter takes
        heard = heard if heard.size else np.zeros(1, np.intp)
        basis = self.constant(_basis(config, heard) * scale)
        samples = self.padded(samples, num_samples, counts)
        if config.remove_dc_offset:
            samples = self.centred(samples)
        spectrum = op.Conv(samples, basis, strides=[config.window_shift])  # (batch, parts, frames)
        if config.drop_last_frame:
            spectrum = op.Slice(spectrum, self.whole(0), self.whole(-1), self.whole(2))
        frames = op.Shape(spectrum, start=2)
        parts = op.Reshape(spectrum, op.Concat(self.whole(0, 2, heard.size), frames, axis=0))
        join = op.ReduceSumSquare if config.use_power else op.ReduceL2
        power = op.Transpose(join(parts, self.whole(1), keepdims=0), perm=[0, 2, 1])
        log_mel = self.log(op.MatMul(power, self.constant(banks[:, heard].T)))
        inside = None
        if counts is not None:
            counts = self.num_frames(counts, config.drop_last_frame)
            index = self.range(self.whole(0), op.Shape(log_mel, start=1, end=2))
            inside = op.Less(op.Unsqueeze(index, self.whole(1)), counts)  # (batch, num_frames, 1)
            log_mel = op.Where(inside, log_mel, self.constant(config.log_silence))
        return self.over_clip(log_mel, inside) if config.needs_whole_clip else log_mel

    def num_frames(self, num_samples: Value, drops_last: bool) -> Value:
        """Return how many frames so many samples give, as `FbankConfig.num_frames` does."""
        op, config = self.op, self.config
        size, shift = config.window_size, config.window_shift
        if config.center:
            more, least = shift, shift
        elif not config.snip_edges:
            more, least = shift // 2, 0
        elif config.pad_tail:
            more, least = 2 * shift - 1 - size, shift
        else:
            more, least = shift - size, 0
        covered = op.Max(op.Add(num_samples, self.whole(more)), self.whole(least))
        frames = op.Div(covered, self.whole(shift))
        if least:  # no sample has no frame
            frames = op.Mul(frames, op.Min(num_samples, self.whole(1)))
        if drops_last:
            frames = op.Max(op.Sub(frames, self.whole(1)), self.whole(0))
        return frames

    def padded(self, samples: Value, num_samples: Value, counts: Value | None) -> Value:
        """Return the samples that frames are cut from, one after the other.

        Args:
            samples: Shape (batch, 1, num_samples).
            num_samples: Their number, a vector.
            counts: As in `energies`: each clip is padded at its own end.
        """
        op, config = self.op, self.config
        if config.snip_edges and not config.pad_tail:
            if counts is None:
                return samples
            inside = op.Less(self.range(self.whole(0), num_samples), counts)
            return self.where(inside, samples)
        first, shift = config.first_sample, config.window_shift
        frames = self.num_frames(num_samples, False)
        last = op.Add(
            op.Mul(frames, self.whole(shift)), self.whole(first - shift + config.window_size)
        )
        if counts is not None:
            return self.picked(samples, num_samples, counts, self.range(self.whole(first), last))
        last = op.Max(last, num_samples)
        if config.pad_tail or config.pad_mode == "constant":
            right = op.Sub(last, num_samples)
            ends = op.Concat(self.whole(0, 0, max(-first, 0), 0, 0), right, axis=0)
            padded = op.Pad(samples, ends)
        else:
            right = self.mirrored(self.range(num_samples, last), num_samples)
            parts = [samples, op.Gather(samples, right, axis=2)]
            if first < 0:
                left = self.mirrored(self.whole(*range(first, 0)), num_samples)
                parts.insert(0, op.Gather(samples, left, axis=2))
            padded = op.Concat(*parts, axis=2)
        if first > 0:
            end = self.whole(np.iinfo(np.int64).max)
            padded = op.Slice(padded, self.whole(first), end, self.whole(2))
        return padded

    def centred(self, samples: Value) -> Value:
        """Subtract each clip's mean, as far as it is a number.

        Frames lose their own means later. In float32, the convolution cannot take away a mean that
        is much larger than the rest.
        """
        op = self.op
        mean = op.ReduceMean(samples, self.whole(2))
        is_number = op.Less(op.Abs(mean), self.constant(np.finfo(np.float32).max))
        return op.Sub(samples, self.where(is_number, mean))

    def picked(self, samples: Value, num_samples: Value, counts: Value, index: Value) -> Value:
        """Return samples by index, (batch, 1, len(index)), of clips that end at their counts."""
        op = self.op
        at_most = op.Sub(num_samples, self.whole(1))
        if self.config.pad_tail or self.config.pad_mode == "constant":
            inside = op.And(op.GreaterOrEqual(index, self.whole(0)), op.Less(index, counts))
            there = op.Min(op.Max(index, self.whole(0)), at_most)
            return op.Where(inside, op.Gather(samples, there, axis=2), self.constant(0.0))
        there = op.Min(self.mirrored(index, counts), at_most)
        return op.GatherElements(samples, there, axis=2)

    def mirrored(self, index: Value, num_samples: Value) -> Value:
        """Return where samples beyond the ends have their mirror images."""
        op = self.op
        repeats = 1 if self.config.pad_mode == "symmetric" else 0  # of the edge samples
        period = op.Mul(op.Sub(num_samples, self.whole(1 - repeats)), self.whole(2))
        period = op.Max(period, self.whole(1))
        index = op.Mod(index, period)
        mirror = op.Sub(op.Sub(period, self.whole(repeats)), index)
        return op.Where(op.Less(index, num_samples), index, mirror)

    def range(self, start: Value, end: Value) -> Value:
        """Return the whole numbers from one to below another, both vectors of one number."""
        op = self.op
        return op.Range(op.Squeeze(start), op.Squeeze(end), self.constant(1, np.int64))

    def log(self, energies: Value) -> Value:
        """Return what `reference.log_energies` does."""
        op, config = self.op, self.config
        if not config.use_log_fbank:
            return energies
        if config.log_offset:
            # As Sum, because torch's optimiser takes an Add of 1e-10 for one of nothing.
            energies = op.Sum(energies, self.constant(config.log_offset))
        if config.floor_zeros_only:
            is_zero = op.Equal(energies, self.constant(0.0))
            energies = op.Where(is_zero, self.constant(config.log_floor), energies)
        elif config.log_floor:
            energies = op.Max(energies, self.constant(config.log_floor))
        log_mel = op.Log(energies)
        if config.log_factor != 1.0:
            log_mel = op.Mul(log_mel, self.constant(config.log_factor))
        if config.log_shift:
            log_mel = op.Add(log_mel, self.constant(config.log_shift))
        return log_mel

    def over_clip(self, log_mel: Value, inside: Value | None) -> Value:
        """Return what `whole_clip.over_whole_clip` does.

        Args:
            log_mel: Shape (batch, num_frames, num_mel_bins).
            inside: Which frames count, shape (batch, num_frames, 1); None if all do.
        """
        op, config = self.op, self.config
        if config.top_db:
            loudest = op.ReduceMax(log_mel, self.whole(1, 2))
            log_mel = op.Max(log_mel, op.Sub(loudest, self.constant(config.top_range)))
        if not config.norm_per_feature:
            return log_mel
        frames = op.Shape(log_mel, start=1, end=2)
        if inside is not None:
            frames = op.ReduceSum(op.Cast(inside, to=7), self.whole(1))
        # In float64: an empty filter's column is one value, which must be its own mean.
        one = self.constant(1.0, np.float64)
        count = op.Max(op.Cast(frames, to=11), one)
        total = op.ReduceSum(op.Cast(self.where(inside, log_mel), to=11), self.whole(1))
        mean = op.Cast(op.Div(total, count), to=1)
        centred = self.where(inside, op.Sub(log_mel, mean))
        degrees = op.Cast(op.Max(op.Sub(count, one), one), to=1)
        variance = op.Div(op.ReduceSumSquare(centred, self.whole(1)), degrees)
        deviation = op.Sum(op.Sqrt(variance), self.constant(tables.NORM_EPSILON))
        return op.Div(centred, deviation)

    def where(self, inside: Value | None, values: Value) -> Value:
        """Return the values, with zeros outside."""
        return values if inside is None else self.op.Where(inside, values, self.constant(0.0))


def _basis(config: FbankConfig, bins: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Return a frame's way to the given bins: real parts, then imaginary, (2 * bins, 1, size)."""
    size = config.window_size
    frame = np.eye(size)
    if config.remove_dc_offset:
        frame -= 1.0 / size
    if config.preemphasis_over == "frame":
        previous = np.concatenate((frame[:1], frame[:-1]))
        frame = frame - config.preemphasis_coefficient * previous
    frame *= tables.window(config)[:, None]
    # Whole turns are taken out first, so that no angle is large.
    turns = np.outer(bins, np.arange(size)) % config.fft_size
    angle = 2 * np.pi / config.fft_size * turns
    return np.concatenate((np.cos(angle) @ frame, -np.sin(angle) @ frame))[:, None]
