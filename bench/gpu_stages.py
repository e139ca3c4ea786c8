"""Stages of a GPU's record that need the kernels alone: errors, attention, block, filterbank.

Where `auto` has a choice, a comparison says what it chooses, and which candidate it could instead.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ast_fast_kernels import (
    FbankConfig,
    add_layer_norm,
    attention,
    chosen_backend,
    fbank,
    linear_gelu,
)
from ast_fast_kernels.testing.budgets import LOG_MEL_MAX, log_mel_error, relative_norm
from bench.gpu_peers import fbank_peers, flex_attention, layer_norm_peers
from bench.gpu_timer import Call, Candidates, Recorder, both_ways, tf32_allowed

EAGER, TORCHS = "torch eager", "torch's choice"
SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
ATTENTION_BOUNDS = {
    torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-9
}  # fmt: skip
"""Relative norms allowed, as in the tests. float32 is TF32, which cuts 2 ** -10 off each factor."""
HALF_GRADIENT = 2.0**-8
"""The same of a gradient in bfloat16: rounding to nearest leaves at most half of it."""
PRESETS = ("ast", "whisper")
"""Conventions that are checked: one launch, and three."""


def check_errors(recorder: Recorder) -> None:
    """Hold every kernel to float64, forward and backward."""
    with tf32_allowed():
        for preset in PRESETS:
            with recorder.step(f"fbank {preset}"):
                _check_fbank(recorder, preset)
        rows, vectors = _rows_and_vectors(recorder)
        half = [rows[0], rows[1].bfloat16()]
        for name, run, inputs, bound in (
            ("layer norm", add_layer_norm, [*rows, *vectors], 1e-5),
            ("layer norm of a bfloat16 update", add_layer_norm, [*half, *vectors], 1e-5),
            ("gelu", _gelu, [rows[0], vectors[0]], 1e-6),
        ):
            with recorder.step(name):
                _check_rows(recorder, name, run, inputs, bound)
        for shape in recorder.sizes.attention:
            for dtype, bound in ATTENTION_BOUNDS.items():
                with recorder.step(f"attention {shape} {dtype}"):
                    _check_attention(recorder, shape, dtype, bound)


def _check_fbank(recorder: Recorder, preset: str) -> None:
    config = FbankConfig.preset(preset).replace(top_db=0.0, log_type="ln", output_scale=1.0)
    config = config.replace(output_shift=0.0)
    waveform = 0.1 * recorder.noise(2, recorder.sizes.clip_samples)
    out = fbank(waveform, config, backend="triton")
    errors = log_mel_error(out, fbank(waveform.double(), config, backend="reference"))
    recorder.check(f"fbank {preset}", errors.max().item(), LOG_MEL_MAX)


def _rows_and_vectors(recorder: Recorder) -> tuple[list[Tensor], list[Tensor]]:
    """Return two of each, in float32."""
    noise, rows, width = recorder.noise, recorder.sizes.rows, recorder.sizes.width
    return [noise(rows, width, seed=s) for s in (0, 1)], [noise(width, seed=s) for s in (2, 3)]


def _check_rows(
    recorder: Recorder, name: str, run: Call, inputs: list[Tensor], bound: float
) -> None:
    """Check an operation on rows and vectors; gradients by their dtype."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    out, expected = run(*leaves, backend="triton"), run(*exact, backend="reference")
    if isinstance(out, tuple):
        out, expected = out[1], expected[1]
    recorder.check(f"{name} forward", relative_norm(out, expected), bound)
    grads = torch.autograd.grad(out.square().sum(), leaves)
    true = torch.autograd.grad(expected.square().sum(), exact)
    for dtype, words, allowed in (
        (torch.float32, "backward", 4 * bound), (torch.bfloat16, "backward, bfloat16",
                                                 HALF_GRADIENT),
    ):  # fmt: skip
        pairs = [pair for pair in zip(grads, true, strict=True) if pair[0].dtype == dtype]
        if pairs:
            recorder.check(f"{name} {words}", max(relative_norm(*p) for p in pairs), allowed)


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
    kind = "TF32" if dtype == torch.float32 else str(dtype).removeprefix("torch.")
    name = f"attention {shape} {kind}"
    recorder.check(f"{name} forward", relative_norm(out, expected), bound)
    grad = recorder.noise(*out.shape, dtype=dtype, seed=1)
    gradient = torch.autograd.grad(out, qkv, grad)[0]
    true = torch.autograd.grad(expected, exact, grad.double())[0]
    recorder.check(f"{name} backward", relative_norm(gradient, true), 2 * bound)


