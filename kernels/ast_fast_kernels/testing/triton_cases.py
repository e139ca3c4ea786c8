"""Every Triton kernel in every form that is shipped, as cases to compile ahead of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from ast_fast_kernels._gpu.launch import Launch
from ast_fast_kernels.attention import triton_gpu as attention
from ast_fast_kernels.fbank import triton_gpu as fbank
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.presets import PresetName
from ast_fast_kernels.gelu import triton_gpu as gelu
from ast_fast_kernels.layer_norm import triton_gpu as layer_norm
from ast_fast_kernels.testing.ahead_of_time import Case

_FLOAT_BYTES = 4
_BYTES = {"fp32": 4, "i16": 2}
_TRIPS = 4
"""Blocks of a program that goes over its rows, for some 8,000 rows of 192 on a large GPU."""
_DOTS = {"fwd": 2, "bwd_dkdv": 4, "bwd_dq": 3}
"""Products of (BLOCK_M, head_dim) by (head_dim, BLOCK_N) in a step of each kernel's loop."""


def cases(arch: int) -> Iterator[Case]:
    """Yield every case of an architecture's launch tables."""
    yield from _attention_cases(arch)
    yield from _layer_norm_cases()
    yield from _gelu_cases()
    yield from _fbank_cases()


def _types(kernel: Any, constants: Mapping[str, Any], **of: str) -> dict[str, str]:
    """Give a type to each argument: those named, else i32 (fp32 for what is not a count)."""
    floats = ("scale", "scale_log2", "eps", "preemphasis")
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            continue
        if name in floats or name.startswith("log_"):
            types[name] = "fp32"
        elif name.startswith("stride_") and name not in of:
            types[name] = "i32:16"
        else:
            types[name] = of.get(name, "i32")
    return types


def _attention_cases(arch: int) -> Iterator[Case]:
    kernels = {
        "fwd": attention._attention_fwd_kernel,
        "bwd_dkdv": attention._attention_bwd_dkdv_kernel,
        "bwd_dq": attention._attention_bwd_dq_kernel,
    }
    for (name, of_arch, head_dim, is_float32), launch in attention.LAUNCHES.items():
        if of_arch != arch:
            continue
        forms = (
            [("fp32", False)] if is_float32 else [("bf16", False), ("bf16", True), ("fp16", False)]
        )
        for dtype, has_lengths in forms:
            constants: dict[str, Any] = {
                "HEAD_DIM": head_dim,
                "HAS_LENGTHS": has_lengths,
                "PRECISION": "tf32" if is_float32 else "ieee",
            }
            if not has_lengths:
                constants["key_lengths_ptr"] = None
            kernel = kernels[name]
            pointers = {arg: f"*{dtype}" for arg in kernel.arg_names if arg.endswith("_ptr")}
            pointers |= {"key_lengths_ptr": "*i32", "lse_ptr": "*fp32", "delta_ptr": "*fp32"}
            lengths = ", key lengths" if has_lengths else ""
            yield Case(
                f"attention_{name}, head_dim {head_dim}, {dtype}{lengths}",
                kernel,
                _types(kernel, constants, **pointers),
                constants,
                launch,
                dot_operations=2 * _DOTS[name] * launch["BLOCK_M"] * launch["BLOCK_N"] * head_dim,
                is_tf32=is_float32,
            )
    for head_dim in (16, 32, 64, 128):
        launch, kernel = attention.DELTA_LAUNCH, attention._attention_bwd_delta_kernel
        constants = {"HEAD_DIM": head_dim}
        pointers = {"out_ptr": "*bf16", "grad_ptr": "*bf16", "delta_ptr": "*fp32"}
        yield Case(
            f"attention_bwd_delta, head_dim {head_dim}, bf16",
            kernel,
            _types(kernel, constants, **pointers),
            constants,
            launch,
            bytes=launch["BLOCK_M"] * (2 * 2 * head_dim + _FLOAT_BYTES),
        )


