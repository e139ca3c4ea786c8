"""The filterbank of an untraced tensor: checks, choice of a backend, ragged batches."""

from __future__ import annotations

import math
import reprlib

import torch
from torch import Tensor

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels.fbank import again, dither, triton_direct
from ast_fast_kernels.fbank.checks import (
    Lengths,
    check_length,
    numba_obstacle,
    settled_backend,
)
from ast_fast_kernels.fbank.config import FbankConfig

_DTYPES = (torch.float32, torch.float64, torch.int16)


def compute(
    waveform: Tensor,
    config: FbankConfig,
    lengths: Lengths | None,
    out: Tensor | None,
    backend: str,
    keys: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Do what `fbank` does for an untraced tensor with values.

    Only the reference is differentiable here. Dither comes from `keys`, shape (..., 2), drawn here
    if there are none; or it is `noise` (`fbank_numba`), for one clip.
    """
    check_waveform(waveform, config)
    if waveform.is_neg():
        with one_thread_if_forked():
            waveform = waveform.resolve_neg()
    leading = waveform.shape[:-1]
    num_frames = config.num_frames(waveform.shape[-1])
    shape = (*leading, num_frames, config.num_mel_bins)
    if out is not None:
        check_out(out, shape, waveform)
        if out.is_neg():  # a kernel writes memory; compiled code copies, which minds the bit
            raise ValueError("out must be no view that negates its memory (torch's negative bit)")

    samples = waveform
    if waveform.dim() == 1:
        samples = waveform[None]  # takes a fifth of the time of what follows
    elif waveform.dim() != 2:
        with one_thread_if_forked():
            samples = waveform.reshape(math.prod(leading), waveform.shape[-1])
    flat_out = None if out is None else out.view(samples.shape[0], *shape[-2:])
    chosen = choose_backend(_dispatch.requested_backend("fbank", backend), samples, config)
    check = _device_lengths if chosen == "triton" else check_lengths
    sample_counts = check(lengths, leading, waveform)
    if config.dither != 0.0 and keys is None and noise is None:
        with one_thread_if_forked():
            keys = dither.draw_keys(leading, waveform.device)
    if samples.shape[0] == 0 or num_frames == 0:
        return samples.new_empty(shape, dtype=result_dtype(samples)) if out is None else out
    if (
        flat_out is not None
        and chosen != "reference"
        and checks.may_share_memory(samples, flat_out)
    ):
        samples = checks.copied(samples)  # a kernel would read frames that it has overwritten
    run = _dispatch.load_backend("fbank", chosen)
    if config.dither == 0.0:
        log_mel: Tensor = run(samples, config, flat_out, sample_counts)
    else:
        flat_keys = None if keys is None else keys.reshape(-1, 2).contiguous()
        log_mel = run(samples, config, flat_out, sample_counts, flat_keys, noise)
    if out is not None and chosen != "reference":  # autograd does not see what a kernel writes
        torch.autograd.graph.increment_version(out)
    if lengths is None and chosen == "numba" and noise is None and len(shape) <= 3:
        requested = _dispatch.requested_backend("fbank", backend)
        again.note(config, requested, waveform.dtype, tuple(waveform.shape))
    if chosen == "triton" and lengths is None and out is None:
        triton_direct.note(waveform, config, _dispatch.requested_backend("fbank", backend))
    if out is not None:
        return out
    if len(shape) == 3:
        return log_mel
    return log_mel[0] if len(shape) == 2 else log_mel.view(shape)


def compute_again(
    waveform: Tensor,
    config: FbankConfig,
    backend: str,
    out: object = None,
    row: int | None = None,
) -> Tensor | None:
    """Do what `tensors.compute_again` does for an untraced tensor that needs no gradient."""
    if not _is_readable(waveform) or checks.is_transformed():
        return None
    shape, samples_at = waveform.shape, waveform.data_ptr()
    if row is not None:
        shape = shape[1:]
        samples_at += row * shape[0] * waveform.itemsize
    last = again.take(config, backend, waveform.dtype, shape)
    if last is None:
        return None
    log_mel: Tensor | None
    if out is None:
        _draw_again(last.task)
        energies = last.task.run(samples_at)
        log_mel = torch.from_numpy(energies if len(shape) == 2 else energies[0])
    else:
        log_mel = _fill_again(last, samples_at, out)
    again.of_thread.passed = last
    return log_mel


def _is_readable(tensor: Tensor) -> bool:
    """Say whether a kernel can take a tensor's memory as it lies."""
    return tensor.is_cpu and tensor.is_contiguous() and not tensor.is_neg()


def _fill_again(last: again.Passed, samples_at: int, out: object) -> Tensor | None:
    """Fill `out`, and return it; None if it has to be checked, or the samples to be copied."""
    task = last.task
    if (
        type(out) is not Tensor
        or out.dtype is not torch.float32
        or out.shape != last.result
        or (out.requires_grad and torch.is_grad_enabled())
        or not _is_readable(out)
        or task.normalises
    ):
        return None
    out_at = out.data_ptr()
    if task.overlaps(samples_at, out_at):
        return None
    _draw_again(task)
    task.fill(samples_at, out_at)
    torch.autograd.graph.increment_version(out)
    return out


def _draw_again(task: again.Task) -> None:
    """Draw the keys of a call that is computed for certain: each call draws once."""
    if task.keys is not None:
        with one_thread_if_forked():
            dither.redraw_keys(task.keys)


def chosen_backend(waveform: Tensor, config: FbankConfig, backend: str) -> str:
    """Check a waveform, and return the backend that runs."""
    check_waveform(waveform, config)
    return choose_backend(_dispatch.requested_backend("fbank", backend), waveform, config)


def empty_result(
    waveform: Tensor, config: FbankConfig, lengths: Tensor | None, backend: str
) -> Tensor:
    """Return the result of `compute` unfilled, after the checks that need no values."""
    check_waveform(waveform, config)
    leading = waveform.shape[:-1]
    if lengths is not None:
        as_counts(lengths, leading)
    _dispatch.requested_backend("fbank", backend)
    if backend != "auto":
        choose_backend(backend, waveform, config)
    shape = (*leading, config.num_frames(waveform.shape[-1]), config.num_mel_bins)
    return waveform.new_empty(shape, dtype=result_dtype(waveform))


def result_dtype(waveform: Tensor) -> torch.dtype:
    """Return the features' dtype: the waveform's, float32 for int16."""
    return torch.float32 if waveform.dtype == torch.int16 else waveform.dtype


def check_waveform(waveform: Tensor, config: FbankConfig) -> None:
    """Raise unless dtype and length fit (at least one frame, if nothing is padded)."""
    if waveform.dtype not in _DTYPES:
        raise TypeError(
            f"waveform must be float32, float64 or int16, got {checks.dtype_name(waveform.dtype)}"
        )
    check_length(waveform.shape, config)


def check_out(out: Tensor, shape: tuple[int, ...], waveform: Tensor) -> None:
    """Raise unless `out` can hold energies of this shape and no gradient is needed."""
    dtype = result_dtype(waveform)
    if out.dtype != dtype:
        raise TypeError(
            f"out must be {checks.dtype_name(dtype)}, got {checks.dtype_name(out.dtype)}"
        )
    if tuple(out.shape) != shape:
        raise ValueError(f"out must have shape {shape}, got {tuple(out.shape)}")
    if out.device != waveform.device:
        raise ValueError(f"out must be on {waveform.device}, as the waveform is, got {out.device}")
    if not out.is_contiguous():
        raise ValueError(f"out must be contiguous, got strides {out.stride()}")
    if torch.is_grad_enabled() and (waveform.requires_grad or out.requires_grad):
        raise ValueError("out must be None when gradients are needed, got a tensor")


def check_lengths(
    lengths: Lengths | None, leading: torch.Size, waveform: Tensor
) -> list[int] | None:
    """Return one count of samples for each row of the flattened batch."""
    if lengths is None:
        return None
    num_samples = waveform.shape[-1]
    counts = as_counts(lengths, leading)
    listed: list[int] = counts.reshape(-1).tolist()
    wrong = [count for count in listed if not 0 <= count <= num_samples]
    if wrong:
        raise ValueError(f"lengths must be from 0 to num_samples ({num_samples}), got {wrong[0]}")
    return listed


def _device_lengths(
    lengths: Lengths | None, leading: torch.Size, waveform: Tensor
) -> Tensor | None:
    """Return the same on the waveform's device, without waiting for it."""
    if lengths is None:
        return None
    counts = as_counts(lengths, leading)
    if counts.device.type == "cpu":
        check_lengths(counts, leading, waveform)
    return counts.reshape(-1).to(waveform.device)


def as_counts(lengths: Lengths, leading: torch.Size) -> Tensor:
    """Return lengths as a tensor; its values are not checked yet."""
    try:
        counts = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, device="cpu")
    except (TypeError, ValueError, RuntimeError):  # what torch raises for strings, None, ragged
        given = reprlib.repr(lengths)
        raise TypeError(
            f"lengths must be integers of shape {tuple(leading)}, got {given}"
        ) from None
    no_integers = counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool
    if no_integers and counts.numel():  # an empty list has no type of its own
        raise TypeError(f"lengths must be integers, got {checks.dtype_name(counts.dtype)}")
    if counts.shape != leading:
        raise ValueError(f"lengths must have shape {tuple(leading)}, got {tuple(counts.shape)}")
    return counts