def measure_attention(recorder: Recorder) -> None:
    """Compare attention with SDPA's choice and each of its kernels, from the same projections."""
    peers: dict[str, Call] = {k: partial(_sdpa, v) for k, v in SDPA.items()}
    peers[TORCHS] = partial(attention, backend="sdpa")
    with tf32_allowed():
        for shape in recorder.sizes.attention:
            with recorder.step(f"attention {shape}"):
                _measure_attention(recorder, shape, "", peers)


def measure_compiled(recorder: Recorder) -> None:
    """Compare with what torch.compile makes, which takes it as long as it likes."""
    with recorder.step("torch.compile"):
        if recorder.on_gpu:
            _measure_compiled_fbank(recorder, recorder.sizes.clips[0])
    with tf32_allowed():
        for shape in recorder.sizes.compiled:
            with recorder.step(f"FlexAttention {shape}"):
                peer = {"FlexAttention": flex_attention(recorder.device)}
                _measure_attention(recorder, shape, " beside FlexAttention", peer)


def _measure_attention(
    recorder: Recorder,
    shape: tuple[int, int, int, int],
    beside: str,
    peers: dict[str, Call],
) -> None:
    batch, tokens, heads, head_dim = shape
    leaf = recorder.noise(batch, tokens, 3, heads, head_dim, dtype=torch.bfloat16).requires_grad_()
    grad = recorder.noise(batch, tokens, heads, head_dim, dtype=torch.bfloat16, seed=1)

    def forward(attend: Call) -> object:
        with torch.no_grad():
            return attend(leaf.detach())

    def both(attend: Call) -> Tensor:
        return torch.autograd.grad(attend(leaf), leaf, grad)[0]

    candidates = {"triton": partial(attention, backend="triton"), **peers}
    operations = 4 * batch * heads * tokens**2 * head_dim
    for name, run, times in (("forward", forward, 1.0), ("forward and backward", both, 3.5)):
        runs: Candidates = {key: partial(run, attend) for key, attend in candidates.items()}
        facts: dict[str, float | str] = {"operations": operations * times}
        if TORCHS in peers:
            facts |= {"auto": chosen_backend("attention", leaf), "torch": TORCHS}
        recorder.compare(f"attention {shape} {name}{beside}", runs, **facts)


def _sdpa(kind: SDPBackend, qkv: Tensor) -> Tensor:
    with sdpa_kernel(kind):
        return attention(qkv, backend="sdpa")


def measure_block(recorder: Recorder) -> None:
    """Compare the operations between a block's matrix products, forward and with backward."""
    with tf32_allowed():
        for shape in recorder.sizes.block:
            for name, measure in (
                ("add_layer_norm", _measure_norm),
                ("linear_gelu", _measure_gelu),
            ):
                with recorder.step(f"{name} {shape}"):
                    measure(recorder, f"{name} {shape}", *shape)


def _measure_norm(recorder: Recorder, name: str, rows: int, width: int) -> None:
    noise = recorder.noise
    update = noise(rows, width, dtype=torch.bfloat16, seed=1)
    given = [noise(rows, width), update, noise(width, seed=2), noise(width, seed=3)]
    calls: dict[str, Call] = {
        "triton": partial(add_layer_norm, backend="triton"),
        EAGER: partial(add_layer_norm, backend="reference"),
        **layer_norm_peers(),
    }
    _compare_ways(recorder, name, calls, given, partial(chosen_backend, "layer_norm"))


