"""Triton's operations on the host: what they launch, without a GPU, and how they get there.

A program in a process of its own compiles the kernels and launches nothing.
"""

from __future__ import annotations

import json
import os

import pytest

from ast_fast_kernels.testing.processes import run_program

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

pytestmark = pytest.mark.skipif(INTERPRETED, reason="needs kernels that are not interpreted")

PROGRAM = """
import json
from importlib import import_module

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode

from ast_fast_kernels import add_layer_norm, attention, linear_gelu
from ast_fast_kernels.testing import no_gpu

driver = no_gpu.install(keeps=True)
half = torch.bfloat16

def leaf(*shape, dtype=torch.float32, offset=0):
    values = torch.zeros(torch.Size(shape).numel() + offset, dtype=dtype)[offset:]
    return values.view(shape).requires_grad_()

def by_triton(run, **options):
    return lambda *tensors: run(*tensors, backend="triton", **options)

class Plain(TorchDispatchMode):
    '''Only sees the operators.'''
    def __init__(self):
        super().__init__()
        self.seen = set()
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.add(function.name())
        return function(*args, **(kwargs or {}))

lengths = torch.tensor([3, 5], dtype=torch.int32)
cases = {
    "norm": (by_triton(add_layer_norm), leaf(2, 5, 48), leaf(2, 5, 48), leaf(48), leaf(48)),
    "norm, halves": (
        by_triton(add_layer_norm), leaf(2, 5, 48), leaf(2, 5, 48, dtype=half), leaf(48), leaf(48)
    ),
    "norm, no update": (
        lambda x, w, b: add_layer_norm(x, None, w, b, backend="triton")[1],
        leaf(2, 5, 48, dtype=half), leaf(48), leaf(48, dtype=half),
    ),
    "norm, odd address": (
        by_triton(add_layer_norm), leaf(5, 48, offset=1), leaf(5, 48), leaf(48), leaf(48)
    ),
    "gelu": (by_triton(linear_gelu), leaf(2, 3, 16), leaf(40, 16), leaf(40)),
    "gelu, halves": (
        by_triton(linear_gelu), leaf(3, 16, dtype=half), leaf(40, 16, dtype=half), leaf(40)
    ),
    "attention": (by_triton(attention), leaf(2, 5, 3, 2, 16, dtype=half)),
    "attention, lengths": (
        by_triton(attention, key_lengths=lengths, scale=0.3), leaf(2, 5, 3, 2, 16, dtype=half)
    ),
    "attention, view": (
        lambda wide: attention(wide[:, :, :, :2], backend="triton"),
        leaf(2, 5, 3, 4, 16, dtype=half),
    ),
}

def launched(run, tensors, graph):
    '''What one call launches; addresses as places among the tensors, where they are theirs.'''
    driver.launches.clear()
    given = tensors if graph else [tensor.detach() for tensor in tensors]
    results = run(*given)
    if graph:
        results = results if isinstance(results, tuple) else (results,)
        torch.autograd.grad(results, tensors, [torch.ones_like(r) for r in results])
    places = {tensor.data_ptr(): place for place, tensor in enumerate(given)}
    return [
        (one.name, one.kernel, one.grid, one.numbers,
         [places.get(p, "made" if p else "none") for p in one.pointers])
        for one in driver.launches
    ]

found = {}
for name, (run, *tensors) in cases.items():
    for graph in (False, True):
        calls = [launched(run, tensors, graph) for _ in range(3)]
        mode = Plain()
        with mode:
            operator = launched(run, tensors, graph)
        seen = sorted(name for name in mode.seen if "ast_fast" in name)
        key = f"{name}{', graph' if graph else ''}"
        found[key] = {"calls": calls, "operator": operator, "seen": seen}

hooked = []
run, *tensors = cases["norm"]
chain = triton.knobs.runtime.launch_enter_hook
chain.add(hook := lambda metadata: hooked.append(metadata.get()["name"]))
launched(run, tensors, True)
chain.remove(hook)
launched(run, tensors, True)

def refuse(*args):
    raise AssertionError("an operator was called")

kernels = {"layer_norm": "layer_norm", "bias_gelu": "gelu", "attention": "attention"}
for name, module in kernels.items():
    setattr(import_module(f"ast_fast_kernels.{module}.triton_gpu"), f"_{name}_fwd", refuse)
    setattr(torch.ops.ast_fast, f"{name}_bwd", refuse)
for name, (run, *tensors) in cases.items():
    launched(run, tensors, True)
print(json.dumps({"cases": found, "hooked": hooked}))
"""


# The program itself ends by calls that would fail if they reached an operator.
@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict:
    cache = str(tmp_path_factory.mktemp("triton"))
    return json.loads(run_program(PROGRAM, timeout=600.0, TRITON_CACHE_DIR=cache))


@pytest.fixture(scope="module")
def found(told: dict) -> dict[str, dict]:
    return told["cases"]


def test_light_calls_launch_what_the_operators_do(found: dict[str, dict]) -> None:
    assert len(found) == 18
    for name, case in found.items():
        first, *later = case["calls"]
        assert first, name
        for call in (*later, case["operator"]):
            assert call == first, name


def test_a_mode_that_sees_operators_gets_them(found: dict[str, dict]) -> None:
    for name, case in found.items():
        expected = 2 if name.endswith("graph") else 1
        assert len(case["seen"]) == expected, name


def test_another_alignment_is_another_kernel(found: dict[str, dict]) -> None:
    name, digest, *_ = found["norm, odd address"]["calls"][2][0]
    assert name == "_layer_norm_fwd_kernel"
    assert digest != found["norm"]["calls"][2][0][1]


def test_a_launch_hook_sees_later_calls_until_it_is_removed(told: dict) -> None:
    assert told["hooked"] == ["_layer_norm_fwd_kernel", "_layer_norm_bwd_kernel"]
