"""Mixing of clips as callers see it: every check, the choice of a backend."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.forks import one_thread_if_forked

Waveforms = Tensor | npt.NDArray[np.int16] | npt.NDArray[np.float32]


def mix(
    waveforms: Waveforms, sources: Tensor, starts: Tensor, factors: Tensor, *, backend: str = "auto"
) -> Tensor:
    """Sum rotated and scaled clips: what waveform augmentation does to a batch, in one pass.

    Row b of the result is Σ_j factors[b, j] · r(b, j), where r(b, j) is clip sources[b, j] rotated
    so that it begins with its sample starts[b, j]. Terms with a factor of 0 are skipped. Clips are
    read in place, also from a memory-mapped file; int16 is read as sample / 32768. Not
    differentiable.

    Args:
        waveforms: Clips, shape (num_clips, num_samples), int16 or float32.
        sources: Clip of each term, integers in [0, num_clips), shape (batch, num_terms).
        starts: First sample of each term, integers in [0, num_samples), the same shape.
        factors: Factor of each term, floating, the same shape.
        backend: `"auto"`, `"reference"` (torch's operators) or `"numba"` (CPU).
    Returns:
        Sums, shape (batch, num_samples), float32, on the waveforms' device.
    Raises:
        TypeError: An argument's type is none of the above.
        ValueError: A shape or an index does not fit, or `backend` is none of the above.
        RuntimeError: The backend asked for cannot run this input.
    """
    clips = _checked(waveforms)
    chosen = chosen_backend(clips, backend=backend)
    _check_terms(clips, sources, starts, factors)
    run = _dispatch.load_backend("mix", chosen)
    with torch.no_grad():
        mixed: Tensor = run(clips.detach(), sources, starts, factors)
    return mixed


def chosen_backend(waveforms: Waveforms, *, backend: str = "auto") -> str:
    """Return the backend that `mix` runs for these clips; raise the same errors."""
    return choose_backend(_dispatch.requested_backend("mix", backend), _checked(waveforms))


def choose_backend(requested: str, waveforms: Tensor) -> str:
    """Return the backend that runs; auto takes numba for tensors on the CPU."""
    return _dispatch.choose_kernel(
        "mix",
        requested,
        waveforms.device.type,
        {"numba": lambda: _obstacle(waveforms)},
        "reference",
    )


def _obstacle(waveforms: Tensor) -> str | None:
    """Say why numba cannot run this input; None when it can."""
    if waveforms.device.type != "cpu":
        return f"numba needs waveforms on the CPU, got {waveforms.device}"
    return checks.trace_obstacle("numba", waveforms)


def _checked(waveforms: Waveforms) -> Tensor:
    if not isinstance(waveforms, Tensor | np.ndarray):
        raise TypeError(
            f"waveforms must be a tensor or a numpy array, got {type(waveforms).__name__}"
        )
    if waveforms.dtype not in (torch.int16, torch.float32, np.int16, np.float32):
        kind = checks.dtype_name(waveforms.dtype)
        raise TypeError(f"waveforms must be int16 or float32, got {kind}")
    if waveforms.ndim != 2 or 0 in waveforms.shape:
        raise ValueError(
            f"waveforms must be (num_clips, num_samples), got {tuple(waveforms.shape)}"
        )
    return waveforms if isinstance(waveforms, Tensor) else checks.tensor_over(waveforms)


def _check_terms(waveforms: Tensor, sources: Tensor, starts: Tensor, factors: Tensor) -> None:
    checks.check_floating("factors", factors)
    if factors.dim() != 2 or factors.shape[1] == 0:
        raise ValueError(f"factors must be (batch, num_terms), got {tuple(factors.shape)}")
    sizes = (("sources", sources, waveforms.shape[0]), ("starts", starts, waveforms.shape[1]))
    for name, indices, size in sizes:
        if not isinstance(indices, Tensor) or indices.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} must be a tensor of int32 or int64")
        if indices.shape != factors.shape:
            raise ValueError(
                f"{name} must have the shape of factors, {tuple(factors.shape)}, "
                f"got {tuple(indices.shape)}"
            )
        # Indices on a GPU are not waited for: there torch's operators check them.
        if "cpu" in (indices.device.type, waveforms.device.type) and indices.numel():
            with one_thread_if_forked():
                lowest, highest = (int(end) for end in indices.aminmax())
            for value in (lowest, highest):
                if not 0 <= value < size:
                    raise ValueError(f"{name} must be from 0 to {size - 1}, got {value}")
