"""The way of a call of a feature function: straight to its features, or as an operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.tracing import is_compiling
from ast_fast_kernels.kaldi.features import begin, run


def compute(waveform: Tensor, function: str, given: tuple[Any, ...]) -> Tensor:
    """Return what a function makes of a waveform and its other arguments, in order.

    A traced call becomes one operator (`ops.py`), which does the same.
    """
    if is_traced(waveform):
        from ast_fast_kernels.kaldi.ops import call  # registers the operator

        return call(waveform, function, given)
    samples, settings = begin(waveform, function, given)
    return samples if settings is None else run(samples, settings)


def is_traced(waveform: Any) -> bool:
    """Say whether a call is traced, by anything that records operators."""
    return is_compiling() or (isinstance(waveform, Tensor) and checks.is_traced(waveform))
