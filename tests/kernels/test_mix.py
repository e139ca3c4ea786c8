import numpy as np
import pytest
import torch

from ast_fast_kernels import mix, use_backend
from ast_fast_kernels.testing.processes import run_program

NUM_CLIPS, NUM_SAMPLES, BATCH, NUM_TERMS = 6, 1001, 33, 3


def terms(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sources, starts and factors, some of them 0; both ends of a clip among the starts."""
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, NUM_TERMS)
    sources = torch.randint(NUM_CLIPS, shape, generator=generator)
    starts = torch.randint(NUM_SAMPLES, shape, generator=generator)
    starts[:2, 0] = torch.tensor([0, NUM_SAMPLES - 1])
    factors = torch.randn(shape, generator=generator)
    factors[::2, 1] = 0
    factors[::4, 0] = 0
    factors[5] = 0
    return sources, starts, factors


def clips(dtype: torch.dtype) -> torch.Tensor:
    noise = torch.randn(NUM_CLIPS, NUM_SAMPLES, generator=torch.Generator().manual_seed(1))
    return (noise * 5000).to(dtype)


def by_definition(waveforms: torch.Tensor, sources, starts, factors) -> torch.Tensor:
    out = torch.zeros(len(factors), waveforms.shape[1], dtype=torch.float64)
    scale = 1 / 32768 if waveforms.dtype == torch.int16 else 1.0
    for b, row in enumerate(factors):
        for j, factor in enumerate(row):
            rotated = waveforms[sources[b, j]].roll(-int(starts[b, j]))
            out[b] += scale * factor.double() * rotated.double()
    return out


@pytest.mark.parametrize("backend", ["auto", "reference", "numba"])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_it_is_its_definition(backend, dtype):
    waveforms = clips(dtype)
    out = mix(waveforms, *terms(), backend=backend)
    assert out.dtype == torch.float32
    expected = by_definition(waveforms, *terms())
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-6 * expected.abs().max())
    assert not out[5].any()


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_a_term_of_factor_0_is_not_looked_at(backend):
    waveforms = clips(torch.float32)
    waveforms[1] = torch.nan
    sources, starts = torch.tensor([[0, 1]]), torch.zeros(1, 2, dtype=torch.int64)
    out = mix(waveforms, sources, starts, torch.tensor([[1.0, 0.0]]), backend=backend)
    assert torch.equal(out[0], waveforms[0])
    assert mix(waveforms, sources, starts, torch.ones(1, 2), backend=backend).isnan().all()


def test_a_mapped_file_is_read_where_it_lies(tmp_path):
    np.save(tmp_path / "clips.npy", clips(torch.int16).numpy())
    mapped = np.load(tmp_path / "clips.npy", mmap_mode="r")
    assert torch.equal(mix(mapped, *terms()), mix(clips(torch.int16), *terms()))


def test_threads_change_no_bit():
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(mix(clips(torch.int16), *terms()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_threads_and_a_forked_child_compute_the_same():
    run_program("""
import os, threading, numpy as np, torch
from ast_fast_kernels import mix
torch.set_num_threads(2)
clips = np.random.default_rng(0).integers(-30000, 30000, (9, 4000)).astype(np.int16)
sources = torch.arange(32).view(16, 2) % 9
terms = sources, sources * 100, sources.float()
torch.ones(1000, 1000).exp()  # torch starts its own
expected = mix(clips, *terms, backend="numba").numpy()
def is_right():
    return (mix(clips, *terms, backend="numba").numpy() == expected).all()
right = []
threads = [threading.Thread(target=lambda: right.append(is_right())) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert right == [True] * 4
child = os.fork()
if child == 0:
    os._exit(0 if is_right() else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")


def test_a_compiled_graph_has_torch_s_operators():
    waveforms, rest = clips(torch.float32), terms()
    compiled = torch.compile(mix, backend="eager")
    torch.testing.assert_close(compiled(waveforms, *rest), mix(waveforms, *rest))
    with pytest.raises(RuntimeError, match="numba cannot be traced"):
        torch.compile(mix, backend="eager")(waveforms, *rest, backend="numba")


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_two_terms_begin_anew_wherever_they_do(dtype):
    last = NUM_SAMPLES - 1
    places = [0, 1, 500, last]
    starts = torch.tensor([[one, other] for one in places for other in places])
    sources = torch.arange(2 * len(starts)).view(-1, 2) % NUM_CLIPS
    factors = torch.rand(starts.shape, generator=torch.Generator().manual_seed(0)) + 0.5
    out = mix(clips(dtype), sources, starts, factors, backend="numba")
    expected = mix(clips(dtype), sources, starts, factors, backend="reference")
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_torch_s_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    given = clips(torch.int16), *terms()
    expected = mix(*given)
    torch.set_default_dtype(dtype)
    try:
        out = mix(*given)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(out, expected)


def test_torch_s_default_device_changes_nothing() -> None:
    given = clips(torch.int16), *terms()
    expected = mix(*given)
    torch.set_default_device("meta")
    try:
        out = mix(*given)
    finally:
        torch.set_default_device(None)
    assert torch.equal(out, expected)


def test_columns_of_a_larger_table_are_taken_too():
    wide = clips(torch.int16).repeat(1, 2)
    assert torch.equal(mix(wide[:, :NUM_SAMPLES], *terms()), mix(clips(torch.int16), *terms()))


def test_no_row_gives_no_row():
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    for backend in ("reference", "numba"):
        out = mix(clips(torch.int16), nothing, nothing, nothing.float(), backend=backend)
        assert out.shape == (0, NUM_SAMPLES)


def test_use_backend_reaches_it():
    with use_backend(mix="reference"):
        reference = mix(clips(torch.float32), *terms())
    torch.testing.assert_close(reference, mix(clips(torch.float32), *terms()))


ONE = torch.zeros(1, 1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"waveforms": [0.0]}, TypeError, "waveforms must be a tensor or a numpy array, got list"),
        ({"waveforms": torch.zeros(1, 4).double()}, TypeError, "int16 or float32, got float64"),
        ({"waveforms": np.zeros((1, 4))}, TypeError, "int16 or float32, got float64"),
        ({"waveforms": torch.zeros(4)}, ValueError, r"\(num_clips, num_samples\), got \(4,\)"),
        ({"waveforms": torch.zeros(0, 4)}, ValueError, r"got \(0, 4\)"),
        ({"factors": ONE}, TypeError, "factors must be a floating-point tensor, got int64"),
        ({"factors": torch.ones(1)}, ValueError, r"factors must be \(batch, num_terms\)"),
        ({"factors": torch.ones(1, 0)}, ValueError, r"got \(1, 0\)"),
        ({"sources": ONE.float()}, TypeError, "sources must be a tensor of int32 or int64"),
        (
            {"starts": ONE.repeat(2, 1)},
            ValueError,
            r"starts must have the shape of factors, \(1, 1\)",
        ),
        ({"sources": ONE + 1}, ValueError, "sources must be from 0 to 0, got 1"),
        ({"starts": ONE - 1}, ValueError, "starts must be from 0 to 3, got -1"),
        ({"backend": "triton"}, ValueError, "backend must be one of auto, reference, numba"),
    ],
)
def test_what_does_not_fit_is_named(changes, error, message):
    arguments = {
        "waveforms": torch.zeros(1, 4),
        "sources": ONE,
        "starts": ONE,
        "factors": torch.ones(1, 1),
        **changes,
    }
    with pytest.raises(error, match=message):
        mix(**arguments)


def test_numba_is_for_the_cpu():
    with pytest.raises(
        RuntimeError, match="numba needs waveforms on the CPU, got meta; use backend"
    ):
        mix(torch.zeros(1, 4, device="meta"), ONE, ONE, torch.ones(1, 1), backend="numba")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_what_the_cpu_gives():
    on_gpu = mix(clips(torch.int16).cuda(), *terms())
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), mix(clips(torch.int16), *terms()))
