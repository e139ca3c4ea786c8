"""Checks of tensors that several operations share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    _are_functorch_transforms_active,
    _dispatch_tls_is_dispatch_key_included,
    _get_tracing_state,
    _has_storage,
    _len_torch_dispatch_stack,
)
from torch.autograd import forward_ad

from ast_fast_kernels._torch.tracing import constant_in_graphs

LEAST_CAPABILITY = (8, 0)
"""Ampere: the first with bfloat16 and asynchronous copies."""


def dtype_name(dtype: object) -> str:
    """Return the name of a dtype of torch or numpy, without `torch.`."""
    return str(dtype).removeprefix("torch.")


def check_floating(name: str, tensor: object) -> None:
    """Raise unless it is a floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        kind = dtype_name(tensor.dtype)
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")


def check_projection(tokens: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Raise unless they are (..., width), (out, width) and (out,), floating, on one device."""
    for name, tensor in (("tokens", tokens), ("weight", weight), ("bias", bias)):
        check_floating(name, tensor)
        if tensor.device != tokens.device:
            raise ValueError(f"{name} must be on {tokens.device}, got {tensor.device}")
    if tokens.dim() == 0:
        raise ValueError("tokens must be (..., width), got ()")
    if weight.dim() != 2 or weight.shape[1] != tokens.shape[-1]:
        raise ValueError(f"weight must be (out, {tokens.shape[-1]}), got {tuple(weight.shape)}")
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")


def cpu_capabilities() -> Mapping[str, Any]:
    """Return what torch knows about this CPU; empty under an older torch, which cannot say."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities


def is_strided(tensor: Tensor) -> bool:
    """Say whether it is an ordinary tensor: not sparse, nested or of another library's layout."""
    return tensor.layout is torch.strided and not tensor.is_nested


def dense(tensor: Tensor) -> Tensor:
    """Return the tensor, copied if it is not contiguous: for kernels on the CPU.

    numpy makes the copy: torch's runs on its threads, which a forked process lacks and would await.
    """
    if tensor.is_contiguous():
        return tensor
    bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return torch.from_numpy(np.ascontiguousarray(bits.numpy())).view(tensor.dtype)


def copied(tensor: Tensor) -> Tensor:
    """Return a copy without a graph; on the CPU by numpy, as in `dense`."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.is_cuda else torch.from_numpy(tensor.numpy().copy())


def may_share_memory(a: Tensor, b: Tensor) -> bool:
    """Say whether the addresses of two tensors overlap, from their first to their last element.

    Addresses, because views of one memory can come from numpy and have storages of their own.
    """
    if a.device != b.device or 0 in (a.numel(), b.numel()):
        return False
    (first, last), (other_first, other_last) = _addresses(a), _addresses(b)
    return first < other_last and other_first < last


def _addresses(tensor: Tensor) -> tuple[int, int]:
    """Return the address of the first byte and that after the last; strides are never negative."""
    steps = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return first, first + (steps + 1) * tensor.element_size()


def tensor_over(array: npt.NDArray[Any]) -> Tensor:
    """Return the array's own memory as a tensor, which must not be written to."""
    # Also of contiguous arrays: numpy takes no notice of the stride of an axis of one element.
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()  # strides that no tensor has
    if not array.flags.writeable:  # such as a memory-mapped cache; torch would warn
        interface = dict(array.__array_interface__)
        interface["data"] = (array.ctypes.data, False)
        # numpy keeps the namespace alive, and so the array.
        array = np.asarray(SimpleNamespace(__array_interface__=interface, owner=array))
    return torch.from_numpy(array)


def transform_obstacle(backend: str) -> str | None:
    """Say why an operator without rules for torch's transforms cannot run; None when it can."""
    if is_transformed():
        return (
            f"{backend} cannot run under a transform of torch.func or forward-mode differentiation"
        )
    return None


@constant_in_graphs
def is_transformed() -> bool:
    """Say whether a transform of torch.func or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def numba_obstacle(
    name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)
) -> str | None:
    """Say why the transformer's CPU kernels cannot read the tensor; None when they can."""
    if tensor.device.type != "cpu" or tensor.dtype not in dtypes:
        kind = dtype_name(tensor.dtype)
        *others, last = map(dtype_name, dtypes)
        rule = f"{', '.join(others)} or {last}" if others else last
        return f"numba needs {name} in {rule} on the CPU, got {kind} on {tensor.device}"
    return transform_obstacle("numba")


def triton_obstacle(name: str, tensor: Tensor) -> str | None:
    """Say why the Triton kernels cannot read the tensor; None when they can.

    They can read a CPU tensor if Triton interprets them (TRITON_INTERPRET=1), as in tests.
    """
    device = tensor.device
    if (obstacle := transform_obstacle("triton")) is not None:
        return obstacle
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return f"triton needs {name} on a CUDA device, got {device}"
    if torch.version.hip is not None:
        return "triton needs an NVIDIA GPU, got an AMD one"
    if not _is_triton_installed():
        return "triton is not installed"
    if torch.compiler.is_compiling() or not torch.cuda.is_available():
        return None  # a tensor without values
    return _device_obstacle(device)


_find_once = cache(find_spec)  # asked by every call of an operation on CUDA


@constant_in_graphs
def _is_triton_installed() -> bool:
    return _find_once("triton") is not None


@cache
def _device_obstacle(device: torch.device) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        least, given = (".".join(map(str, pair)) for pair in (LEAST_CAPABILITY, capability))
        return f"triton needs a GPU of compute capability {least} or above, got {given}"
    return None


def is_traced(tensor: Tensor) -> bool:
    """Say whether the call is traced, by anything that records operators, or has no values."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0  # make_fx, FakeTensorMode
        or _dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH)
        or type(tensor) not in (Tensor, torch.nn.Parameter)
        or torch._C._get_tracing_state() is not None  # torch.jit.trace
    )


_PLAIN = (Tensor, torch.nn.Parameter)
_PRE_DISPATCH = DispatchKey.PreDispatch
"""Its modes, such as make_fx's with pre_dispatch, have a stack of their own."""


def are_light(*tensors: Tensor) -> bool:
    """Say whether they are plain tensors, and nothing but autograd has to see what a call does.

    Then it needs no operator: no trace, transform or mode records or changes it. They are the CPU's
    or CUDA's, so `get_device` says on which device each is; other kinds of device count from 0 too.
    """
    if (
        torch.compiler.is_compiling()
        or _len_torch_dispatch_stack() > 0
        or _get_tracing_state() is not None
        or _are_functorch_transforms_active()
        or _dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH)
        or forward_ad._current_level >= 0
    ):
        return False
    for tensor in tensors:
        # A batch under vmap and what outlived a transform have no storage of their own.
        if (
            type(tensor) not in _PLAIN
            or not _has_storage(tensor)
            or tensor.is_neg()
            or tensor._is_zerotensor()
            or not (tensor.is_cuda or tensor.is_cpu)
        ):
            return False
    return True


def trace_obstacle(backend: str, tensor: Tensor) -> str | None:
    """Say why a kernel that is not an operator cannot run: a trace needs torch's operators."""
    return f"{backend} cannot be traced" if is_traced(tensor) else None
