"""One number of any type: Python's, numpy's, or a tensor of one element."""

from __future__ import annotations

import math
import reprlib
from numbers import Real
from typing import Any

import numpy as np

from ast_fast_kernels._torch.optional import is_tensor


def as_number(argument: str, value: Any) -> float:
    """Return one number as a float.

    Raises:
        TypeError: It is none.
        ValueError: It has no float, or is a tensor that needs a gradient.
    """
    if type(value) is float:
        return value
    one = value if isinstance(value, Real) else _element(argument, value)
    if not isinstance(one, Real):
        raise TypeError(f"{argument} must be a number, got {reprlib.repr(value)}")
    try:
        return float(one)
    except OverflowError:
        raise ValueError(f"{argument} must be finite, got {reprlib.repr(value)}") from None


def _element(argument: str, value: Any) -> Any:
    """Return what a tensor or an array of one element holds; another value as it is."""
    if is_tensor(value) and value.requires_grad:
        raise ValueError(
            f"{argument} must need no gradient, because it would get none, got {value}; "
            "use .detach()"
        )
    if (is_tensor(value) or isinstance(value, np.ndarray)) and math.prod(value.shape) == 1:
        value = value.item()
    return bool(value) if isinstance(value, np.bool_) else value


def as_whole(argument: str, value: Any) -> int:
    """Return one whole number as an int; raise what `as_number` does, or ValueError."""
    number = as_number(argument, value)
    if not number.is_integer():
        raise ValueError(f"{argument} must be a whole number, got {number}")
    return int(number)