def _measure_gelu(recorder: Recorder, name: str, rows: int, width: int) -> None:
    noise = recorder.noise
    given = [noise(rows, width), noise(4 * width, width, seed=4), noise(4 * width, seed=5)]
    kind = recorder.device.type

    def in_autocast(run: Call, *tensors: Tensor) -> Any:
        with torch.autocast(kind, dtype=torch.bfloat16):
            return run(*tensors)

    calls: dict[str, Call] = {
        "triton": partial(in_autocast, partial(linear_gelu, backend="triton")),
        EAGER: partial(in_autocast, partial(linear_gelu, backend="reference")),
    }
    chosen = partial(in_autocast, partial(chosen_backend, "gelu"))
    _compare_ways(recorder, name, calls, given, chosen)


def _compare_ways(
    recorder: Recorder, name: str, calls: dict[str, Call], given: list[Tensor], chosen: Call
) -> None:
    """Compare calls without a graph, and with gradients; `chosen` says which auto takes."""
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    for way, run, tensors in (
        ("forward", _without_graph, given), ("forward and backward", both_ways, leaves),
    ):  # fmt: skip
        runs: Candidates = {key: partial(run, call, tensors) for key, call in calls.items()}
        recorder.compare(f"{name} {way}", runs, auto=chosen(*tensors), torch=EAGER)


def _without_graph(call: Call, tensors: list[Tensor]) -> object:
    with torch.no_grad():
        return call(*tensors)


def measure_fbank(recorder: Recorder) -> None:
    """Compare the filterbank with other libraries, all in full float32."""
    for clips in recorder.sizes.clips:
        with recorder.step(f"fbank, {clips} clips"):
            _measure_fbank(recorder, clips)


def _measure_fbank(recorder: Recorder, clips: int) -> None:
    config, waveform = FbankConfig(), _clips(recorder, clips)
    samples = (waveform.clamp(-1, 1) * 32767).to(torch.int16)
    reference = partial(fbank, config=config, backend="reference")
    candidates: Candidates = {
        "triton": partial(fbank, waveform, config, backend="triton"),
        "triton, int16": partial(fbank, samples, config, backend="triton"),
        EAGER: partial(reference, waveform),
    }
    if clips <= 64:  # a thousand calls a round would show nothing more
        candidates["torch eager, clip by clip"] = lambda: [reference(clip) for clip in waveform]
    candidates |= {
        name: run
        for name, run in fbank_peers(waveform).items()
        if clips <= 64 or "clip by clip" not in name
    }
    moved = _bytes_moved(waveform, config)
    recorder.compare(f"fbank, {clips} clips", candidates, clips=clips, bytes=moved)


def _measure_compiled_fbank(recorder: Recorder, clips: int) -> None:
    from ast_fast_kernels.fbank.reference import fbank_reference

    config, waveform = FbankConfig(), _clips(recorder, clips)
    runs: Candidates = {
        "triton": partial(fbank, waveform, config, backend="triton"),
        "torch.compile": partial(torch.compile(fbank_reference), waveform, config),
    }
    name, moved = f"fbank, {clips} clips beside torch.compile", _bytes_moved(waveform, config)
    recorder.compare(name, runs, clips=clips, bytes=moved)


def _clips(recorder: Recorder, clips: int) -> Tensor:
    return 0.1 * recorder.noise(clips, recorder.sizes.clip_samples)


def _bytes_moved(waveform: Tensor, config: FbankConfig) -> int:
    """Return the bytes of samples and features, in float32."""
    clips, num_samples = waveform.shape
    return 4 * clips * (num_samples + config.num_frames(num_samples) * config.num_mel_bins)
