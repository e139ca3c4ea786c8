from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from numba import njit

from ast_fast_kernels.products import End, Start, product, tile_rows

RAND = np.random.default_rng(0)
FORMS = [("zero", "plain"), ("sum", "plain"), ("zero", "exp2"), ("zero", "times")]


def normal(*shape: int) -> np.ndarray:
    return RAND.normal(size=shape).astype(np.float32)


def compiled(lanes: int, vectors: int, start: Start, end: End) -> Any:
    write = product(lanes, vectors, start=start, end=end)

    @njit(error_model="numpy")
    def run(left, row, term, right, width, result, result_row, rows, terms, less, factor):
        write(left, row, term, right, width, result, result_row, rows, terms, less, factor)

    return run


def expected(form: tuple[str, str], left, right, result, less, factor) -> np.ndarray:
    exact = left.astype(np.float64) @ right.astype(np.float64)
    if form[0] == "sum":
        exact += result
    if form[1] != "plain":
        exact -= less
    if form[1] == "exp2":
        exact = np.exp2(exact)
    if form[1] == "times":
        exact *= factor
    return exact


def test_the_forms_tried_are_all_that_there_are() -> None:
    assert {form[0] for form in FORMS} == set(get_args(Start))
    assert {form[1] for form in FORMS} == set(get_args(End))


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("vectors", [1, 2])
@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_it_is_the_product(lanes: int, vectors: int, form: tuple[Start, End]) -> None:
    run = compiled(lanes, vectors, *form)
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


def test_no_terms_give_what_sums_begin_with() -> None:
    run = compiled(8, 2, "zero", "plain")
    out = normal(5, 16)
    nothing = normal(16)
    run(nothing.ctypes.data, 0, 0, nothing.ctypes.data, 0, out.ctypes.data, 16, 5, 0, 0, 0)
    np.testing.assert_array_equal(out, 0.0)
