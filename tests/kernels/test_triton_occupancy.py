"""How many programs a GPU holds at once, and that the filterbank's one launch starts as many."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.compiler import CompiledKernel

from ast_fast_kernels._gpu import launch
from ast_fast_kernels._gpu.occupancy import Gpu, Limits, limits_of, programs_at_once
from ast_fast_kernels._gpu.occupancy import resident_programs as resident
from ast_fast_kernels.testing.processes import run_program

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("threads", "registers", "blocks"),
    [(128, 37, 12), (320, 37, 4), (128, 32, 16), (1024, 32, 2), (1024, 33, 1)],
)
def test_cuda_s_own_examples(threads: int, registers: int, blocks: int) -> None:
    """CUDA C++ Best Practices Guide, "Calculating Occupancy": 65,536 registers, 2,048 threads.

    There, 37 registers let 12 blocks of 128 threads be active, but only 4 of 320; 32 fill it.
    """
    limits = Limits(threads=2048, programs=32, shared=96 << 10)
    assert resident(limits, registers, 0, threads // 32) == blocks


@pytest.mark.parametrize(
    ("registers", "programs"), [(72, 7), (80, 6), (81, 5), (96, 5), (97, 4), (128, 4), (255, 2)]
)
def test_registers_by_hand(registers: int, programs: int) -> None:
    """A scheduler has 16,384; a warp with 80 takes 2,560 of them, with 81 as many as with 88."""
    assert resident(limits_of(9, 0), registers, 8192, 4) == programs


@pytest.mark.parametrize(
    ("capability", "shared", "num_warps", "programs"),
    [
        ((9, 0), 8192, 4, 16),  # 2,048 threads
        ((9, 0), 0, 1, 32),  # of which a multiprocessor holds no more
        ((9, 0), 232_448, 4, 1),  # all that one may have
        ((9, 0), 113 << 10, 4, 2),  # with the 1 KiB of each
        ((9, 0), (113 << 10) + 1, 4, 1),
        ((8, 0), 166_912, 4, 1),
        ((8, 0), 40 << 10, 4, 4),
        ((8, 6), 8192, 4, 11),  # 100 KiB in parts of 9
        ((8, 6), 0, 4, 12),  # 1,536 threads
        ((8, 6), 0, 1, 16),
        ((8, 9), 0, 1, 24),
        ((8, 7), 40 << 10, 4, 4),
        ((12, 0), 0, 1, 24),
    ],
)
def test_the_other_limits_by_hand(
    capability: tuple[int, int], shared: int, num_warps: int, programs: int
) -> None:
    assert resident(limits_of(*capability), 16, shared, num_warps) == programs


def test_an_unknown_gpu_has_the_limits_of_the_nearest_below() -> None:
    assert limits_of(10, 3) == limits_of(10, 0)
    assert limits_of(12, 1) == limits_of(12, 0)
    assert limits_of(8, 8) == limits_of(8, 7)


class Compiled:
    """A kernel that is not loaded, and says what loading it found."""

    name = "a_kernel"
    metadata = SimpleNamespace(shared=8192, num_warps=4)

    def __init__(self) -> None:
        self.module: Any = None

    def __getitem__(self, grid: tuple[int, int, int]) -> None:
        self.module, self.n_regs = object(), 80


def test_a_capture_is_told_to_load_code_before(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, kernel, is_capturing = Gpu(limits_of(9, 0), 132), Compiled(), [True]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: is_capturing[0])
    message = r"the code of a_kernel for this call is not on cuda:0 yet.*before the capture"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            programs_at_once(kernel, gpu, CUDA)
    is_capturing[0] = False
    assert programs_at_once(kernel, gpu, CUDA) == 6 * 132
    is_capturing[0] = True  # what is loaded needs nothing more
    assert programs_at_once(kernel, gpu, CUDA) == 6 * 132


def test_a_launch_is_bound_when_all_of_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may call it meanwhile."""
    bound: list[bool] = []

    class Kernel(CompiledKernel):
        packed_metadata, run = (), "run"

        def __init__(self) -> None:
            pass

        @property
        def function(self) -> int:
            bound.append(prepared.is_bound)
            return 1

    def get_current_stream(index: int) -> int:
        return 0

    class Driver:
        @property
        def get_current_stream(self) -> Callable[[int], int]:
            bound.append(prepared.is_bound)
            return get_current_stream

    monkeypatch.setattr(launch, "driver", SimpleNamespace(active=Driver()))
    starts = {(1,): lambda *tensors: Kernel()}

    class Starts(dict):
        arg_names = ()

    prepared = launch.Prepared(launch.Plan(Starts(starts), 1, (), {}), torch.device("cpu"))
    prepared(torch.zeros(1))
    assert bound == [False, False]
    assert prepared.is_bound


