from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from ast_fast_kernels._cpu.products import (
    pair_product,
    pair_product_added,
    product,
    product_added,
    product_exp2,
    product_times,
    tile_rows,
)

RAND = np.random.default_rng(0)
FORMS = {"plain": product, "added": product_added, "exp2": product_exp2, "times": product_times}


def normal(*shape: int) -> np.ndarray:
    return RAND.normal(size=shape).astype(np.float32)


def compiled(form: str, lanes: int, vectors: int) -> Any:
    """Return the form as a function of addresses, strides and sizes; it uses what it needs."""
    write = FORMS[form]
    if form == "exp2":

        def run(left, row, term, right, width, result, result_row, rows, terms, less, factor):
            write(
                left, row, term, right, width, result, result_row, rows, terms, less, vectors, lanes
            )

    elif form == "times":

        def run(left, row, term, right, width, result, result_row, rows, terms, less, factor):
            write(
                left, row, term, right, width, result, result_row, rows, terms, less, factor,
                vectors, lanes,
            )  # fmt: skip

    else:

        def run(left, row, term, right, width, result, result_row, rows, terms, less, factor):
            write(left, row, term, right, width, result, result_row, rows, terms, vectors, lanes)

    return njit(error_model="numpy")(run)


def expected(form: str, left, right, result, less, factor) -> np.ndarray:
    exact = left.astype(np.float64) @ right.astype(np.float64)
    if form == "added":
        exact += result
    if form in ("exp2", "times"):
        exact -= less
    if form == "exp2":
        exact = np.exp2(exact)
    if form == "times":
        exact *= factor
    return exact


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_product(lanes: int, vectors: int, form: str) -> None:
    run = compiled(form, lanes, vectors)
    width = vectors * lanes
    for rows in (*range(1, 3 * max(tile_rows(lanes))), 40):
        for terms in (1, 2, 31):
            left, right = 0.3 * normal(rows, terms), normal(terms, width)
            result, factor = normal(rows, width + 3), normal(rows, width + 3)
            less = normal(width)
            exact = expected(form, left, right, result[:, :width], less, factor[:, :width])
            for turned in (False, True):
                stored = np.ascontiguousarray(left.T) if turned else left
                strides = (1, rows) if turned else (terms, 1)
                out = result.copy()
                run(
                    stored.ctypes.data, *strides, right.ctypes.data, width, out.ctypes.data,
                    width + 3, rows, terms, less.ctypes.data, factor.ctypes.data,
                )  # fmt: skip
                np.testing.assert_allclose(out[:, :width], exact, rtol=2e-5, atol=2e-6)
                np.testing.assert_array_equal(out[:, width:], result[:, width:])


def test_no_terms_give_zeros() -> None:
    run = compiled("plain", 8, 2)
    out = normal(5, 16)
    nothing = normal(16)
    run(nothing.ctypes.data, 0, 0, nothing.ctypes.data, 0, out.ctypes.data, 16, 5, 0, 0, 0)
    np.testing.assert_array_equal(out, 0.0)


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("added", [False, True], ids=["plain", "added"])
def test_pairs_are_multiplied_and_both_added(lanes: int, added: bool) -> None:
    write = pair_product_added if added else pair_product

    @njit(error_model="numpy")
    def run(left, row, term, right, width, result, result_row, rows, terms):
        write(left, row, term, right, width, result, result_row, rows, terms, 2, lanes, 0)

    width = 2 * lanes
    for rows, terms in ((1, 1), (7, 3), (21, 16)):
        left, right = bfloat16(rows, 2 * terms), bfloat16(2 * terms, width)
        result = normal(rows, width)
        exact = left.astype(np.float64) @ right.astype(np.float64) + (result if added else 0.0)
        of_left = np.ascontiguousarray(left.view(np.uint16)[:, 1::2])
        of_right = np.stack((right[::2], right[1::2]), -1).view(np.uint16)[..., 1::2].copy()
        run(
            of_left.ctypes.data, terms, 1, of_right.ctypes.data, width, result.ctypes.data, width,
            rows, terms,
        )  # fmt: skip
        np.testing.assert_allclose(result, exact, rtol=2e-5, atol=2e-6)


def bfloat16(*shape: int) -> np.ndarray:
    """Return random numbers whose lower bits are zeros."""
    return (normal(*shape).view(np.uint32) & 0xFFFF0000).view(np.float32)
