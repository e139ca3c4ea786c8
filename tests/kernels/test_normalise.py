import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ast_fast_kernels import normalise, use_backend
from ast_fast_kernels.testing.processes import run_program

BATCH, NUM_FRAMES, NUM_BINS = 9, 61, 23
SILENCE = -15.9424


def log_mel(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Clips of very different means and deviations, as log-mel features have."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(BATCH, NUM_FRAMES, NUM_BINS, generator=generator, dtype=torch.float64)
    level = torch.linspace(-15, 8, BATCH, dtype=torch.float64).view(-1, 1, 1)
    spread = torch.logspace(-6, 1, BATCH, dtype=torch.float64).view(-1, 1, 1)
    return (level + spread * noise).to(dtype)


def changes() -> dict[str, torch.Tensor]:
    """What training does to features: offsets and masks."""
    generator = torch.Generator().manual_seed(1)
    return {
        "offsets": torch.randn(BATCH, NUM_BINS, generator=generator),
        "masked_frames": torch.rand(BATCH, NUM_FRAMES, generator=generator) < 0.2,
        "masked_bins": torch.rand(BATCH, NUM_BINS, generator=generator) < 0.3,
    }


def by_definition(
    features: torch.Tensor, target_frames: int, statistics, std_floor: float, changed
) -> torch.Tensor:
    """One clip after the other in numpy's float64."""
    out = np.empty((BATCH, target_frames, NUM_BINS))
    for b, clip in enumerate(features.double().numpy()):
        if changed:
            clip = clip + changed["offsets"][b].double().numpy()
        mean, scale = statistics or (clip.mean(), 1 / np.sqrt(clip.var() + std_floor**2))
        shown = min(target_frames, NUM_FRAMES)
        out[b] = (SILENCE - mean) * scale
        out[b, :shown] = ((clip - mean) * scale)[:shown]
        if changed:
            out[b, :shown][changed["masked_frames"][b, :shown].numpy()] = 0
            out[b, :shown, changed["masked_bins"][b].numpy()] = 0
    return torch.from_numpy(out)


@pytest.mark.parametrize("backend", ["auto", "reference", "numba"])
@pytest.mark.parametrize("target_frames", [1, NUM_FRAMES - 1, NUM_FRAMES, 80])
@pytest.mark.parametrize("statistics", [None, (-4.25, 0.125)], ids=["own", "given"])
@pytest.mark.parametrize("changed", [{}, changes()], ids=["plain", "changed"])
def test_it_is_its_definition(backend, target_frames, statistics, changed):
    features = log_mel()
    arguments = {"statistics": statistics, "std_floor": 1e-2}
    out = normalise(
        features, target_frames, log_silence=SILENCE, **arguments, **changed, backend=backend
    )
    assert out.dtype == torch.float32
    expected = by_definition(features, target_frames, changed=changed, **arguments)
    # A mean of 15 is known to half a unit of its last place, 5e-7, and stretched by 100 at most.
    torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=1e-4)
    assert not out[expected == 0].any()


