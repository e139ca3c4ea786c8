"""What `chosen_backend` says, against what the operations run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from ast_fast_kernels import (
    FbankConfig,
    _dispatch,
    add_layer_norm,
    attention,
    chosen_backend,
    fbank,
    linear,
    linear_gelu,
    mix,
    norm_gelu_conv,
    normalise,
    resample,
    use_backend,
)


class Case(NamedTuple):
    op: str
    run: Callable[..., Any]
    inputs: tuple[Any, ...]
    decide: int  # how many of them the choice depends on


WAVEFORMS = torch.zeros(2, 800)
TERMS = (torch.zeros(1, 1, dtype=torch.int64),) * 2
WIDTH = torch.ones(4)
CASES = {
    "fbank-tensor": Case("fbank", fbank, (WAVEFORMS, FbankConfig()), 2),
    "fbank-array": Case("fbank", fbank, (WAVEFORMS.numpy(), FbankConfig()), 1),
    "fbank-float64": Case("fbank", fbank, (np.zeros(800),), 1),
    "fbank-dither": Case("fbank", fbank, (WAVEFORMS, FbankConfig(dither=1.0)), 2),
    "mix-tensor": Case("mix", mix, (WAVEFORMS, *TERMS, torch.ones(1, 1)), 1),
    "mix-array": Case("mix", mix, (WAVEFORMS.numpy(), *TERMS, torch.ones(1, 1)), 1),
    "normalise": Case("normalise", normalise, (torch.zeros(1, 5, 4), 5), 1),
    "resample-tensor": Case("resample", resample, (WAVEFORMS, 44100, 16000), 3),
    "resample-array": Case("resample", resample, (WAVEFORMS.numpy(), 16000, 44100), 3),
    "layer_norm": Case("layer_norm", add_layer_norm, (torch.ones(2, 4), None, WIDTH, WIDTH), 4),
    "attention": Case("attention", attention, (torch.zeros(1, 3, 3, 2, 16),), 1),
    "attention-narrow": Case("attention", attention, (torch.zeros(1, 3, 3, 2, 4),), 1),
    "linear": Case("linear", linear, (torch.ones(2, 4), torch.ones(3, 4), torch.ones(3)), 3),
    "gelu": Case("gelu", linear_gelu, (torch.ones(2, 4), torch.ones(3, 4), torch.ones(3)), 3),
    "stem": Case(
        "stem",
        norm_gelu_conv,
        (torch.ones(1, 2, 2, 4), WIDTH, WIDTH, torch.ones(4, 1, 3, 3), WIDTH),
        5,
    ),
}
OPTIONS: dict[str, dict[str, Any]] = {"normalise": {"log_silence": 0.0}}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture
def backends_run(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which backends operations load meanwhile."""
    seen: list[tuple[str, str]] = []
    load = _dispatch.load_backend

    def spy(op: str, backend: str) -> Callable[..., Any]:
        seen.append((op, backend))
        return load(op, backend)

    monkeypatch.setattr(_dispatch, "load_backend", spy)
    return seen


@cases
@pytest.mark.parametrize("how", ["auto", "argument", "use_backend", "variable"])
def test_it_says_what_the_operation_runs(
    case: Case, how: str, backends_run: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS.get(case.op, {})
    backend = "reference" if how == "argument" else "auto"
    if how == "variable":
        monkeypatch.setenv("AST_FAST_BACKEND", "reference")
    with use_backend("reference" if how == "use_backend" else None):
        said = chosen_backend(case.op, *case.inputs[: case.decide], backend=backend)
        assert backends_run == []
        case.run(*case.inputs, backend=backend, **options)
    assert backends_run == [(case.op, said)]
    assert said != "auto"
    if how != "auto":
        assert said == "reference"


def test_every_operation_has_a_case() -> None:
    assert {case.op for case in CASES.values()} == {op for op, _ in _dispatch.BACKENDS}


@cases
def test_it_raises_what_the_operation_would(case: Case) -> None:
    options, decisive = OPTIONS.get(case.op, {}), case.inputs[: case.decide]
    wrong = ((torch.zeros((), dtype=torch.complex64), *case.inputs[1:]), "auto")
    for inputs, backend in ((case.inputs, "cuda"), wrong, (case.inputs, "triton")):
        with pytest.raises((ValueError, TypeError, RuntimeError)) as of_operation:
            case.run(*inputs, backend=backend, **options)
        with pytest.raises(of_operation.type) as of_choice:
            chosen_backend(case.op, *inputs[: len(decisive)], backend=backend)
        assert str(of_choice.value) == str(of_operation.value)


def test_scale_decides_where_triton_needs_it_above_0() -> None:
    assert chosen_backend("attention", torch.zeros(1, 3, 3, 2, 16), scale=-1.0) == "numba"


def test_there_must_be_such_an_operation() -> None:
    with pytest.raises(ValueError, match=r"op must name an operation \(fbank, mix, .*got 'fft'"):
        chosen_backend("fft", WAVEFORMS)


@pytest.mark.parametrize("case", ["layer_norm", "gelu", "stem"])
def test_a_public_function_can_be_named(case: str) -> None:
    op, run, inputs, decide = CASES[case]
    assert chosen_backend(run.__name__, *inputs[:decide]) == chosen_backend(op, *inputs[:decide])


def test_arguments_that_do_not_fit_are_the_operation_s() -> None:
    with pytest.raises(TypeError, match="chosen_backend of 'normalise': too many positional arg"):
        chosen_backend("normalise", *CASES["normalise"].inputs)
