import pytest
import torch

from ast_fast.machine.device import (
    deterministic_algorithms,
    multiplies_bfloat16,
    nearest_amp,
    resolve_amp,
    resolve_device,
)
from ast_fast_kernels import _dispatch
from ast_fast_kernels._cpu import simd
from ast_fast_kernels.errors import InputError

CPU = torch.device("cpu")


def test_torch_is_held_to_deterministic_algorithms_on_a_gpu_and_let_go_after():
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(torch.device("cuda")):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(CPU):
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_caller_s_choice_of_warnings_stays():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic_algorithms(torch.device("cuda")):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_precision_that_the_device_lacks_becomes_auto_s(monkeypatch):
    monkeypatch.setattr("ast_fast.machine.device.multiplies_bfloat16_here", lambda: True)
    assert nearest_amp("float16", CPU) == torch.bfloat16
    assert nearest_amp("bfloat16", CPU) == torch.bfloat16
    assert nearest_amp("off", CPU) is None
    monkeypatch.setattr("ast_fast.machine.device.multiplies_bfloat16_here", lambda: False)
    assert nearest_amp("float16", CPU) is None
    assert nearest_amp("bfloat16", CPU) is None  # emulated: slower than float32, and less exact


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_f": True}, None),
        ({"amx_bf16": False, "sve": True}, None),  # of another architecture
    ],
)
def test_auto_takes_bfloat16_on_a_cpu_that_multiplies_it(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert multiplies_bfloat16(CPU) == (expected is not None)
    assert resolve_amp("auto", CPU) == expected


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("+avx512f,+avx512bf16,-amx-bf16", torch.bfloat16),
        ("+avx512f,-avx512bf16,+amx-bf16", torch.bfloat16),
        ("+avx512f,-avx512bf16,-amx-bf16", None),
        ("+avx2,-avx512f", None),
    ],
)
def test_llvm_says_what_an_older_torch_cannot(features, expected, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for asked in (simd.has_bfloat16_dots, simd.has_bfloat16_matrices):
        monkeypatch.setattr(simd, asked.__name__, asked.__wrapped__)
    monkeypatch.setattr(simd, "_host_features", lambda: frozenset(features.split(",")))
    assert nearest_amp("bfloat16", CPU) == expected
    assert resolve_amp("auto", CPU) == expected
    monkeypatch.setattr(_dispatch, "numba_obstacle", lambda: "numba is not installed")
    assert not multiplies_bfloat16(CPU)


def test_mixed_precision_is_what_was_asked_for():
    assert resolve_amp("off", CPU) is None
    assert resolve_amp("bfloat16", CPU) is torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_refused_where_there_is_none():
    assert resolve_device("auto") == CPU
    with pytest.raises(InputError, match="device must be one that this machine has, got cuda"):
        resolve_device("cuda")
