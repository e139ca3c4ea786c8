"""What the interpreter cannot show: races, unwritten memory, streams, graphs, long offsets."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ast_fast_kernels import FbankConfig, add_layer_norm, attention, fbank, linear_gelu
from ast_fast_kernels.attention import triton_gpu as attention_gpu
from ast_fast_kernels.gelu import triton_gpu as gelu_gpu
from ast_fast_kernels.layer_norm import triton_gpu as layer_norm_gpu
from bench.gpu_timer import Call, Recorder, both_ways, captured

Hazard = Callable[[Recorder], bool]


def meet_hazards(recorder: Recorder) -> None:
    """Try each, and record whether the kernels stand it."""
    for name, hazard in {**ANYWHERE, **(ON_A_GPU if recorder.on_gpu else {})}.items():
        try:
            holds, said = hazard(recorder), "results differ"
        except Exception as error:
            traceback.print_exc()
            holds, said = False, f"{type(error).__name__}: {str(error)[:300]}"
        row = {"holds": holds, "said": "" if holds else said}
        recorder.file.keep("hazards", name, row)


def _clips(recorder: Recorder) -> Tensor:
    """Return so many clips that programs take several blocks, as many as others or fewer."""
    return 0.1 * recorder.noise(300 if recorder.on_gpu else 2, recorder.sizes.clip_samples)


def _fbank(waveform: Tensor, out: Tensor | None = None) -> Tensor:
    return fbank(waveform, FbankConfig(), out=out, backend="triton")


def fbank_repeats(recorder: Recorder) -> bool:
    waveform = _clips(recorder)
    first = _fbank(waveform)
    out = torch.empty_like(first)
    for _ in range(recorder.sizes.repeats):
        if not torch.equal(_fbank(waveform, out.fill_(torch.nan)), first):
            return False
    return bool(first.isfinite().all())


def fbank_alone(recorder: Recorder) -> bool:
    waveform = _clips(recorder)
    whole = _fbank(waveform)
    places = {0, len(waveform) // 2, len(waveform) - 1}
    return all(torch.equal(whole[place], _fbank(waveform[place][None])[0]) for place in places)


def lengths_in_a_column(recorder: Recorder) -> bool:
    qkv = recorder.noise(3, 70, 3, 2, 32, dtype=torch.bfloat16)
    lengths = torch.tensor([[70, 1], [5, 2], [9, 3]], dtype=torch.int32, device=recorder.device)
    results = [
        attention(qkv, key_lengths=column, backend="triton")
        for column in (lengths[:, 0], lengths[:, 0].contiguous())
    ]
    return torch.equal(*results)


def attention_repeats(recorder: Recorder) -> bool:
    tokens = 250 if recorder.on_gpu else 70
    qkv = recorder.noise(2, tokens, 3, 3, 64, dtype=torch.bfloat16)
    out, lse = attention_gpu.launch_attention_fwd(qkv, None, 0.125)
    grad = recorder.noise(*out.shape, dtype=torch.bfloat16, seed=1)
    return _repeats(
        recorder,
        lambda: [
            *attention_gpu.launch_attention_fwd(qkv, None, 0.125),
            attention_gpu.launch_attention_bwd(grad, qkv, out, lse, None, 0.125),
        ],
    )


def rows_repeat(recorder: Recorder) -> bool:
    sizes = recorder.sizes
    x, dy = (recorder.noise(sizes.rows, sizes.width, seed=seed) for seed in (0, 1))
    ones = torch.ones(sizes.width, device=recorder.device)
    return _repeats(
        recorder,
        lambda: [
            *layer_norm_gpu.launch_layer_norm_bwd(None, dy, x, ones, 1e-5, None),
            *gelu_gpu.launch_bias_gelu_bwd(dy, x, ones),
        ],
    )


class ByOperators(TorchDispatchMode):
    """Changes nothing; but a call that a mode may see goes by its operator."""

    def __torch_dispatch__(
        self,
        function: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        return function(*args, **(kwargs or {}))


def without_operators(recorder: Recorder) -> bool:
    """Say whether later calls, which start compiled kernels themselves, give operators' bits."""
    for call, leaves in _calls(recorder):
        with ByOperators():
            expected = both_ways(call, leaves)
        for _ in range(3):
            if not all(map(torch.equal, both_ways(call, leaves), expected)):
                return False
    return True


def without_operators_beside(recorder: Recorder) -> bool:
    """The same on a stream of their own, and in a graph's capture and replay."""
    for call, leaves in _calls(recorder):
        expected, side = both_ways(call, leaves), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            beside = both_ways(call, leaves)
        torch.cuda.current_stream().wait_stream(side)
        in_graph: list[list[Tensor]] = []

        def run(call: Call = call, leaves: list[Tensor] = leaves, to: list[Any] = in_graph) -> None:
            to.append(both_ways(call, leaves))

        captured(run)()
        torch.cuda.synchronize()
        if not all(map(torch.equal, [*beside, *in_graph[-1]], [*expected, *expected])):
            return False
    return True


