"""The filterbank of tensors: run directly, or as the operator if a trace or a gradient needs it."""

from __future__ import annotations

import torch
from torch import Tensor

from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels.fbank import dither, eager, triton_direct
from ast_fast_kernels.fbank.checks import Lengths, check_config
from ast_fast_kernels.fbank.config import FbankConfig


def compute(
    waveform: object,
    config: FbankConfig,
    lengths: Lengths | None,
    out: object,
    backend: str,
    keys: Tensor | None = None,
) -> Tensor:
    """Do what `fbank` does for anything but a numpy array; `keys` as in `eager.compute`."""
    if not isinstance(waveform, Tensor):
        raise _no_waveform(waveform)
    if lengths is None and keys is None:
        again = compute_again(waveform, config, backend, out)
        if again is not None:
            return again
        if out is None and not torch.compiler.is_compiling():
            run = triton_direct.find(waveform, config, backend)
            if run is not None:
                return run(waveform)
    check_config(config)
    if out is not None and not isinstance(out, Tensor):
        raise TypeError(f"out must be a tensor, as the waveform is, got {type(out).__name__}")
    if _needs_operator(waveform, config, backend):
        from ast_fast_kernels.fbank import ops  # registers the operator

        return ops.fbank(waveform, config, lengths, out, backend, keys)
    return eager.compute(waveform, config, lengths, out, backend, keys)


def compute_again(
    waveform: Tensor,
    config: FbankConfig,
    backend: str,
    out: object = None,
    row: int | None = None,
) -> Tensor | None:
    """Compute a clip or a batch if the thread's last call was like this; None if it was not.

    With `row`, only that row of a batch is computed, as if it were given alone.
    """
    if checks.is_traced(waveform) or (waveform.requires_grad and torch.is_grad_enabled()):
        return None
    return eager.compute_again(waveform, config, backend, out, row)


def chosen_backend(waveform: object, config: FbankConfig, backend: str) -> str:
    """Return the backend that `compute` runs; raise the same errors."""
    if not isinstance(waveform, Tensor):
        raise _no_waveform(waveform)
    check_config(config)
    return eager.chosen_backend(waveform, config, backend)


def _no_waveform(value: object) -> TypeError:
    return TypeError(f"waveform must be a tensor or a numpy array, got {type(value).__name__}")


def _needs_operator(waveform: Tensor, config: FbankConfig, backend: str) -> bool:
    """Say whether a call is traced, or needs a gradient from a backend that keeps no graph."""
    if checks.is_traced(waveform):
        return True
    if not (waveform.requires_grad and torch.is_grad_enabled()):
        return False
    return eager.chosen_backend(waveform, config, backend) != "reference"


def draw_keys(waveform: Tensor) -> Tensor:
    """Draw the keys that `compute` would for dither."""
    with one_thread_if_forked():
        return dither.draw_keys(waveform.shape[:-1], waveform.device)
