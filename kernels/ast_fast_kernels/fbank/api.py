"""The filterbank that callers see: arrays to arrays, tensors to tensors."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._torch.optional import needs_torch
from ast_fast_kernels._torch.tracing import (
    constant_in_graphs,
    is_compiling,
    is_loaded,
    outside_compilation,
)
from ast_fast_kernels.fbank import arrays
from ast_fast_kernels.fbank.config import FbankConfig

if TYPE_CHECKING:
    from torch import Tensor

    from ast_fast_kernels.fbank.checks import Lengths

_AST = FbankConfig()


@overload
def fbank(
    waveform: Tensor,
    config: FbankConfig = ...,
    *,
    lengths: Lengths | None = ...,
    out: Tensor | None = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def fbank(
    waveform: npt.NDArray[Any],
    config: FbankConfig = ...,
    *,
    lengths: Lengths | None = ...,
    out: npt.NDArray[Any] | None = ...,
    backend: str = ...,
) -> npt.NDArray[Any]: ...
def fbank(
    waveform: Tensor | npt.NDArray[Any],
    config: FbankConfig = _AST,
    *,
    lengths: Lengths | None = None,
    out: Tensor | npt.NDArray[Any] | None = None,
    backend: str = "auto",
) -> Tensor | npt.NDArray[Any]:
    """Compute log-mel filterbank energies of a batch of waveforms.

    Every leading dimension is a batch dimension; `kaldi.fbank` reads a 2-D input as (channels,
    samples) of one clip. The last dimension of the result is mel, also with the conventions of
    libraries that return (num_mel_bins, num_frames). A NaN or infinite sample makes only its own
    frames NaN, or its whole clip with `top_db` or `norm_per_feature`. Compiled and exported code
    calls one operator, `torch.ops.ast_fast.fbank`, which gives the same bits (`ops.py`).

    Dither is noise of each clip's own key, a number that is drawn from torch's generator for a
    tensor and from numpy's global one for an array, clip after clip. So `torch.manual_seed` or
    `np.random.seed` repeats it, in every backend, and it depends neither on threads nor on how
    clips are batched.

    Args:
        waveform: Samples, shape (..., num_samples), numpy or torch: float32 or float64 (not
            rescaled) or int16 (read as sample / 32768).
        config: The conventions; the default is the Audio Spectrogram Transformer's.
        lengths: Number of valid samples in each waveform, shape (...). Later frames are
            `config.log_silence`; `top_db` raises them like silence in their clip.
            `config.num_frames(lengths)` gives the number of valid frames. Triton clamps lengths on
            a GPU to the valid range instead of checking them, which would wait for the GPU.
        out: Contiguous array or tensor that receives the result and is returned. It may share
            memory with the waveform, which is then overwritten, but read before.
        backend: `"auto"`, `"reference"` (plain torch), `"numba"` (CPU) or `"triton"` (CUDA); the
            last two compute in float32. Numba's gradient is compiled too, without dither; Triton's
            is the reference's formula.
    Returns:
        Energies, shape (..., num_frames, num_mel_bins), of the waveform's kind, device and dtype
        (float32 for int16).
    Raises:
        TypeError: An argument's type or dtype is none of those above.
        ValueError: A shape, a length, `out` or `backend` does not fit.
        RuntimeError: The backend asked for cannot run this input.
        ImportError: Numba cannot run this input, and torch is not installed.
    """
    if isinstance(waveform, np.ndarray):
        if lengths is None and not is_compiling():
            again = arrays.compute_again(waveform, config, out, backend)
            if again is not None:
                return again
        return _fbank_of_array(waveform, config, lengths, out, backend)
    if not hasattr(_loaded, "tensors"):
        _load_tensors(type(waveform).__name__)
    log_mel: Tensor = _loaded.tensors.compute(waveform, config, lengths, out, backend)
    return log_mel


def fbank_of_part(
    waveform: Tensor | npt.NDArray[Any],
    config: FbankConfig,
    backend: str,
    keys: Tensor | npt.NDArray[np.int64] | None,
) -> Tensor | npt.NDArray[Any]:
    """Do what `fbank` does for a part of a stream, with the dither of given keys, (..., 2)."""
    if isinstance(waveform, np.ndarray):
        assert keys is None or isinstance(keys, np.ndarray)
        return _fbank_of_array(waveform, config, None, None, backend, keys)
    _load_tensors(type(waveform).__name__)
    log_mel: Tensor = _loaded.tensors.compute(waveform, config, None, None, backend, keys)
    return log_mel


def draw_keys(waveform: Tensor | npt.NDArray[Any]) -> Tensor | npt.NDArray[np.int64]:
    """Draw the keys that `fbank` would for dither: an array's from numpy, a tensor's from torch."""
    if isinstance(waveform, np.ndarray):
        return arrays.draw_keys(waveform.shape[:-1])
    _load_tensors(type(waveform).__name__)
    keys: Tensor = _loaded.tensors.draw_keys(waveform)
    return keys


def chosen_backend(
    waveform: Tensor | npt.NDArray[Any], config: FbankConfig = _AST, *, backend: str = "auto"
) -> str:
    """Return the backend that `fbank` runs for these arguments; raise the same errors."""
    if isinstance(waveform, np.ndarray):
        chosen = arrays.chosen_backend(waveform, config, backend)
        if chosen == "numba":
            return chosen
        waveform, backend = _as_tensor(waveform, config, chosen), chosen
    _load_tensors(type(waveform).__name__)
    of_tensor: str = _loaded.tensors.chosen_backend(waveform, config, backend)
    return of_tensor


# A module, because dynamo looks up its attributes on each call; as in `_dispatch`.
_loaded: Any = ModuleType("ast_fast_kernels.fbank._loaded")


@constant_in_graphs
def _load_tensors(kind: str) -> None:
    """Import what needs torch; for a tensor, torch is loaded already."""
    if not is_loaded():
        raise TypeError(f"waveform must be a tensor or a numpy array, got {kind}")
    _loaded.tensors = import_module("ast_fast_kernels.fbank.tensors")


@outside_compilation
def _fbank_of_array(
    waveform: npt.NDArray[Any],
    config: FbankConfig,
    lengths: Lengths | None,
    out: Any,
    backend: str,
    keys: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[Any]:
    chosen = arrays.chosen_backend(waveform, config, backend)
    if out is not None:
        arrays.check_out(out, waveform, config)
    counts = arrays.check_lengths(lengths, waveform)
    if config.dither != 0.0 and keys is None:
        keys = arrays.draw_keys(waveform.shape[:-1])
    if chosen == "numba":
        log_mel = arrays.compute(waveform, config, counts, out, keys)
        if lengths is None and log_mel.size:
            arrays.note_passed(waveform, config, backend)
        return log_mel
    samples = _as_tensor(waveform, config, chosen)
    import torch

    from ast_fast_kernels.fbank import eager

    into = None if out is None else torch.from_numpy(out)
    of_clips = None if keys is None else torch.from_numpy(keys)
    energies = eager.compute(samples, config, counts, into, chosen, of_clips)
    return energies.numpy() if out is None else out


def _as_tensor(waveform: npt.NDArray[Any], config: FbankConfig, chosen: str) -> Tensor:
    """Return an array's memory as a tensor, for a backend that needs one."""
    try:
        from ast_fast_kernels._torch.checks import tensor_over
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        obstacle = arrays.obstacle(waveform, config)
        reason = "" if obstacle is None else f"{obstacle}; "
        if waveform.dtype == np.float64:
            reason += "waveform.astype(np.float32) needs nothing more, "
        raise needs_torch(f'{reason}backend "{chosen}"') from error
    return tensor_over(waveform)