def _layer_norm_cases() -> Iterator[Case]:
    sizes = {"fp32": 4, "bf16": 2}
    forms = [  # the residual stream, the update, the normalisation
        ("fp32", "bf16", "bf16"),
        ("fp32", None, "bf16"),
        ("bf16", "bf16", "bf16"),
        ("fp32", "fp32", "fp32"),
    ]
    for width, launch in layer_norm.LAUNCHES.items():
        backward = layer_norm.BWD_LAUNCHES[width]
        for stream, update, normed in forms if width == 256 else forms[:1]:
            said = f"width {width}, {stream} + {update or 'nothing'} → {normed}"
            kernel = layer_norm._layer_norm_fwd_kernel
            constants: dict[str, Any] = {"HAS_UPDATE": update is not None}
            if update is None:
                constants["update_ptr"] = None
            pointers = {
                "weight_ptr": "*fp32",
                "bias_ptr": "*fp32",
                "x_ptr": f"*{stream}",
                "update_ptr": f"*{update}",
                "residual_ptr": f"*{stream}",
                "y_ptr": f"*{normed}",
            }
            moved = sizes[stream] + sizes[normed]
            moved += 0 if update is None else sizes[update] + sizes[stream]
            yield Case(
                f"layer_norm_fwd, {said}",
                kernel,
                _types(kernel, constants, width="i32:16", **pointers),
                constants,
                launch,
                bytes=launch["BLOCK_ROWS"] * width * moved,
            )
            kernel = layer_norm._layer_norm_bwd_kernel
            own = update is not None and update != stream
            constants = {"HAS_DRESIDUAL": update is not None, "HAS_DUPDATE": own}
            if update is None:
                constants["dresidual_ptr"] = None
            pointers = {
                "weight_ptr": "*fp32",
                "partial_ptr": "*fp32",
                "dresidual_ptr": f"*{stream}",
                "dy_ptr": f"*{normed}",
                "residual_ptr": f"*{stream}",
                "dx_ptr": f"*{stream}",
                "dupdate_ptr": f"*{update or stream}",
            }
            moved = 2 * sizes[stream] + sizes[normed]
            moved += sizes[stream] if update is not None else 0
            moved += sizes[update] if update is not None and own else 0
            yield Case(
                f"layer_norm_bwd, {said}",
                kernel,
                _types(kernel, constants, width="i32:16", **pointers),
                constants,
                backward,
                bytes=_TRIPS * backward["BLOCK_ROWS"] * width * moved,
                trips=_TRIPS,
            )


def _gelu_cases() -> Iterator[Case]:
    for dtype, size in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
        kernel, launch = gelu._bias_gelu_fwd_kernel, gelu.FWD_LAUNCH
        values = launch["BLOCK_ROWS"] * launch["BLOCK_H"]
        pointers = {"x_ptr": f"*{dtype}", "bias_ptr": "*fp32", "y_ptr": f"*{dtype}"}
        types = _types(kernel, {}, hidden="i32:16", **pointers)
        yield Case(f"bias_gelu_fwd, {dtype}", kernel, types, {}, launch, bytes=2 * size * values)
        kernel, launch = gelu._bias_gelu_bwd_kernel, gelu.BWD_LAUNCH
        pointers = dict.fromkeys(("dy_ptr", "x_ptr", "dx_ptr"), f"*{dtype}")
        pointers |= {"bias_ptr": "*fp32", "partial_ptr": "*fp32"}
        yield Case(
            f"bias_gelu_bwd, {dtype}",
            kernel,
            _types(kernel, {}, hidden="i32:16", **pointers),
            {},
            launch,
            bytes=_TRIPS * 3 * size * launch["BLOCK_ROWS"] * launch["BLOCK_H"],
            trips=_TRIPS,
        )


