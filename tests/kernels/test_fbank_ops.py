"""The operator: what compilers, exporters, autograd and other transforms get from `fbank`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx

from ast_fast_kernels import Fbank, FbankConfig, _dispatch, fbank, use_backend
from ast_fast_kernels.fbank import ops
from ast_fast_kernels.fbank.presets import PRESETS
from ast_fast_kernels.testing.budgets import eps_bound, relative_norm
from ast_fast_kernels.testing.processes import modules_loaded_by, run_program

AST = FbankConfig()
LENGTHS = [1600, 900, 0]
CONFIGS = {
    "ast": AST,
    "mirrored-edges": FbankConfig.preset("lhotse", window_shift=161),
    "whole-waveform-preemphasis": FbankConfig.preset("python_speech_features"),
    "loudest-of-a-clip": FbankConfig.preset("whisper"),
    "mean-of-a-clip": FbankConfig.preset("nemo"),
}
BATCHES = {"batch": None, "ragged": torch.tensor(LENGTHS)}

configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
batches = pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def gradient(waveform: Tensor, grad: Tensor, *args: object, **kwargs: object) -> Tensor:
    """What `fbank` sends back to the waveform."""
    waveform = waveform.detach().clone().requires_grad_()
    return torch.autograd.grad(fbank(waveform, *args, **kwargs), waveform, grad)[0]


def compiled(function, **options):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


@batches
@configs
def test_operators_pass_opcheck(config: FbankConfig, lengths: Tensor | None) -> None:
    for dtype, backend in ((torch.float32, "auto"), (torch.float64, "reference")):
        waveform = noise(3, 1600, dtype=dtype)
        args = (waveform.requires_grad_(), config.as_json, lengths, backend)
        torch.library.opcheck(torch.ops.ast_fast.fbank.default, args)
        out = fbank(waveform.detach(), config, lengths=lengths)
        args = (noise(*out.shape, dtype=dtype), waveform.detach(), config.as_json, lengths)
        torch.library.opcheck(torch.ops.ast_fast.fbank_backward.default, args)


@pytest.mark.parametrize("shape", [(1600,), (2, 2, 1600), (0, 1600), (400,)])
def test_operator_takes_any_shape_that_the_function_takes(shape: tuple[int, ...]) -> None:
    samples = (1e4 * noise(*shape)).to(torch.int16)
    for waveform in (noise(*shape), samples):
        torch.library.opcheck(torch.ops.ast_fast.fbank.default, (waveform, "{}"))
        assert torch.equal(torch.ops.ast_fast.fbank(waveform, "{}"), fbank(waveform))


SHAPES = ("symmetric", "rectangular", "gaussian")


@st.composite
def smooth_conventions(draw: st.DrawFn) -> FbankConfig:
    """Any whose filters all let something through, so that no logarithm is of rounding alone."""
    window_size = draw(st.integers(20, 64))
    window_shift = draw(st.integers(1, 2 * window_size))
    framing = draw(
        st.sampled_from(
            [
                {"snip_edges": True},
                {"snip_edges": True, "pad_tail": True},
                {"snip_edges": False},
                {"snip_edges": False, "center": True},
                {
                    "snip_edges": False,
                    "left_padding": "lhotse" if window_shift <= window_size else "kaldi",
                },
            ]
        )
    )
    return FbankConfig.from_samples(
        sample_frequency=1000.0,
        window_size=window_size,
        window_shift=window_shift,
        n_fft=draw(st.sampled_from([64, 70])),
        window_type=draw(st.sampled_from(["hamming", "rectangular"])),
        waveform_scale=draw(st.sampled_from([1.0, 3.0])),
        remove_dc_offset=draw(st.booleans()),
        preemphasis_coefficient=draw(st.sampled_from([0.0, 0.5])),
        preemphasis_over=draw(st.sampled_from(["frame", "waveform"])),
        **framing,
        pad_mode=draw(st.sampled_from(["symmetric", "reflect", "constant"])),
        drop_last_frame=draw(st.booleans()),
        use_power=draw(st.booleans()),
        divide_by_n_fft=draw(st.booleans()),
        num_mel_bins=draw(st.integers(1, 5)),
        use_log_fbank=draw(st.booleans()),
        log_type=draw(st.sampled_from(["ln", "db"])),
        log_offset=draw(st.sampled_from([1e-3, 0.5])),
        output_scale=draw(st.sampled_from([1.0, 0.25])),
        # The definition has no slope where a normalised bin is the same in every frame.
        **draw(
            st.sampled_from(
                [
                    {"log_floor": 0.0, "norm_per_feature": True},
                    {"log_floor": 0.1},
                    {"log_floor": 0.1, "floor_zeros_only": True},
                    {"top_db": 6.0},
                ]
            )
        ),
        **draw(
            st.sampled_from([{}, *({"triangle_axis": "hertz", "filter_shape": s} for s in SHAPES)])
        ),
    )


def gradient_inputs(config: FbankConfig, more: int, lengths: bool) -> tuple[Tensor, ...]:
    """Gradient of the energies, waveform and lengths in float64, of two frames at least."""
    num_samples = 2 * config.window_size + 4 * config.window_shift + more
    waveform = noise(2, num_samples, seed=more, dtype=torch.float64)
    counts = torch.tensor([num_samples, num_samples - more]) if lengths else None
    grad = noise(2, config.num_frames(num_samples), config.num_mel_bins, seed=1).double()
    return grad, waveform, counts


any_convention = given(config=smooth_conventions(), more=st.integers(0, 200), lengths=st.booleans())


@settings(max_examples=150, deadline=None, derandomize=True)
@any_convention
def test_gradient_of_any_convention_is_that_of_the_definition(
    config: FbankConfig, more: int, lengths: bool
) -> None:
    grad, waveform, counts = gradient_inputs(config, more, lengths)
    expected = gradient(waveform, grad, config, lengths=counts, backend="reference")
    out = torch.ops.ast_fast.fbank_backward(grad, waveform, config.as_json, counts)
    assert relative_norm(out, expected) < eps_bound(torch.float64, config.fft_size)


@settings(max_examples=150, deadline=None, derandomize=True)
@any_convention
def test_compiled_gradient_of_any_convention_is_that_of_the_definition(
    config: FbankConfig, more: int, lengths: bool
) -> None:
    assume(config.window_size <= 56)  # one kernel serves these
    config = config.replace(n_fft=64)
    grad, waveform, counts = gradient_inputs(config, more, lengths)
    grad, waveform = grad.float(), waveform.float()
    expected = ops.waveform_gradient(
        grad.double(), waveform.double(), config, counts if counts is None else counts.tolist()
    )
    out = torch.ops.ast_fast.fbank_backward(grad, waveform, config.as_json, counts)
    assert relative_norm(out, expected) < eps_bound(torch.float32, config.fft_size)


def test_first_and_second_gradients_are_those_of_finite_differences() -> None:
    config = FbankConfig(frame_length=2.0, frame_shift=1.0, num_mel_bins=5, snip_edges=False)
    waveform = noise(2, 70, dtype=torch.float64).requires_grad_()

    def run(waveform: Tensor) -> Tensor:
        return torch.ops.ast_fast.fbank(waveform, config.as_json)

    assert torch.autograd.gradcheck(run, (waveform,), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (waveform,), fast_mode=True)


@batches
@configs
def test_float32_gradient_is_as_near_to_float64_as_the_definitions_own(
    config: FbankConfig, lengths: Tensor | None
) -> None:
    waveform = noise(3, 1600)
    grad = noise(*fbank(waveform, config).shape, seed=1)
    exact, own = (
        gradient(waveform.to(dtype), grad.to(dtype), config, lengths=lengths, backend="reference")
        for dtype in (torch.float64, torch.float32)
    )
    out = gradient(waveform, grad, config, lengths=lengths)
    assert out.dtype == torch.float32
    assert relative_norm(out, exact) <= 2.0 * relative_norm(own, exact)


def test_who_asks_for_the_reference_gets_its_gradient() -> None:
    waveform = noise(1, 1600)
    grad = noise(*fbank(waveform).shape, seed=1)
    by_formula = ops.waveform_gradient(grad, waveform, AST, None)
    run = torch.ops.ast_fast.fbank_backward
    with use_backend("reference"):
        assert torch.equal(run(grad, waveform, "{}"), by_formula)
    assert torch.equal(run(grad, waveform, "{}", None, "reference"), by_formula)
    for backend in ("auto", "numba"):
        assert not torch.equal(run(grad, waveform, "{}", None, backend), by_formula)


def test_fast_forward_has_a_gradient_without_being_asked_by_name() -> None:
    waveform = noise(2, 1600).requires_grad_()
    out = fbank(waveform)
    assert torch.equal(out, fbank(waveform.detach(), backend="numba"))
    assert type(out.grad_fn).__name__ == "_FbankBackward"
    samples = (1e4 * noise(2, 1600)).to(torch.int16)
    assert not fbank(samples).requires_grad


def test_constant_bin_of_a_normalised_clip_gets_no_gradient_and_no_nan() -> None:
    config = FbankConfig.preset("nemo")
    waveform = torch.zeros(1, 1600)
    grad = noise(1, config.num_frames(1600), config.num_mel_bins)
    out = torch.ops.ast_fast.fbank_backward(grad, waveform, config.as_json)
    assert torch.equal(out, torch.zeros(1, 1600))


def test_nan_reaches_the_gradient_of_its_frames_only() -> None:
    waveform = noise(1, 4000)
    grad = noise(1, AST.num_frames(4000), 128)
    clean = gradient(waveform, grad)
    waveform[0, 2000] = torch.nan
    out = gradient(waveform, grad)
    touched = slice(11 * 160, 12 * 160 + 400)  # frames 11 and 12 hold sample 2000, and 10 its end
    assert out[0, 2000].isnan()
    assert torch.equal(out[0, : 10 * 160], clean[0, : 10 * 160])
    assert torch.equal(out[0, touched.stop :], clean[0, touched.stop :])


def test_no_frames_and_no_clips_have_a_gradient_of_zero() -> None:
    for shape, frames in (((2, 50), 0), ((0, 1600), 10)):
        config = AST.replace(snip_edges=False)
        grad, waveform = torch.zeros(shape[0], frames, 128), torch.zeros(shape)
        out = torch.ops.ast_fast.fbank_backward(grad, waveform, config.as_json)
        assert torch.equal(out, torch.zeros(shape))


def test_second_gradient_of_the_operators_own_is_refused() -> None:
    waveform = noise(1, 1600).requires_grad_()
    grad = torch.zeros(1, 8, 128)
    out = torch.ops.ast_fast.fbank_backward(grad, waveform, "{}")
    message = "ast_fast::fbank_backward has no gradient; call fbank outside of compiled code"
    with pytest.raises(RuntimeError, match=message):
        out.sum().backward()


def test_dither_is_drawn_in_compiled_code_and_its_gradient_needs_keys() -> None:
    config = AST.replace(dither=0.1)
    run = compiled(lambda waveform: fbank(waveform, config))
    waveform = noise(1, 1600)
    torch.manual_seed(0)
    expected = fbank(waveform, config)
    torch.manual_seed(0)
    assert torch.equal(run(waveform), expected)
    assert not torch.equal(run(waveform), expected)
    gradients = []
    for function in (lambda waveform: fbank(waveform, config), run):
        leaf = noise(1, 1600).requires_grad_()
        torch.manual_seed(0)
        function(leaf).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    with pytest.raises(RuntimeError, match="has no gradient with dither without keys, because it"):
        torch.ops.ast_fast.fbank(waveform.requires_grad_(), config.as_json)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_no_gradient_is_kept_where_none_is_wanted(mode) -> None:
    with mode():
        waveform = noise(2, 1600).requires_grad_()
        for out in (fbank(waveform), torch.ops.ast_fast.fbank(waveform, "{}")):
            assert not out.requires_grad
        assert compiled(fbank)(waveform).shape == (2, 8, 128)


INPUTS = {
    "float32": noise(3, 1600),
    "float64": noise(3, 1600, dtype=torch.float64),
    "int16": (1e4 * noise(3, 1600)).to(torch.int16),
    "strided": noise(3, 3200)[:, ::2],
    "one-clip": noise(1600),
}


@pytest.mark.parametrize("waveform", INPUTS.values(), ids=INPUTS)
def test_compiled_code_is_whole_and_gives_the_same_bits(waveform: Tensor) -> None:
    config = FbankConfig.preset("whisper")
    assert torch.equal(compiled(fbank)(waveform), fbank(waveform))
    assert torch.equal(compiled(Fbank(config))(waveform), fbank(waveform, config))


def test_inductor_gives_the_same_bits() -> None:
    torch.compiler.reset()
    waveform = noise(3, 1600)
    run = torch.compile(fbank, fullgraph=True)
    assert torch.equal(run(waveform), fbank(waveform))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "numpy", "torch"])
def test_compiled_code_takes_lengths_and_looks_at_them_when_it_runs(kind) -> None:
    waveform = noise(3, 1600)
    run = compiled(lambda waveform, lengths: fbank(waveform, lengths=lengths))
    for lengths in (LENGTHS, [400, 1600, 1600]):
        assert torch.equal(run(waveform, kind(lengths)), fbank(waveform, lengths=lengths))
    with pytest.raises(
        ValueError, match=r"lengths must be from 0 to num_samples \(1600\), got 1601"
    ):
        run(waveform, kind([1601, 0, 0]))


def test_one_graph_serves_every_shape_and_each_config_has_its_own() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    run = torch.compile(lambda *args: fbank(*args), fullgraph=True, dynamic=True, backend=count)
    for num_samples in (1600, 1601, 80000):
        waveform = noise(2, num_samples)
        assert torch.equal(run(waveform, AST), fbank(waveform))
    assert len(graphs) == 1
    for low_freq in (30.0, 35.0):
        config = AST.replace(low_freq=low_freq)
        assert torch.equal(run(waveform, config), fbank(waveform, config))
    assert len(graphs) == 3


def test_compiled_gradient_is_the_eager_one() -> None:
    waveform, lengths = noise(3, 1600), torch.tensor(LENGTHS)
    run = compiled(lambda waveform: fbank(waveform, lengths=lengths).square().sum())
    both = []
    for function in (run, lambda waveform: fbank(waveform, lengths=lengths).square().sum()):
        leaf = waveform.clone().requires_grad_()
        function(leaf).backward()
        both.append(leaf.grad)
    assert torch.equal(*both)


def test_compiled_code_fills_out() -> None:
    waveform, out = noise(3, 1600), torch.full((3, 8, 128), torch.nan)
    assert torch.equal(compiled(lambda x, out: fbank(x, out=out))(waveform, out), fbank(waveform))
    assert torch.equal(out, fbank(waveform))
    with pytest.raises(Exception, match=re.escape("out must have shape (3, 8, 128)")):
        torch.compile(lambda x, out: fbank(x, out=out), backend="eager")(waveform, out[:, 0])


def test_only_compiled_code_fills_a_lazily_negated_out() -> None:
    waveform, out = noise(3, 1600), torch._neg_view(torch.full((3, 8, 128), torch.nan))
    with pytest.raises(ValueError, match="out must be no view that negates its memory"):
        fbank(waveform, out=out)
    compiled(lambda x, out: fbank(x, out=out))(waveform, out)
    assert torch.equal(out, fbank(waveform))


def test_use_backend_holds_for_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    load = _dispatch.load_backend

    def spy(op: str, backend: str):
        chosen.append(backend)
        return load(op, backend)

    monkeypatch.setattr(_dispatch, "load_backend", spy)
    run, waveform = compiled(fbank), noise(1, 1600)
    run(waveform)
    with use_backend("reference"):
        run(waveform)
    assert chosen == ["numba", "reference"]


def test_bad_argument_is_named_while_compiling() -> None:
    for call, message in (
        (
            lambda x: fbank(x[:, :320]),
            "waveform must be (..., num_samples) with num_samples >= 400",
        ),
        (lambda x: fbank(x, backend="triton"), "backend must be one of auto, reference, numba"),
        (lambda x: fbank(x.double(), backend="numba"), "numba needs a float32 or int16 waveform"),
    ):
        with pytest.raises(Exception, match=re.escape(message)):
            compiled(call)(noise(1, 1600))


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@configs
def test_exported_program_takes_any_batch_and_length(config: FbankConfig, strict: bool) -> None:
    dynamic = {0: Dim.AUTO, 1: Dim.AUTO}
    program = export(
        Fbank(config), (noise(2, 1600),), dynamic_shapes={"waveform": dynamic}, strict=strict
    )
    for shape in ((5, 3210), (1, 80000)):
        waveform = noise(*shape)
        assert torch.equal(program.module()(waveform), fbank(waveform, config))


def test_exported_program_takes_lengths_and_named_dimensions() -> None:
    batch, num_samples = Dim("batch", min=1), Dim("num_samples", min=560)  # two frames
    program = export(
        Fbank(),
        (noise(3, 1600), torch.tensor(LENGTHS)),
        dynamic_shapes={"waveform": {0: batch, 1: num_samples}, "lengths": {0: batch}},
    )
    waveform, lengths = noise(5, 3210), torch.tensor([3210, 1, 0, 400, 2000])
    assert torch.equal(program.module()(waveform, lengths), fbank(waveform, lengths=lengths))


def test_saved_program_runs_in_a_process_that_imports_the_operator(tmp_path: Path) -> None:
    waveform = noise(2, 1600)
    torch.export.save(export(Fbank(), (waveform,)), tmp_path / "fbank.pt2")
    torch.save({"waveform": waveform, "expected": fbank(waveform)}, tmp_path / "tensors.pt")
    code = f"""
