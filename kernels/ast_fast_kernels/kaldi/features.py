"""What the three feature functions have in common: noise, filters, energy, cepstra, mean."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.autocast import exact_product
from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels.fbank import api, drawn, eager, reference
from ast_fast_kernels.fbank.cepstra import cepstral_matrix
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.energy import least_energy, log_energy
from ast_fast_kernels.kaldi.arguments import Settings, read, read_clip, take_channel


def begin(
    waveform: Tensor, function: str, given: tuple[Any, ...]
) -> tuple[Tensor, Settings | None]:
    """Check a call, and return what `run` takes.

    Below `min_duration` that is the result, (0,), and None: only the framing is checked then.
    """
    clip = read_clip(function, given)
    samples = take_channel(waveform, clip.channel)
    eager.check_waveform(samples, clip.framing)
    if samples.shape[0] < clip.least:
        return reference.as_floating(samples[:0]), None
    return samples, read(function, given, waveform.dtype == torch.int16)


def run(samples: Tensor, settings: Settings, noise: Tensor | None = None) -> Tensor:
    """Return the features of one channel, shape (num_frames, settings.num_columns).

    Args:
        samples: Shape (num_samples,), checked.
        settings: The call's.
        noise: Of variance 1, shape (num_frames, window_size); None draws it if there is dither.
    """
    config = settings.config
    if settings.upside_down:  # the noise: the features do not see a waveform's sign
        with one_thread_if_forked():
            samples = -reference.as_floating(samples)
    if noise is None:
        noise, backend = drawn.draw(samples, config, as_words=not settings.energy)
    else:
        backend = drawn.backend_of(samples, config)
    features = log_mel(samples, config, noise, backend)
    if not (settings.energy or settings.num_ceps or settings.subtract_mean):
        return features
    if _is_compiled(samples, config):
        return _finish_compiled(samples, features, settings, noise)
    with one_thread_if_forked():
        energy = None
        if settings.energy:
            energy = log_energy(
                samples,
                config,
                is_raw=settings.raw_energy,
                floor=settings.energy_floor,
                noise=noise,
            )
        features = _arranged(features, energy, settings)
        return features - features.mean(dim=0) if settings.subtract_mean else features


def _is_compiled(samples: Tensor, config: FbankConfig) -> bool:
    needs_gradient = samples.requires_grad and torch.is_grad_enabled()
    return not needs_gradient and eager.chosen_backend(samples, config, "auto") == "numba"


def _finish_compiled(
    samples: Tensor, features: Tensor, settings: Settings, noise: Tensor | None
) -> Tensor:
    """Do by a kernel and numpy, which have no threads to wait for, what is left to do."""
    # Imported late: it loads Numba.
    from ast_fast_kernels.fbank import numba_columns

    energy = columns = None
    if settings.energy:
        values = checks.dense(samples.detach().resolve_neg()).numpy()
        if samples.dtype == torch.int16:
            values = values.astype(np.float32) * np.float32(2.0**-15)
        energy = numba_columns.Energy(
            values,
            settings.raw_energy,
            least_energy(settings.energy_floor),
            settings.energy_column,
            None if noise is None else noise.numpy(),
        )
    if settings.num_ceps:
        columns = _columns(*_transform(settings), np.float32, numba_columns.LANES)
    out = numba_columns.finish(
        features.numpy(),
        columns,
        settings.num_ceps,
        energy,
        settings.config,
        one_more=settings.energy and settings.has_more_with_energy,
    )
    if settings.subtract_mean:
        out -= out.mean(axis=0, dtype=np.float64).astype(np.float32)
    return torch.from_numpy(out)


def log_mel(samples: Tensor, config: FbankConfig, noise: Tensor | None, backend: str) -> Tensor:
    """Return what the filterbank makes of one channel, with what `drawn.draw` returned for it."""
    if noise is None:
        return api.fbank(samples, config)
    return drawn.log_mel_of(samples, config, noise, backend)


def _arranged(features: Tensor, energy: Tensor | None, settings: Settings) -> Tensor:
    """Return the columns of a call's result, from the filterbank's and the energy."""
    if settings.num_ceps:
        features = exact_product(features, _cepstral_columns(features, settings))
    if energy is None:
        return features
    energy = energy[:, None]
    if settings.has_more_with_energy:
        parts = (features, energy) if settings.energy_last else (energy, features)
        return torch.cat(parts, dim=1)
    if not (features.requires_grad or energy.requires_grad):
        place = settings.energy_column
        features[:, place : place + 1] = energy
        return features
    rest = features[:, :-1] if settings.energy_last else features[:, 1:]
    return torch.cat((rest, energy) if settings.energy_last else (energy, rest), dim=1)


def before_arranged(grad: Tensor, settings: Settings) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of the filterbank's energies, and of the energy, from the result's."""
    if settings.subtract_mean:
        grad = grad - grad.mean(dim=0)
    energy = None
    if settings.energy:
        place = settings.energy_column
        energy = grad[:, place]
        if settings.has_more_with_energy:
            grad = grad[:, :-1] if settings.energy_last else grad[:, 1:]
        else:
            grad = grad.clone()
            grad[:, place] = 0.0
    if settings.num_ceps:
        grad = exact_product(grad, _cepstral_columns(grad, settings).T)
    return grad, energy


def _cepstral_columns(like: Tensor, settings: Settings) -> Tensor:
    """Return what makes cepstra of log-mel energies, shape (num_mel_bins, num_ceps)."""
    dtype = np.float32 if like.dtype == torch.float32 else np.float64
    return torch.from_numpy(_columns(*_transform(settings), dtype)).to(like.device)


def _transform(settings: Settings) -> tuple[int, int, float, bool, bool]:
    lifter = abs(settings.cepstral_lifter)  # Kaldi's does not see its sign
    num_mel_bins, last = settings.config.num_mel_bins, settings.energy_last
    return num_mel_bins, settings.num_ceps, lifter, last, last and not settings.energy


@lru_cache(maxsize=32)
def _columns(
    num_mel_bins: int,
    num_ceps: int,
    lifter: float,
    zeroth_last: bool,
    zeroth_larger: bool,
    dtype: type[np.floating[Any]],
    multiple: int = 1,
) -> npt.NDArray[Any]:
    """Return the transform, with as many columns of zeros as make a multiple."""
    matrix = np.array(cepstral_matrix(num_mel_bins, num_ceps, lifter))
    if zeroth_larger:
        matrix[0] *= math.sqrt(2)  # HTK's
    if zeroth_last:
        matrix = np.roll(matrix, -1, axis=0)
    columns = np.pad(matrix.T, ((0, 0), (0, -num_ceps % multiple)))
    return np.ascontiguousarray(columns, dtype)