LOOPS = """
import torch
from ast_fast_kernels._gpu import occupancy
from ast_fast_kernels.gelu import triton_gpu as gelu
from ast_fast_kernels.layer_norm import triton_gpu as norm

occupancy.gpu_of = lambda device: occupancy.Gpu(occupancy.limits_of(9, 0), 132)
cuda = torch.device("cuda", 0)
for rows, width in ((8000, 192), (8000, 4096), (8000, 8192), (9, 192), (1, 16)):
    print(norm.plan_layer_norm_bwd(rows, width, width, 1e-5, False, False, cuda).grid)
for rows, hidden in ((8000, 768), (5, 768), (8000, 256 * 600)):
    plan, strips = gelu.plan_bias_gelu_bwd(rows, hidden, cuda)
    print(plan.grid, strips)
"""


def test_loops_over_rows_start_no_more_than_rows_and_multiprocessors_need() -> None:
    """132 multiprocessors with four blocks of 1,024 values each, or one of 4,096 and more."""
    shown = run_program(LOOPS).split("\n")
    norms = ["528", "132", "132", "3", "1"]
    assert [line.strip() for line in shown if line] == [*norms, "528 176", "6 2", "600 1"]


PROGRAM = """
import json, sys
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels._gpu import occupancy
from ast_fast_kernels.fbank import eager, triton_direct, triton_gpu
from ast_fast_kernels.testing import no_gpu

driver = no_gpu.install(ARCH, keeps=True)
config = FbankConfig()
gpu = occupancy.gpu_of(torch.device("cpu"))

class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))

def launched(waveform):
    driver.launches.clear()
    out = fbank(waveform, config, backend="triton")
    (one,) = driver.launches
    return one.kernel, one.grid, one.numbers, list(out.shape)

many = torch.zeros(64, 80000)
calls = [launched(many) for _ in range(3)]
with Seen():
    calls.append(launched(many))
few = [launched(part)[1][0] for part in (many[:2], many[0], many[:1, :400])]
kept = len(triton_direct.calls.known)
(form,) = {call for call in triton_gpu.fused_form(
    config, torch.float32, torch.device("cpu"), False)._programs.values()}
(compiled,) = triton_gpu._fbank_fused_kernel.device_caches[0][0].values()
cubin = no_gpu.read_usage(compiled.asm["cubin"])

def refuse(*args):
    raise AssertionError("the checks were made again")

eager.compute = refuse
calls.append(launched(many))
errors = []
for waveform, settings in (
    (many[0].view(1, 1, -1)[..., ::2], config), (many, config.replace(num_mel_bins=64)),
    (many.short(), config), (many.requires_grad_(), config),
):
    try:
        fbank(waveform, settings, backend="triton")
    except AssertionError as error:
        errors.append(str(error))
print(json.dumps({
    "calls": calls, "few": few, "kept": kept, "programs": form, "registers": compiled.n_regs,
    "cubin": cubin["REG"], "shared": compiled.metadata.shared,
    "multiprocessors": gpu.multiprocessors, "errors": len(errors),
}))
"""


@pytest.mark.aot
@pytest.mark.skipif(INTERPRETED, reason="needs kernels that are not interpreted")
@pytest.mark.parametrize(("arch", "multiprocessors"), [(80, 108), (90, 132)])
def test_the_one_launch_starts_what_the_gpu_holds(
    arch: int, multiprocessors: int, tmp_path
) -> None:
    program = PROGRAM.replace("ARCH", str(arch))
    found = json.loads(run_program(program, timeout=600.0, TRITON_CACHE_DIR=str(tmp_path)))
    assert found["registers"] == found["cubin"] > 32
    limits = limits_of(*divmod(arch, 10))
    held = resident(limits, found["registers"], found["shared"], 4) * multiprocessors
    assert found["multiprocessors"] == multiprocessors
    first, *later = found["calls"]
    assert first[1] == [held, 1, 1]
    assert held == found["programs"] < 64 * 63  # blocks of 8 frames: others go round again
    for call in later:  # bound, bound, as an operator would, without checks
        assert call == first
    assert found["few"] == [2 * 63, 63, 1]
    assert found["kept"] == 4  # layouts
    assert found["errors"] == 4  # other calls are checked