import torch
import ast_fast_kernels.fbank.ops
program = torch.export.load({str(tmp_path / "fbank.pt2")!r})
tensors = torch.load({str(tmp_path / "tensors.pt")!r})
assert torch.equal(program.module()(tensors["waveform"]), tensors["expected"])
"""
    run_program(code)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracers_record_the_operator_instead_of_missing_the_kernel() -> None:
    waveform = noise(2, 1600)
    graph = make_fx(lambda waveform: fbank(waveform))(waveform)
    assert torch.equal(graph(2 * waveform), fbank(2 * waveform))
    traced = torch.jit.trace(Fbank(), (waveform,))
    assert torch.equal(traced(2 * waveform), fbank(2 * waveform))


def test_tensors_without_values_give_their_shape() -> None:
    for config in CONFIGS.values():
        expected = fbank(noise(2, 3, 1600), config)
        meta = torch.ops.ast_fast.fbank(noise(2, 3, 1600).to("meta"), config.as_json)
        assert (meta.shape, meta.dtype) == (expected.shape, expected.dtype)
        with FakeTensorMode():
            fake = fbank(torch.empty(2, 3, 1600, dtype=torch.int16), config, lengths=[[9] * 3] * 2)
        assert (fake.shape, fake.dtype) == (expected.shape, expected.dtype)


def test_operator_names_the_backend_that_a_device_lacks() -> None:
    message = 'numba needs a CPU waveform, got meta; use backend="reference"'
    for call in (
        lambda waveform: fbank(waveform, backend="numba"),
        lambda waveform: torch.ops.ast_fast.fbank(waveform, "{}", None, "numba"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(noise(1, 1600).to("meta"))


def test_functional_transforms_see_through_the_reference() -> None:
    waveform = noise(3, 1600)
    vmapped = torch.vmap(fbank)(waveform)
    torch.testing.assert_close(vmapped, fbank(waveform, backend="reference"), rtol=0, atol=1e-5)
    grad = torch.func.grad(lambda x: fbank(x).sum())(waveform)
    expected = gradient(waveform, torch.ones(3, 8, 128), backend="reference")
    torch.testing.assert_close(grad, expected)
    message = "numba cannot run under a transform of torch.func or forward-mode differentiation"
    with pytest.raises(RuntimeError, match=message):
        torch.vmap(lambda x: fbank(x, backend="numba"))(waveform)


def test_forward_mode_sees_through_the_reference() -> None:
    waveform, tangent = noise(3, 1600), noise(3, 1600)
    fbank(waveform)  # a call like the last one looks again
    with forward_ad.dual_level():
        out = fbank(forward_ad.make_dual(waveform, tangent))
        given = forward_ad.unpack_dual(out).tangent
    _, expected = torch.func.jvp(fbank, (waveform,), (tangent,))
    torch.testing.assert_close(given, expected)


def address(values: Tensor | np.ndarray) -> int:
    return values.ctypes.data if isinstance(values, np.ndarray) else values.data_ptr()


def test_backend_reads_and_writes_the_callers_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pointers = []

    def spy(samples, config: FbankConfig, out, counts, keys=None) -> Tensor | np.ndarray:
        if out is None:
            of_array = isinstance(samples, np.ndarray)
            out = (np.zeros if of_array else torch.zeros)((2, 8, 128), dtype=samples.dtype)
        pointers.append((address(samples), address(out)))
        return out

    monkeypatch.setattr(_dispatch, "load_backend", lambda op, backend: spy)
    array, target = noise(2, 1600).numpy(), np.zeros((2, 8, 128), np.float32)
    for waveform, out in ((array, target), (torch.from_numpy(array), torch.from_numpy(target))):
        fbank(waveform, out=out)
        assert pointers.pop() == (array.ctypes.data, target.ctypes.data)
        result = fbank(waveform)
        assert pointers.pop() == (array.ctypes.data, address(result))
    read_only = array.view()
    read_only.setflags(write=False)
    fbank(read_only)
    torch.ops.ast_fast.fbank(torch.from_numpy(array), "{}")
    assert [source for source, _ in pointers] == [array.ctypes.data] * 2


def test_neither_registering_nor_gradients_load_the_compiler_and_calls_do_not_register() -> None:
    call = "import torch; from ast_fast_kernels import fbank; w = torch.ones(400)"
    assert "ast_fast_kernels.fbank.ops" not in modules_loaded_by(
        f"{call}; fbank(w, backend='reference')"
    )
    loaded = modules_loaded_by(f"{call}; fbank(w.requires_grad_()).sum().backward()")
    assert "ast_fast_kernels.fbank.ops" in loaded
    assert not loaded & {"torch._dynamo", "torch._inductor"}
    assert not modules_loaded_by("import ast_fast_kernels.fbank.ops") & {"torch._dynamo", "numba"}


def test_presets_survive_the_operators_text() -> None:
    for name in PRESETS:
        config = FbankConfig.preset(name)
        assert ops._parsed(config.as_json) == config
