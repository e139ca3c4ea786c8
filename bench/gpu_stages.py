"""Stages of a GPU's record that need the kernels alone: errors, attention, block, filterbank."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ast_fast_kernels import FbankConfig, add_layer_norm, attention, fbank, linear_gelu
from ast_fast_kernels.testing.budgets import LOG_MEL_MAX, log_mel_error, relative_norm
from bench.gpu_peers import fbank_peers, flex_attention, layer_norm_peers
from bench.gpu_timer import Candidates, Recorder, tf32_allowed

SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
PRESETS = ("ast", "whisper")
"""Conventions that are checked: one launch, and three."""


def check_errors(recorder: Recorder) -> None:
    """Hold every kernel to float64, forward and backward."""
    with tf32_allowed():
        for preset in PRESETS:
            with recorder.step(f"fbank {preset}"):
                _check_fbank(recorder, preset)
        for name, run, tensors, bound in (
            ("layer norm", add_layer_norm, 2, 1e-5),
            ("gelu", _gelu, 1, 1e-6),
        ):
            with recorder.step(name):
                _check_rows(recorder, name, run, tensors, bound)
        for shape in recorder.sizes.attention:
            for dtype, bound in ((torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)):
                with recorder.step(f"attention {shape} {dtype}"):
                    _check_attention(recorder, shape, dtype, bound)


def _check_fbank(recorder: Recorder, preset: str) -> None:
    config = FbankConfig.preset(preset).replace(top_db=0.0, log_type="ln", output_scale=1.0)
    config = config.replace(output_shift=0.0)
    waveform = 0.1 * recorder.noise(2, recorder.sizes.clip_samples)
    out = fbank(waveform, config, backend="triton")
    errors = log_mel_error(out, fbank(waveform.double(), config, backend="reference"))
    recorder.check(f"fbank {preset}", errors.max().item(), LOG_MEL_MAX)


def _check_rows(
    recorder: Recorder, name: str, run: Callable[..., object], tensors: int, bound: float
) -> None:
    """Check an operation on rows and vectors, in float32."""
    sizes = recorder.sizes
    inputs = [recorder.noise(sizes.rows, sizes.width, seed=seed) for seed in range(tensors)]
    inputs += [recorder.noise(sizes.width, seed=2 + seed) for seed in range(tensors)]
    leaves = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    out, expected = run(*leaves, backend="triton"), run(*exact, backend="reference")
    if isinstance(out, tuple):
        out, expected = out[1], expected[1]
    recorder.check(f"{name} forward", relative_norm(out, expected), bound)
    grads = torch.autograd.grad(out.square().sum(), leaves)
    true = torch.autograd.grad(expected.square().sum(), exact)
    recorder.check(f"{name} backward", max(map(relative_norm, grads, true)), 4 * bound)


def _gelu(x: Tensor, bias: Tensor, *, backend: str) -> Tensor:
    """Run bias and GELU alone: a matrix product before them would hide their error."""
    import ast_fast_kernels.gelu.triton_gpu  # noqa: F401 - registers the operator

    if backend == "triton":
        hidden: Tensor = torch.ops.ast_fast.bias_gelu_fwd(x, bias)
        return hidden
    return torch.nn.functional.gelu(x + bias)


def _check_attention(
    recorder: Recorder, shape: tuple[int, int, int, int], dtype: torch.dtype, bound: float
) -> None:
    batch, tokens, *heads = shape
    qkv = recorder.noise(min(batch, 2), tokens, 3, *heads, dtype=dtype).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    out = attention(qkv, backend="triton")
    expected = attention(exact, backend="reference")
    name = f"attention {shape} {dtype}"
    recorder.check(f"{name} forward", relative_norm(out, expected), bound)
    grad = recorder.noise(*out.shape, dtype=dtype, seed=1)
    gradient = torch.autograd.grad(out, qkv, grad)[0]
    true = torch.autograd.grad(expected, exact, grad.double())[0]
    recorder.check(f"{name} backward", relative_norm(gradient, true), 2 * bound)


def measure_attention(recorder: Recorder) -> None:
    """Compare attention with each of SDPA's kernels from the same packed projections.

    FlexAttention comes last and for two sizes only: each takes torch.compile half a minute.
    """
    with tf32_allowed():
        for shape in recorder.sizes.attention:
            _measure_attention(recorder, shape, "", {k: partial(_sdpa, v) for k, v in SDPA.items()})
        for shape in recorder.sizes.compiled:
            with recorder.step(f"FlexAttention {shape}"):
                peer = {"FlexAttention": flex_attention(recorder.device)}
                _measure_attention(recorder, shape, " beside FlexAttention", peer)


def _measure_attention(
    recorder: Recorder,
    shape: tuple[int, int, int, int],
    beside: str,
    peers: dict[str, Callable[[Tensor], Tensor]],
) -> None:
    batch, tokens, heads, head_dim = shape
    leaf = recorder.noise(batch, tokens, 3, heads, head_dim, dtype=torch.bfloat16).requires_grad_()
    grad = recorder.noise(batch, tokens, heads, head_dim, dtype=torch.bfloat16, seed=1)

    def forward(attend: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return attend(leaf.detach())

    def both(attend: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(attend(leaf), leaf, grad)[0]

    candidates = {"triton": partial(attention, backend="triton"), **peers}
    operations = 4 * batch * heads * tokens**2 * head_dim
    for name, run, times in (("forward", forward, 1.0), ("forward and backward", both, 3.5)):
        runs: Candidates = {key: partial(run, attend) for key, attend in candidates.items()}
        recorder.compare(f"attention {shape} {name}{beside}", runs, operations=operations * times)


def _sdpa(kind: SDPBackend, qkv: Tensor) -> Tensor:
    with sdpa_kernel(kind):
        return attention(qkv, backend="sdpa")


def measure_block(recorder: Recorder) -> None:
    """Compare the operations between a block's matrix products, forward and backward."""
    sizes = recorder.sizes
    tokens = recorder.noise(sizes.rows, sizes.width).requires_grad_()
    update = recorder.noise(sizes.rows, sizes.width, dtype=torch.bfloat16, seed=1).requires_grad_()
    weight, bias = (recorder.noise(sizes.width, seed=s).requires_grad_() for s in (2, 3))
    expansion = recorder.noise(4 * sizes.width, sizes.width, seed=4).requires_grad_()
    shift = recorder.noise(4 * sizes.width, seed=5).requires_grad_()
    normed = (tokens, update, weight, bias)

    def normalise(run: Callable[..., tuple[Tensor, Tensor]]) -> object:
        return torch.autograd.grad([r.sum() for r in run(*normed)], normed)

    def activate(backend: str) -> object:
        with torch.autocast(recorder.device.type, dtype=torch.bfloat16):
            hidden = linear_gelu(tokens, expansion, shift, backend=backend)
        return torch.autograd.grad(hidden.sum(), (tokens, expansion, shift))

    norms: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "triton": partial(add_layer_norm, backend="triton"),
        "torch eager": partial(add_layer_norm, backend="reference"),
        **layer_norm_peers(),
    }
    with tf32_allowed():
        recorder.compare(
            "add_layer_norm forward and backward",
            {name: partial(normalise, run) for name, run in norms.items()},
        )
        recorder.compare(
            "linear_gelu forward and backward",
            {"triton": partial(activate, "triton"), "torch eager": partial(activate, "reference")},
        )


