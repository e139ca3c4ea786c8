"""Which backend an operation would run for an input, such as what `backend="auto"` would choose."""

from __future__ import annotations

import inspect
from typing import Any

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch.optional import import_for

_OPERATIONS = {"add_layer_norm": "layer_norm", "linear_gelu": "gelu", "norm_gelu_conv": "stem"}
"""Public functions whose operation has another name."""


def chosen_backend(op: str, *inputs: Any, backend: str = "auto", **options: Any) -> str:
    """Return the backend that an operation would run for an input, without running it.

    Like the operation, it follows `backend`, `use_backend` and AST_FAST_BACKEND, in that order, and
    checks its arguments.

    Args:
        op: `"fbank"`, `"mix"`, `"normalise"`, `"resample"`, `"layer_norm"`, `"attention"`,
            `"linear"`, `"gelu"` or `"stem"`: the names that `use_backend` takes, or a public
            function's own name.
        inputs: Those of the operation's arguments that the choice depends on, in its order:
            `fbank`'s waveform (an array or a tensor) and config; the waveforms of `mix`; the
            features of `normalise`; `resample`'s waveform and both rates; the qkv of `attention`;
            all tensors of `add_layer_norm`, `linear`, `linear_gelu` and `norm_gelu_conv`.
        backend: As in the operation.
        options: `scale` of `attention`; `quality` and `channel_axis` of `resample`.
    Returns:
        The backend's name, never `"auto"`.
    Raises:
        ValueError: No operation or backend has such a name, or a shape does not fit.
        TypeError: An argument's type or dtype does not fit.
        RuntimeError: The backend asked for cannot run this input.
        ImportError: The operation needs torch for this input, and torch is not installed.
    """
    op = _OPERATIONS.get(op, op)
    _dispatch.check_op(op, "op")
    choose = import_for(op, f"ast_fast_kernels.{op}.api").chosen_backend
    try:
        inspect.signature(choose).bind(*inputs, backend=backend, **options)
    except TypeError as error:
        raise TypeError(f"chosen_backend of {op!r}: {error}") from None
    chosen: str = choose(*inputs, backend=backend, **options)
    return chosen
