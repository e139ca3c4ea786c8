"""Mel-frequency cepstral coefficients: a cosine transform of the log-mel filterbank."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels._torch.tracing import outside_compilation
from ast_fast_kernels.fbank.api import fbank
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.scalars import as_number, as_whole

if TYPE_CHECKING:
    from torch import Tensor

    from ast_fast_kernels.fbank.checks import Lengths

_KALDI = FbankConfig.preset("kaldi")


@overload
def mfcc(
    waveform: Tensor,
    config: FbankConfig = ...,
    *,
    num_ceps: int = ...,
    cepstral_lifter: float = ...,
    lengths: Lengths | None = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def mfcc(
    waveform: npt.NDArray[Any],
    config: FbankConfig = ...,
    *,
    num_ceps: int = ...,
    cepstral_lifter: float = ...,
    lengths: Lengths | None = ...,
    backend: str = ...,
) -> npt.NDArray[Any]: ...
@outside_compilation
def mfcc(
    waveform: Tensor | npt.NDArray[Any],
    config: FbankConfig = _KALDI,
    *,
    num_ceps: int = 13,
    cepstral_lifter: float = 22.0,
    lengths: Lengths | None = None,
    backend: str = "auto",
) -> Tensor | npt.NDArray[Any]:
    """Compute mel-frequency cepstral coefficients of a batch of waveforms.

    Takes the orthonormal DCT-II of `fbank` and lifters it as Kaldi does. The first coefficient is
    the DCT's; Kaldi's default is the frame's energy. Differentiable where `fbank` is.

    Args:
        waveform: As in `fbank`.
        config: The conventions, with a logarithm; the default is Kaldi's.
        num_ceps: Coefficients to keep, from 1 to `config.num_mel_bins`.
        cepstral_lifter: Period of the lifter that evens out the coefficients' sizes; 0 is none.
        lengths: As in `fbank`; later frames have the coefficients of silence.
        backend: As in `fbank`.
    Returns:
        Coefficients, shape (..., num_frames, num_ceps), of the waveform's kind, device and dtype
        (float32 for int16).
    Raises:
        TypeError: As in `fbank`, or `num_ceps` or `cepstral_lifter` is no number.
        ValueError: As in `fbank`, or `num_ceps` or `cepstral_lifter` is out of range, or the config
            takes no logarithm.
    Source: kaldi/src/feat/feature-mfcc.cc; mel-computations.cc, ComputeLifterCoeffs.
    """
    log_mel = fbank(waveform, config, lengths=lengths, backend=backend)
    if not config.use_log_fbank:
        raise ValueError("config must have use_log_fbank True, got False")
    num_ceps = as_whole("num_ceps", num_ceps)
    if not 1 <= num_ceps <= config.num_mel_bins:
        raise ValueError(
            f"num_ceps must be from 1 to num_mel_bins ({config.num_mel_bins}), got {num_ceps}"
        )
    cepstral_lifter = as_number("cepstral_lifter", cepstral_lifter)
    if not 0 <= cepstral_lifter < float("inf"):
        raise ValueError(f"cepstral_lifter must be at least 0 and finite, got {cepstral_lifter}")
    matrix = cepstral_matrix(config.num_mel_bins, num_ceps, cepstral_lifter)
    if isinstance(log_mel, np.ndarray):
        return np.asarray(log_mel @ matrix.T.astype(log_mel.dtype))
    import torch  # loaded already: the waveform is a tensor

    from ast_fast_kernels._torch.autocast import exact_product

    with one_thread_if_forked():
        columns = torch.tensor(matrix.T, dtype=log_mel.dtype, device=log_mel.device)
        return exact_product(log_mel, columns)


@lru_cache(maxsize=32)
def cepstral_matrix(
    num_mel_bins: int, num_ceps: int, cepstral_lifter: float
) -> npt.NDArray[np.float64]:
    """Return the liftered orthonormal DCT-II, read-only, shape (num_ceps, num_mel_bins)."""
    index = np.arange(num_ceps)[:, None]
    matrix = np.cos(np.pi / num_mel_bins * index * (np.arange(num_mel_bins) + 0.5))
    matrix *= np.sqrt(np.where(index == 0, 1.0, 2.0) / num_mel_bins)
    if cepstral_lifter > 0:
        matrix *= 1.0 + 0.5 * cepstral_lifter * np.sin(np.pi * index / cepstral_lifter)
    matrix.setflags(write=False)
    return matrix
