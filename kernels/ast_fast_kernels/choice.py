"""Which backend an operation would run: what `backend="auto"` means for an input, asked first."""

from __future__ import annotations

from typing import Any

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch.optional import import_for


def chosen_backend(op: str, *inputs: Any, backend: str = "auto", **options: Any) -> str:
    """Return the backend that an operation would run for an input; runs nothing.

    As the operation does, it follows `backend`, `use_backend` and AST_FAST_BACKEND, in that order,
    and it checks what it is given.

    Args:
        op: `"fbank"`, `"mix"`, `"normalise"`, `"layer_norm"`, `"attention"`, `"linear"`, `"gelu"`
            or `"stem"`: the names that `use_backend` takes.
        inputs: The operation's own arguments, in its order, as far as the choice depends on them:
            `fbank`'s waveform (an array or a tensor) and config; the waveforms of `mix`; the
            features of `normalise`; the qkv of `attention`; all of `add_layer_norm`, `linear`,
            `linear_gelu` and `norm_gelu_conv`.
        backend: As in the operation.
        options: `scale` of `attention`.
    Returns:
        A name that the operation's `backend` takes, and not `"auto"`.
    Raises:
        ValueError: There is no such operation or backend, or a shape does not fit.
        TypeError: An argument's type or dtype does not fit.
        RuntimeError: The backend asked for cannot run this input.
        ImportError: The operation needs torch for this input, and torch is not installed.
    """
    _dispatch.check_op(op, "op")
    api = import_for(op, f"ast_fast_kernels.{op}.api")
    chosen: str = api.chosen_backend(*inputs, backend=backend, **options)
    return chosen
