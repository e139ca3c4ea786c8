"""Transposes of linear code: the same matrix read the other way, in about as many operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from ast_fast_kernels._cpu.fft_gradient import complex_dft, packed_dft, packed_middle_dft
from ast_fast_kernels._cpu.transpose import gradients

Transform = Callable[[Sequence[Any]], list[Any]]


def complex_of_both(x: Sequence[Any]) -> list[Any]:
    return complex_dft(x[: len(x) // 2], x[len(x) // 2 :])


def matrix(transform: Transform, n: int, used: int) -> np.ndarray:
    """The transform's matrix, from what it makes of each unit vector: (n, used)."""
    columns = []
    for i in range(used):
        outputs = transform([float(i == j) if j < used else None for j in range(n)])
        columns.append([0.0 if one is None else float(one) for one in outputs])
    return np.array(columns).T


def turns(n: int, offset: float) -> np.ndarray:
    k = np.arange(n)[:, None] + offset
    return np.exp(-2j * np.pi * k * np.arange(n) / n)


@pytest.mark.parametrize("n", [2, 4, 5, 8, 16, 25, 32])
def test_packed_transforms_hold_the_parts_of_each_bin_once(n: int) -> None:
    for transform, offset, mirror in ((packed_dft, 0.0, n), (packed_middle_dft, 0.5, n - 1)):
        packed, bins = matrix(transform, n, n), turns(n, offset)
        for k in range(n):
            is_real = 2 * k <= mirror
            expected = bins[k].real if is_real else bins[mirror - k].imag
            np.testing.assert_allclose(packed[k], expected, atol=1e-13)


@pytest.mark.parametrize("n", [2, 4, 5, 8, 16, 25])
def test_a_complex_transform_is_put_together_from_two_real_ones(n: int) -> None:
    numbers = matrix(complex_of_both, 2 * n, 2 * n)
    bins = turns(n, 0.0)
    np.testing.assert_allclose(
        numbers[0::2] + 1j * numbers[1::2], np.hstack((bins, 1j * bins)), atol=1e-13
    )


CASES = [
    *((packed_dft, n, n) for n in (1, 2, 4, 5, 16, 25, 64)),
    (packed_dft, 32, 25),
    (packed_dft, 8, 4),
    *((packed_middle_dft, n, n) for n in (2, 5, 16)),
    *((complex_of_both, n, n) for n in (4, 10, 32)),
]


@pytest.mark.parametrize(("transform", "n", "used"), CASES)
def test_gradients_are_the_transpose(transform: Transform, n: int, used: int) -> None:
    of_outputs = np.random.default_rng(0).standard_normal(n)
    inputs = gradients(transform, [i < used for i in range(n)], lambda place: of_outputs[place])
    assert inputs[used:] == [None] * (n - used)
    expected = matrix(transform, n, used).T @ of_outputs
    np.testing.assert_allclose(np.array(inputs[:used], float), expected, atol=1e-12)


class Counted:
    """A number that counts the operations on it; a product is added in one."""

    operations = 0

    def __init__(self, is_product: bool = False) -> None:
        self.is_product = is_product

    def __add__(self, other: Counted) -> Counted:
        Counted.operations += not (self.is_product or other.is_product)
        return Counted()

    __sub__ = __add__

    def __mul__(self, factor: float) -> Counted:
        Counted.operations += 1
        return Counted(is_product=True)

    __rmul__ = __mul__

    def __neg__(self) -> Counted:
        return self


@pytest.mark.parametrize("n", [16, 25, 32, 64])
def test_a_transpose_takes_about_as_many_operations(n: int) -> None:
    Counted.operations = 0
    packed_dft([Counted() for _ in range(n)])
    forward, Counted.operations = Counted.operations, 0
    gradients(packed_dft, [True] * n, lambda place: Counted())
    assert Counted.operations <= 1.15 * forward


def test_a_number_that_nothing_depends_on_has_no_gradient() -> None:
    def first(x: Sequence[Any]) -> list[Any]:
        return [x[0] * math.pi, None]

    assert gradients(first, [True, True], lambda place: 2.0) == [2.0 * math.pi, None]