def choose_backend(requested: str, samples: Tensor, config: FbankConfig) -> str:
    """Return the backend that runs; auto takes the device's kernels if they can run the input."""
    kernels = requested
    if requested == "auto":
        kernels = "triton" if samples.is_cuda else "numba"
    if kernels not in _OBSTACLES:
        return requested
    return settled_backend(requested, kernels, _OBSTACLES[kernels](samples, config))


def _numba_obstacle(samples: Tensor, config: FbankConfig) -> str | None:
    """Say why numba cannot run this input; None when it can."""
    if not samples.is_cpu:
        return f"numba needs a CPU waveform, got {samples.device}"
    if samples.dtype not in (torch.float32, torch.int16):
        return f"numba needs a float32 or int16 waveform, got {checks.dtype_name(samples.dtype)}"
    return checks.transform_obstacle("numba") or numba_obstacle(config)


def _triton_obstacle(samples: Tensor, config: FbankConfig) -> str | None:
    """Say why Triton cannot run this input; None when it can."""
    obstacle = checks.triton_obstacle("a waveform", samples)
    if obstacle is not None:
        return obstacle
    if samples.dtype not in (torch.float32, torch.int16):
        return f"triton needs a float32 or int16 waveform, got {checks.dtype_name(samples.dtype)}"
    from ast_fast_kernels.fbank.triton_gpu import MOST_PLACES, unsupported

    if samples.shape[-1] >= MOST_PLACES:
        return f"triton needs fewer than {MOST_PLACES} samples a clip, got {samples.shape[-1]}"
    return unsupported(config)


_OBSTACLES = {"numba": _numba_obstacle, "triton": _triton_obstacle}