def test_the_reference_in_float64_is_the_definition_to_its_last_places():
    expected = by_definition(log_mel(torch.float64), 80, None, 1e-2, changes())
    out = normalise(log_mel(torch.float64), 80, log_silence=SILENCE, std_floor=1e-2, **changes())
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 6, 498])
def test_frames_unlike_the_others_are_no_trap(num_frames):
    """Every sixteenth frame, the first among them, lies far from the rest, which vary little."""
    features = log_mel()[:, :1, :1] + 1e-2 * torch.randn(
        BATCH, num_frames, NUM_BINS, generator=torch.Generator().manual_seed(0)
    )
    features[:, ::16] -= 40
    out = normalise(features, num_frames, log_silence=SILENCE, std_floor=1e-2, backend="numba")
    exact = features.double()
    variance = exact.var(dim=(1, 2), unbiased=False, keepdim=True)
    expected = (exact - exact.mean(dim=(1, 2), keepdim=True)) / (variance + 1e-4).sqrt()
    # Values of some 50 are known to 2e-6; where all frames are alike they are stretched by 70.
    torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=3e-4)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_what_is_masked_does_not_count_whatever_it_holds(backend):
    features, changed = log_mel(), changes()
    changed["masked_frames"][:, 7] = True
    features[:, 7] = torch.nan
    given = {"statistics": (-4.25, 0.125), "log_silence": SILENCE}
    assert normalise(features, 80, **given, **changed, backend=backend).isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_a_nan_stays_in_its_clip(backend):
    features = log_mel()
    features[4, 7, 2] = torch.nan
    out = normalise(features, 80, log_silence=SILENCE, backend=backend)
    assert out[4].isnan().all()
    assert out[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


def test_threads_change_no_bit():
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(normalise(log_mel(), 80, log_silence=SILENCE, **changes()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_threads_and_a_forked_child_compute_the_same():
    run_program("""
import os, threading, torch
from ast_fast_kernels import normalise
torch.set_num_threads(2)
features = torch.randn(16, 50, 32, generator=torch.Generator().manual_seed(0))
masked = torch.zeros(16, 50, dtype=torch.bool)
masked[:, 7] = True
def run():
    return normalise(features, 60, log_silence=-16.0, masked_frames=masked, backend="numba").numpy()
expected = run()
right = []
def compare():
    right.append((run() == expected).all())
threads = [threading.Thread(target=compare) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert right == [True] * 4
child = os.fork()
if child == 0:
    os._exit(0 if (run() == expected).all() else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")


def test_what_is_traced_has_torch_s_operators():
    def run(features, backend="auto"):
        return normalise(features, 80, log_silence=SILENCE, std_floor=1e-2, backend=backend)

    expected = run(log_mel())
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(log_mel()), expected, rtol=2e-6, atol=1e-4)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # which has shapes and no memory
        fake = mode.from_tensor(log_mel())
        assert run(fake).shape == expected.shape
        with pytest.raises(RuntimeError, match="numba cannot be traced"):
            run(fake, "numba")


def test_a_clip_does_not_depend_on_the_others():
    whole = normalise(log_mel(), 80, log_silence=SILENCE)
    assert torch.equal(normalise(log_mel()[3:4], 80, log_silence=SILENCE), whole[3:4])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_torch_s_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    features = log_mel()
    expected = normalise(features, 80, log_silence=SILENCE)
    torch.set_default_dtype(dtype)
    try:
        out = normalise(features, 80, log_silence=SILENCE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(out, expected)


def test_torch_s_default_device_changes_nothing() -> None:
    features = log_mel()
    expected = normalise(features, 80, log_silence=SILENCE)
    torch.set_default_device("meta")
    try:
        out = normalise(features, 80, log_silence=SILENCE)
    finally:
        torch.set_default_device(None)
    assert torch.equal(out, expected)


def test_strides_are_taken():
    features = log_mel().transpose(1, 2).contiguous().transpose(1, 2)
    changed = {name: given.mT.contiguous().mT for name, given in changes().items()}
    expected = normalise(log_mel(), 80, log_silence=SILENCE, **changes())
    assert torch.equal(normalise(features, 80, log_silence=SILENCE, **changed), expected)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_no_clip_gives_no_clip(backend):
    out = normalise(log_mel()[:0], 80, log_silence=SILENCE, backend=backend)
    assert out.shape == (0, 80, NUM_BINS)


def test_use_backend_reaches_it():
    with use_backend(normalise="reference"):
        reference = normalise(log_mel(), 80, log_silence=SILENCE, std_floor=1e-2)
    numba = normalise(log_mel(), 80, log_silence=SILENCE, std_floor=1e-2)
    torch.testing.assert_close(reference, numba, rtol=2e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"features": np.zeros((1, 2, 3))}, TypeError, "features must be a tensor, got ndarray"),
        ({"features": torch.zeros(1, 2, 3).int()}, TypeError, "floating-point tensor, got int32"),
        ({"features": torch.zeros(2, 3)}, ValueError, r"num_bins\), got \(2, 3\)"),
        ({"features": torch.zeros(1, 0, 3)}, ValueError, r"num_bins\), got \(1, 0, 3\)"),
        ({"target_frames": 0}, ValueError, "target_frames must be at least 1, got 0"),
        ({"masked_bins": torch.zeros(1, 3)}, TypeError, "masked_bins must be a tensor of bool"),
        ({"offsets": torch.zeros(1, 3).int()}, TypeError, "offsets must be a floating-point"),
        (
            {"offsets": torch.zeros(3)},
            ValueError,
            r"offsets must be \(1, 3\) for these features, got \(3,\)",
        ),
        (
            {"masked_frames": torch.zeros(1, 3, dtype=torch.bool)},
            ValueError,
            r"masked_frames must be \(1, 2\) for these features, got \(1, 3\)",
        ),
        ({"backend": "triton"}, ValueError, "backend must be one of auto, reference, numba"),
    ],
)
def test_what_does_not_fit_is_named(given, error, message):
    arguments = {"features": torch.zeros(1, 2, 3), "target_frames": 4, "log_silence": 0.0}
    with pytest.raises(error, match=message):
        normalise(**{**arguments, **given})


@pytest.mark.parametrize(
    "features", [torch.zeros(1, 2, 3, device="meta"), torch.zeros(1, 2, 3).double()]
)
def test_numba_is_for_float32_on_the_cpu(features):
    with pytest.raises(RuntimeError, match="numba needs features in float32 on the CPU, got"):
        normalise(features, 4, log_silence=0.0, backend="numba")


def test_changes_drawn_on_the_cpu_go_where_the_features_are():
    """Training draws on the CPU for every device; meta stands for another one."""
    out = normalise(log_mel().to("meta"), 80, log_silence=SILENCE, **changes())
    assert out.is_meta
    assert out.shape[1] == 80


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_what_the_cpu_gives():
    on_gpu = {name: given.cuda() for name, given in changes().items()}
    arguments = {"log_silence": SILENCE, "std_floor": 1e-2}
    out = normalise(log_mel().cuda(), 80, **arguments, **on_gpu)
    assert out.is_cuda
    assert torch.equal(normalise(log_mel().cuda(), 80, **arguments, **changes()), out)
    expected = normalise(log_mel(), 80, **arguments, **changes())
    torch.testing.assert_close(out.cpu(), expected, rtol=2e-6, atol=1e-4)