def measure_fbank(recorder: Recorder) -> None:
    """Compare the filterbank with other libraries, all in full float32."""
    for clips in recorder.sizes.clips:
        with recorder.step(f"fbank, {clips} clips"):
            _measure_fbank(recorder, clips)


def _measure_fbank(recorder: Recorder, clips: int) -> None:
    config, num_samples = FbankConfig(), recorder.sizes.clip_samples
    waveform = 0.1 * recorder.noise(clips, num_samples)
    samples = (waveform.clamp(-1, 1) * 32767).to(torch.int16)
    reference = partial(fbank, config=config, backend="reference")
    moved = waveform.numel() * 4 + clips * config.num_frames(num_samples) * config.num_mel_bins * 4
    candidates: Candidates = {
        "triton": partial(fbank, waveform, config, backend="triton"),
        "triton, int16": partial(fbank, samples, config, backend="triton"),
        "torch eager": partial(reference, waveform),
    }
    if clips <= 64:  # a thousand calls a round would show nothing more
        candidates["torch eager, clip by clip"] = lambda: [reference(clip) for clip in waveform]
    candidates |= {
        name: run
        for name, run in fbank_peers(waveform).items()
        if clips <= 64 or "clip by clip" not in name
    }
    recorder.compare(f"fbank, {clips} clips", candidates, clips=clips, bytes=moved)
    if recorder.on_gpu and clips == 64:  # one compilation takes half a minute
        from ast_fast_kernels.fbank.reference import fbank_reference

        compiled = partial(torch.compile(fbank_reference), waveform, config)
        runs: Candidates = {"triton": candidates["triton"], "torch.compile": compiled}
        name = f"fbank, {clips} clips beside torch.compile"
        recorder.compare(name, runs, clips=clips, bytes=moved)
