"""The filterbank that callers see: every check, the choice of a backend, ragged batches."""

from __future__ import annotations

import functools
import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks
from ast_fast_kernels.fbank.config import FbankConfig

Lengths = int | Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor

_DTYPES = (torch.float32, torch.float64, torch.int16)
_NUMPY_DTYPES = frozenset(map(np.dtype, (np.float32, np.float64, np.int16)))
_AST = FbankConfig()

_P = ParamSpec("_P")
_T = TypeVar("_T")


def outside_compilation(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Break torch.compile's graph around a function: it runs as it would without.

    `torch.compiler.disable` as a decorator would load the whole compiler on import.
    """

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.compiler.is_dynamo_compiling():
            disable: Any = torch.compiler.disable
            uncompiled: _T = disable(function)(*args, **kwargs)
            return uncompiled
        return function(*args, **kwargs)

    return run


@overload
def fbank(
    waveform: Tensor,
    config: FbankConfig = ...,
    *,
    lengths: Lengths | None = ...,
    out: Tensor | None = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def fbank(
    waveform: npt.NDArray[Any],
    config: FbankConfig = ...,
    *,
    lengths: Lengths | None = ...,
    out: npt.NDArray[Any] | None = ...,
    backend: str = ...,
) -> npt.NDArray[Any]: ...
def fbank(
    waveform: Tensor | npt.NDArray[Any],
    config: FbankConfig = _AST,
    *,
    lengths: Lengths | None = None,
    out: Tensor | npt.NDArray[Any] | None = None,
    backend: str = "auto",
) -> Tensor | npt.NDArray[Any]:
    """Compute log-mel filterbank energies of a batch of waveforms.

    Batched over every leading dimension, where `kaldi.fbank` takes a 2-D input as (channels,
    samples) of one clip. The last dimension is mel, also for the conventions of libraries that
    give (num_mel_bins, num_frames). A NaN or infinite sample makes its frames NaN, and no other
    (all of its clip where `top_db` or `norm_per_feature` looks at a whole clip). In compiled and
    exported code it is one operator, `torch.ops.ast_fast.fbank`, of the same bits (`ops.py`).

    Args:
        waveform: Samples, shape (..., num_samples): numpy or torch, float32 or float64 (taken as
            they come) or int16 (taken as sample / 32768).
        config: The conventions; the default is the Audio Spectrogram Transformer's.
        lengths: Samples that count in each waveform, shape (...); frames beyond them are
            `config.log_silence` (raised as silence in their clip is, with `top_db`).
            `config.num_frames(lengths)` says how many frames each has. On a GPU, where looking
            would wait for it, Triton takes values out of range for the nearest within.
        out: Contiguous array that takes the result and is returned.
        backend: `"auto"`, `"reference"` (plain torch), `"numba"` (CPU) or `"triton"` (CUDA); the
            last two compute in float32, and their gradient is the reference's.
    Returns:
        Energies, shape (..., num_frames, num_mel_bins), of the waveform's kind, device and dtype
        (float32 for int16).
    Raises:
        TypeError: An argument's type or dtype is none of those above.
        ValueError: A shape, a length, `out` or `backend` does not fit.
        RuntimeError: The backend asked for cannot run this input.
    """
    if isinstance(waveform, np.ndarray):
        return _fbank_numpy(waveform, config, lengths, out, backend)
    if not isinstance(waveform, Tensor):
        raise TypeError(f"waveform must be a tensor or a numpy array, got {_type(waveform)}")
    if not isinstance(config, FbankConfig):
        raise TypeError(f"config must be an FbankConfig, got {_type(config)}")
    if out is not None and not isinstance(out, Tensor):
        raise TypeError(f"out must be a tensor, as the waveform is, got {_type(out)}")
    if checks.is_traced(waveform):
        return _through_operator(waveform, config, lengths, out, backend)
    return compute(waveform, config, lengths, out, backend)


def compute(
    waveform: Tensor,
    config: FbankConfig,
    lengths: Lengths | None,
    out: Tensor | None,
    backend: str,
) -> Tensor:
    """Do what `fbank` does for a tensor that has values, and that nothing traces."""
    check_waveform(waveform, config)
    if waveform.is_neg():
        waveform = waveform.resolve_neg()
    leading = waveform.shape[:-1]
    num_frames = config.num_frames(waveform.shape[-1])
    shape = (*leading, num_frames, config.num_mel_bins)
    if out is not None:
        _check_out(out, shape, waveform)

    samples = waveform
    if waveform.dim() != 2:
        samples = waveform.reshape(math.prod(leading), waveform.shape[-1])
    flat_out = None if out is None else out.view(samples.shape[0], *shape[-2:])
    chosen = choose_backend(_dispatch.requested_backend("fbank", backend), samples, config)
    check = _device_lengths if chosen == "triton" else check_lengths
    sample_counts = check(lengths, leading, waveform)
    if samples.shape[0] == 0 or num_frames == 0:
        return samples.new_empty(shape, dtype=result_dtype(samples)) if out is None else out
    if chosen != "reference" and samples.requires_grad and torch.is_grad_enabled():
        return _through_operator(waveform, config, lengths, None, chosen)
    run = _dispatch.load_backend("fbank", chosen)
    log_mel: Tensor = run(samples, config, flat_out, sample_counts)
    if out is not None:
        return out
    return log_mel if len(shape) == 3 else log_mel.view(shape)


def empty_result(
    waveform: Tensor, config: FbankConfig, lengths: Tensor | None, backend: str
) -> Tensor:
    """Return what `compute` would, unfilled, after the checks that need no values."""
    check_waveform(waveform, config)
    leading = waveform.shape[:-1]
    if lengths is not None:
        _as_counts(lengths, leading)
    _dispatch.requested_backend("fbank", backend)
    if backend != "auto":
        choose_backend(backend, waveform, config)
    shape = (*leading, config.num_frames(waveform.shape[-1]), config.num_mel_bins)
    return waveform.new_empty(shape, dtype=result_dtype(waveform))


def _through_operator(
    waveform: Tensor,
    config: FbankConfig,
    lengths: Lengths | None,
    out: Tensor | None,
    backend: str,
) -> Tensor:
    from ast_fast_kernels.fbank import ops  # which stands on this module

    counts = None if lengths is None else _as_counts(lengths, waveform.shape[:-1])
    log_mel = ops.fbank(waveform, config, counts, backend)
    if out is None:
        return log_mel
    _check_out(out, tuple(log_mel.shape), waveform)
    return out.copy_(log_mel)


class Fbank(nn.Module):
    """`fbank` as a module: no parameters, no state; runs where its input is.

    Args:
        config: The conventions; the default is the Audio Spectrogram Transformer's.
        backend: As in `fbank`.
    """

    def __init__(self, config: FbankConfig = _AST, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend = backend

    def forward(self, waveform: Tensor, lengths: Lengths | None = None) -> Tensor:
        """Return energies, shape (..., num_frames, num_mel_bins), of (..., num_samples)."""
        return fbank(waveform, self.config, lengths=lengths, backend=self.backend)

    def extra_repr(self) -> str:
        """Show what differs from the default config, and the backend."""
        changed = [
            f"{field.name}={value!r}"
            for field in fields(self.config)
            if (value := getattr(self.config, field.name)) != field.default
        ]
        return ", ".join([*changed, f"backend={self.backend!r}"])


@outside_compilation
def _fbank_numpy(
    waveform: npt.NDArray[Any],
    config: FbankConfig,
    lengths: Lengths | None,
    out: object,
    backend: str,
) -> npt.NDArray[Any]:
    if waveform.dtype not in _NUMPY_DTYPES:
        raise TypeError(f"waveform must be float32, float64 or int16, got {waveform.dtype}")
    if isinstance(waveform, np.ma.MaskedArray):
        raise TypeError("waveform must be an array without a mask, got MaskedArray")
    if out is not None and not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array, as the waveform is, got {_type(out)}")
    if out is not None and not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out must be C-contiguous and writable")
    if out is not None and out.dtype not in (np.float32, np.float64):
        dtype = np.float64 if waveform.dtype == np.float64 else np.float32
        raise TypeError(f"out must be {np.dtype(dtype)}, got {out.dtype}")
    out_tensor = None if out is None else torch.from_numpy(out)
    result = fbank(
        checks.tensor_over(waveform), config, lengths=lengths, out=out_tensor, backend=backend
    )
    return result.numpy() if out is None else out


def result_dtype(waveform: Tensor) -> torch.dtype:
    """Return the features' dtype: the waveform's, float32 for int16."""
    return torch.float32 if waveform.dtype == torch.int16 else waveform.dtype


def check_waveform(waveform: Tensor, config: FbankConfig) -> None:
    """Raise unless dtype and length fit (one frame at least, where nothing is padded)."""
    if waveform.dtype not in _DTYPES:
        raise TypeError(
            f"waveform must be float32, float64 or int16, got {checks.dtype_name(waveform.dtype)}"
        )
    least = config.window_size if config.snip_edges and not config.pad_tail else 0
    if waveform.dim() == 0 or waveform.shape[-1] < least:
        raise ValueError(
            f"waveform must be (..., num_samples) with num_samples >= {least} "
            f"(frame_length {config.frame_length:g} ms at {config.sample_frequency:g} Hz), "
            f"got {tuple(waveform.shape)}"
        )


def _check_out(out: Tensor, shape: tuple[int, ...], waveform: Tensor) -> None:
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
        raise ValueError("out must be None where gradients are wanted, got a tensor")


def check_lengths(
    lengths: Lengths | None, leading: torch.Size, waveform: Tensor
) -> list[int] | None:
    """Return one count of samples for each row of the flattened batch."""
    if lengths is None:
        return None
    num_samples = waveform.shape[-1]
    counts = _as_counts(lengths, leading)
    listed: list[int] = counts.reshape(-1).tolist()
    wrong = [count for count in listed if not 0 <= count <= num_samples]
    if wrong:
        raise ValueError(f"lengths must be from 0 to num_samples ({num_samples}), got {wrong[0]}")
    return listed


def _device_lengths(
    lengths: Lengths | None, leading: torch.Size, waveform: Tensor
) -> Tensor | None:
    """Return the same on the waveform's device, which need not be waited for."""
    if lengths is None:
        return None
    counts = _as_counts(lengths, leading)
    if counts.device.type == "cpu":
        check_lengths(counts, leading, waveform)
    return counts.reshape(-1).to(waveform.device)


def _as_counts(lengths: Lengths, leading: torch.Size) -> Tensor:
    """Return lengths as a tensor, whose values are yet to be checked."""
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
    """Return the backend that runs; auto takes the device's own kernels wherever they can."""
    own = "triton" if samples.is_cuda else "numba"
    named = own if requested == "auto" else requested
    obstacle = _OBSTACLES[named](samples, config) if named in _OBSTACLES else None
    if requested == "auto":
        chosen = own if obstacle is None else "reference"
        _dispatch.log_choice("fbank", chosen, obstacle)
        return chosen
    if obstacle is not None:
        raise RuntimeError(f'{obstacle}; use backend="reference"')
    return requested


def _numba_obstacle(samples: Tensor, config: FbankConfig) -> str | None:
    """Say why numba cannot run this input; None when it can."""
    if samples.device.type != "cpu":
        return f"numba needs a CPU waveform, got {samples.device}"
    if samples.dtype not in (torch.float32, torch.int16):
        return f"numba needs a float32 or int16 waveform, got {checks.dtype_name(samples.dtype)}"
    if torch._C._are_functorch_transforms_active():
        return "numba runs under no transform of torch.func"
    # Loads Numba, so not before there is something for it to do.
    from ast_fast_kernels.fbank.numba_cpu import unsupported

    return unsupported(config)


def _triton_obstacle(samples: Tensor, config: FbankConfig) -> str | None:
    """Say why Triton cannot run this input; None when it can."""
    obstacle = checks.triton_obstacle("a waveform", samples)
    if obstacle is not None:
        return obstacle
    if samples.dtype not in (torch.float32, torch.int16):
        return f"triton needs a float32 or int16 waveform, got {checks.dtype_name(samples.dtype)}"
    from ast_fast_kernels.fbank.triton_gpu import MOST_PLACES, unsupported

    if samples.shape[-1] >= MOST_PLACES:
        return f"triton needs fewer than 2 ** 31 samples a clip, got {samples.shape[-1]}"
    return unsupported(config)


_OBSTACLES = {"numba": _numba_obstacle, "triton": _triton_obstacle}


def _type(value: object) -> str:
    return type(value).__name__
