"""The filterbank of one clip with dither that is drawn as torchaudio draws it, frame by frame."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch.forks import on_one_thread_if_forked
from ast_fast_kernels.fbank import eager
from ast_fast_kernels.fbank.config import FbankConfig


@on_one_thread_if_forked
def draw(
    samples: Tensor, config: FbankConfig, *, as_words: bool = False
) -> tuple[Tensor | None, str]:
    """Draw the noise of a clip's frames by torch.randn, and choose the backend that adds it.

    Args:
        samples: Shape (num_samples,), checked.
        config: The conventions.
        as_words: Whether the noise is for that backend alone: then it may be the generator's words
            (`numba_randn.draw_words`), which the backend's threads make into normals.
    Returns:
        Noise of variance 1, shape (num_frames, window_size), and the backend; None and `"auto"`
        without dither. The thread's next draw may overwrite the noise.
    Raises:
        RuntimeError: The backend asked for cannot run this input.
    """
    if config.dither == 0.0:
        return None, "auto"
    backend = backend_of(samples, config)
    shape = (config.num_frames(samples.shape[0]), config.window_size)
    if backend != "numba":
        dtype = eager.result_dtype(samples)
        return torch.randn(shape, dtype=dtype, device=samples.device), backend
    # Imported late: they load Numba.
    from ast_fast_kernels._cpu.simd import host_lanes
    from ast_fast_kernels.fbank import numba_randn

    draw_noise = numba_randn.draw_words if as_words else numba_randn.draw
    noise = draw_noise(math.prod(shape), room=host_lanes() * config.window_size)
    return noise.view(shape), backend


def backend_of(samples: Tensor, config: FbankConfig) -> str:
    """Return the backend that adds the noise; a gradient is the reference's."""
    backend = eager.chosen_backend(samples, config, "auto")
    needs_gradient = samples.requires_grad and torch.is_grad_enabled()
    if backend == "reference" or not needs_gradient:
        return backend
    if _dispatch.requested_backend("fbank", "auto") == backend:
        raise RuntimeError(
            f'{backend} has no gradient of kaldi.fbank with dither; use backend="reference"'
        )
    return "reference"


def log_mel_of(samples: Tensor, config: FbankConfig, noise: Tensor, backend: str) -> Tensor:
    """Return log-mel energies, shape (num_frames, num_mel_bins), with what `draw` returned."""
    return eager.compute(samples, config, None, None, backend, noise=noise)