def _calls(recorder: Recorder) -> list[tuple[Call, list[Tensor]]]:
    noise, rows, width = recorder.noise, recorder.sizes.rows, recorder.sizes.width
    half = torch.bfloat16
    given: list[tuple[Call, list[Tensor]]] = [
        (add_layer_norm, [noise(rows, width), noise(rows, width, dtype=half, seed=1),
                          noise(width, seed=2), noise(width, seed=3)]),
        (linear_gelu, [noise(rows, width), noise(2 * width, width, seed=1),
                       noise(2 * width, seed=2)]),
        (attention, [noise(2, 70, 3, 2, 32, dtype=half)]),
    ]  # fmt: skip
    return [
        (partial(call, backend="triton"), [leaf.requires_grad_() for leaf in leaves])
        for call, leaves in given
    ]


def _repeats(recorder: Recorder, run: Callable[[], list[Tensor]]) -> bool:
    """Say whether results are finite and of the same bits each time."""
    first = run()
    for _ in range(recorder.sizes.repeats):
        if not all(map(torch.equal, first, run())):
            return False
    return all(bool(tensor.isfinite().all()) for tensor in first)


def two_streams(recorder: Recorder) -> bool:
    waveform, side = _clips(recorder), torch.cuda.Stream()
    first = _fbank(waveform)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        beside = [_fbank(waveform) for _ in range(10)]
    here = [_fbank(waveform) for _ in range(10)]
    torch.cuda.synchronize()
    return all(torch.equal(first, other) for other in (*beside, *here))


def replayed(recorder: Recorder) -> bool:
    waveform = _clips(recorder)
    out = torch.empty_like(_fbank(waveform))
    replay = captured(lambda: _fbank(waveform, out))
    waveform.copy_(0.1 * recorder.noise(*waveform.shape, seed=7))
    replay()
    return torch.equal(out, _fbank(waveform))


def first_call_in_a_capture(recorder: Recorder) -> bool:
    """Say whether a new convention is refused, and can be captured after a call."""
    config = FbankConfig(num_mel_bins=57)
    waveform = 0.1 * recorder.noise(2, recorder.sizes.clip_samples)
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            fbank(waveform, config, backend="triton")
    except RuntimeError as error:
        if "before the capture" not in str(error):
            raise
    else:
        return False
    torch.cuda.synchronize()
    expected = fbank(waveform, config, backend="triton")
    out = torch.empty_like(expected)
    captured(lambda: fbank(waveform, config, out=out, backend="triton"))()
    return torch.equal(out, expected)


def many_rows(recorder: Recorder) -> bool:
    rows, width = 2_200_000, 1024  # more than 2**31 values
    x = torch.randn(rows, width, device=recorder.device, dtype=torch.bfloat16)
    ones = torch.ones(width, device=recorder.device)
    launch = layer_norm_gpu.launch_layer_norm_fwd
    normed = launch(x, None, ones, 0 * ones, 1e-5, x.dtype)[1]
    expected = launch(x[-3:].clone(), None, ones, 0 * ones, 1e-5, x.dtype)[1]
    hidden = gelu_gpu.launch_bias_gelu_fwd(x, ones)[-3:]
    return torch.equal(normed[-3:], expected) and torch.equal(
        hidden, gelu_gpu.launch_bias_gelu_fwd(x[-3:].clone(), ones)
    )


def many_clips(recorder: Recorder) -> bool:
    qkv = torch.randn(6000, 600, 3, 4, 64, device=recorder.device, dtype=torch.bfloat16)
    whole = attention_gpu.launch_attention_fwd(qkv, None, 0.125)[0]
    last = attention_gpu.launch_attention_fwd(qkv[-2:].clone(), None, 0.125)[0]
    return torch.equal(whole[-2:], last)


ANYWHERE: dict[str, Hazard] = {
    "all: without operators as with them": without_operators,
    "fbank: the same bits each time, every value written": fbank_repeats,
    "fbank: a clip alone as in a batch": fbank_alone,
    "attention: key lengths that are a column": lengths_in_a_column,
    "attention: the same bits each time, forward and backward": attention_repeats,
    "layer norm and GELU: the same bits each time, backward": rows_repeat,
}
ON_A_GPU: dict[str, Hazard] = {
    "all: without operators, on another stream and in a graph": without_operators_beside,
    "fbank: two streams at once": two_streams,
    "fbank: a graph replayed on other samples": replayed,
    "fbank: a convention's first call in a capture": first_call_in_a_capture,
    "layer norm and GELU: more than 2**31 values": many_rows,
    "attention: more than 2**31 values": many_clips,
}