def _fbank_cases() -> Iterator[Case]:
    made: set[tuple[Any, ...]] = set()
    for preset in get_args(PresetName):
        config = FbankConfig.preset(preset)
        # What dtype and lengths change does not depend on the convention.
        every = preset in ("ast", "whisper")
        for dtype, has_counts in (("fp32", False), ("i16", True)) if every else (("fp32", False),):
            if config.fft_size == fbank.FUSED_FFT:
                yield from _once(made, _fused_case(preset, config, dtype, has_counts))
            else:
                yield from _once(made, _frames_case(preset, config, dtype, has_counts))
                yield from _once(made, _mel_case(preset, config, has_counts))
    for num_mel_bins in fbank.FUSED_LAUNCHES:
        config = FbankConfig(num_mel_bins=num_mel_bins)
        name = f"ast with {num_mel_bins} mel bins"
        yield from _once(made, _fused_case(name, config, "fp32", False))
    for length in fbank.FRAME_LAUNCHES:
        config = FbankConfig(sample_frequency=40.0 * length, low_freq=0.0, n_fft=length)
        yield from _once(made, _frames_case(f"ast, FFT of {length}", config, "fp32", False))


def _once(made: set[tuple[Any, ...]], case: Case) -> Iterator[Case]:
    """Yield a case unless one with the same code was."""
    code = (case.kernel, tuple(case.types.items()), tuple(case.constants.items()), case.launch)
    if code not in made:
        made.add(code)
        yield case


_FBANK_TYPES = {
    "counts_ptr": "*i64",
    "frame_counts_ptr": "*i64",
    "bins_ptr": "*i32",
    "widths_ptr": "*i32",
    "stride_n": "i32",
}


def _fbank_case(
    name: str,
    kernel: Any,
    constants: Mapping[str, Any],
    launch: Launch,
    *,
    dtype: str = "fp32",
    moved: int,
    trips: int = 1,
) -> Case:
    constants = dict(constants)
    if not constants["HAS_COUNTS"]:
        constants |= {"counts_ptr": None, "frame_counts_ptr": None}
    if "stride_n" in kernel.arg_names:
        constants["stride_n"] = 1
    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    pointers = {name: "*fp32" for name in kernel.arg_names if name.endswith("_ptr")}
    pointers |= {**_FBANK_TYPES, "samples_ptr": f"*{dtype}"}
    types = _types(kernel, constants, **pointers)
    return Case(name, kernel, types, constants, launch, bytes=moved, trips=trips)


def _form(dtype: str, has_counts: bool, convention: str) -> str:
    return f"{dtype}{', lengths' if has_counts else ''}, as {convention}"


def _fused_case(convention: str, config: FbankConfig, dtype: str, has_counts: bool) -> Case:
    launch, constants = fbank.fused_launch(config, has_counts)
    moved = config.window_shift * _BYTES[dtype] + config.num_mel_bins * _FLOAT_BYTES
    return _fbank_case(
        f"fbank_fused, {_form(dtype, has_counts, convention)}",
        fbank._fbank_fused_kernel,
        constants,
        launch,
        dtype=dtype,
        moved=launch["BLOCK_F"] * moved,
        trips=10,  # bins of the widest of 128 filters
    )


def _frames_case(convention: str, config: FbankConfig, dtype: str, has_counts: bool) -> Case:
    launch, constants = fbank.frames_launch(config, dtype == "i16", has_counts)
    moved = config.window_shift * _BYTES[dtype] + config.fft_size * _FLOAT_BYTES
    return _fbank_case(
        f"fbank_frames, {_form(dtype, has_counts, convention)}",
        fbank._fbank_frames_kernel,
        constants,
        launch,
        dtype=dtype,
        moved=launch["BLOCK_F"] * moved,
    )


def _mel_case(convention: str, config: FbankConfig, has_counts: bool) -> Case:
    launch = fbank.MEL_LAUNCH
    # A block's filters have their share of the bins, which are read once.
    blocks = -(-config.num_mel_bins // launch["BLOCK_M"])
    moved = 2 * (config.fft_size // 2 + 1) // blocks + launch["BLOCK_M"]
    return _fbank_case(
        f"fbank_mel{', lengths' if has_counts else ''}, as {convention}",
        fbank._fbank_mel_kernel,
        fbank.mel_constants(config, has_counts),
        launch,
        moved=launch["BLOCK_F"] * moved * _FLOAT_BYTES,
        trips=8,  # bins of a filter, in the middle
    )
