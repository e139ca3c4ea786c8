"""The transpose of straight-line linear code: from a transform, the way back for gradients.

Run on `Variable`s instead of numbers, a transform records of which earlier numbers each number is a
sum, and with which constant factors. Read from its end, the same record gives the gradient of the
inputs from that of the outputs: the transpose of the transform's matrix. Factors are carried along
and meet in multiply-adds, so that the transpose takes about as many operations as the transform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ast_fast_kernels._cpu.dft import multiply_add

Tape = list["Variable"]
"""Every variable of a transform, in the order in which they were made."""


class Variable:
    """A number that remembers its terms, and collects its gradient: a factor times a value."""

    def __init__(self, tape: Tape, *terms: tuple[float, Variable]) -> None:
        self.tape = tape
        self.terms = terms
        self._factor = 1.0
        self._value: Any = None
        tape.append(self)

    def __add__(self, other: Variable) -> Variable:
        return Variable(self.tape, (1.0, self), (1.0, other))

    def __sub__(self, other: Variable) -> Variable:
        return Variable(self.tape, (1.0, self), (-1.0, other))

    def __mul__(self, factor: float) -> Variable:
        return Variable(self.tape, (factor, self))

    __rmul__ = __mul__

    def __neg__(self) -> Variable:
        return Variable(self.tape, (-1.0, self))

    @property
    def gradient(self) -> Any:
        """What was collected; None if nothing was."""
        if self._value is None or self._factor == 1.0:
            return self._value
        return self._value * self._factor

    def collect(self, factor: float, value: Any) -> None:
        """Add `factor * value` to the gradient."""
        if self._value is None:
            self._factor, self._value = factor, value
        elif abs(self._factor) >= abs(factor):
            self._value = _plus(self._value, factor / self._factor, value)
        else:
            self._value = _plus(value, self._factor / factor, self._value)
            self._factor = factor

    def hand_on(self) -> None:
        """Add the gradient to that of the terms."""
        if self._value is not None:
            for factor, term in self.terms:
                if factor != 0.0:
                    term.collect(self._factor * factor, self._value)


def _plus(a: Any, ratio: float, b: Any) -> Any:
    """Return a + ratio * b, in one operation."""
    if ratio == 1.0:
        return a + b
    return a - b if ratio == -1.0 else multiply_add(ratio, b, a)


def gradients(
    transform: Callable[[list[Any]], Sequence[Any]],
    needed: Sequence[bool],
    of_outputs: Callable[[int], Any],
) -> list[Any]:
    """Return the gradient of each input of a linear transform, given that of its outputs.

    Args:
        transform: Takes a list of numbers, and gives numbers; None stands for zero in both.
        needed: Which inputs vary; the transform gets None for the others.
        of_outputs: Returns the gradient of output i. It is called where the value is first used,
            which keeps few alive.
    Returns:
        One value for each input; None if it is not needed, or no output depends on it.
    """
    tape: Tape = []
    inputs = [Variable(tape) if is_needed else None for is_needed in needed]
    places: dict[int, list[int]] = {}
    for place, output in enumerate(transform(inputs)):
        if output is not None:
            places.setdefault(id(output), []).append(place)
    for variable in reversed(tape):
        for place in places.get(id(variable), ()):
            variable.collect(1.0, of_outputs(place))
        variable.hand_on()
    return [None if variable is None else variable.gradient for variable in inputs]
