"""lhotse's `Fbank` and `FbankConfig`, computed by `fbank`: only the import changes.

Importing this module registers the extractors with lhotse, under names of their own. Worker
processes that receive one import it themselves.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from lhotse.features.base import FeatureExtractor, register_extractor
from lhotse.features.kaldi import extractors
from torch import Tensor

from ast_fast_kernels._torch.checks import tensor_over
from ast_fast_kernels._torch.forks import on_one_thread_if_forked
from ast_fast_kernels.fbank import api, dither, eager, reference
from ast_fast_kernels.fbank.config import FbankConfig as Conventions

__all__ = ["Fbank", "FbankConfig", "UnmixedFbank", "conventions"]

Array: TypeAlias = "npt.NDArray[Any] | Tensor"


class FbankConfig(extractors.FbankConfig):  # type: ignore[misc]
    """lhotse's `FbankConfig`, with its fields and defaults."""

    @staticmethod
    def from_dict(data: dict[str, Any]) -> FbankConfig | Conventions:
        """Return the config of a YAML file: this one, or `ast_fast_kernels.FbankConfig`."""
        return Conventions(**data) if "sample_frequency" in data else FbankConfig(**data)


def conventions(config: extractors.FbankConfig) -> Conventions:
    """Return the `ast_fast_kernels.FbankConfig` of lhotse's; its energy column is no part of it.

    Raises:
        ValueError: `torchaudio_compatible_mel_scale` is False, which places the FFT's bins at other
            frequencies than their own, or a value is out of range.
    """
    if not config.torchaudio_compatible_mel_scale:
        raise ValueError(
            "torchaudio_compatible_mel_scale must be True, because no field of "
            "ast_fast_kernels.FbankConfig says what lhotse computes without it, got False"
        )
    rate = config.sampling_rate
    size = math.floor(config.frame_length * rate)
    return Conventions.preset(
        "lhotse",
        sample_frequency=rate,
        window_size=size,
        window_shift=math.floor(config.frame_shift * rate),
        n_fft=None if config.round_to_power_of_two else size,
        remove_dc_offset=config.remove_dc_offset,
        preemphasis_coefficient=config.preemph_coeff,
        window_type=config.window_type,
        dither=abs(config.dither),
        snip_edges=config.snip_edges,
        use_power=not config.use_fft_mag,
        low_freq=config.low_freq,
        high_freq=config.high_freq,
        num_mel_bins=config.num_filters,
    )


@register_extractor
class Fbank(FeatureExtractor):  # type: ignore[misc]
    """Compute filterbanks for lhotse, registered as `"ast-fast-fbank"`.

    Features are those of `lhotse.Fbank` with the same config. One thing differs: in a batch of
    clips of several lengths, each clip is mirrored at its own end, as it is alone. lhotse pads it
    with zeros there, so its last one or two frames depend on the batch.

    A clip is float32. Of several channels, the first counts, as in lhotse.

    Args:
        config: lhotse's `FbankConfig`, or the one here, or any `ast_fast_kernels.FbankConfig`;
            the default is lhotse's. If lhotse cannot mix such features, because they are no natural
            logarithms of energies, they are named `"ast-fast-fbank-unmixed"` when stored.
    Raises:
        TypeError: `config` is something else.
        ValueError: `config` says what ours cannot compute (see `conventions`).
    """

    name = "ast-fast-fbank"
    config_type = FbankConfig
    mix = staticmethod(extractors.Fbank.mix)
    compute_energy = staticmethod(extractors.Fbank.compute_energy)
    scale = staticmethod(extractors.Fbank.scale)

    def __init__(self, config: extractors.FbankConfig | Conventions | None = None) -> None:
        self.config = FbankConfig() if config is None else config
        self._energy: extractors.FbankConfig | None = None
        self._device: str | torch.device = "cpu"
        if isinstance(self.config, Conventions):
            self._conventions = self.config
            if self.config.snip_edges or self.config.center:
                warnings.warn(
                    "this config gives other numbers of frames than one for each shift, which is "
                    "what lhotse expects of features that it stores",
                    stacklevel=2,
                )
        elif isinstance(self.config, extractors.FbankConfig):
            self._conventions = conventions(self.config)
            self._energy = self.config if self.config.use_energy else None
            self._device = self.config.device
        else:
            raise TypeError(
                "config must be lhotse's FbankConfig or ast_fast_kernels.FbankConfig, got "
                f"{type(config).__name__}"
            )
        if not _can_be_mixed(self._conventions):
            self.name = UnmixedFbank.name

    @property
    def device(self) -> str | torch.device:
        """Where features are computed."""
        return self._device

    def to(self, device: str | torch.device) -> None:
        """Compute features on a device from now on."""
        self._device = device
        if not isinstance(self.config, Conventions):
            self.config.device = device

    @property
    def frame_shift(self) -> float:
        """Hop between frames, in seconds."""
        if isinstance(self.config, Conventions):
            return self.config.window_shift / self.config.sample_frequency
        seconds: float = self.config.frame_shift
        return seconds

    def feature_dim(self, sampling_rate: int) -> int:
        """Return the number of features of a frame; lhotse's own does not count the energy."""
        return self._conventions.num_mel_bins + (self._energy is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return the config's fields and, as `feature_type`, the extractor's name."""
        if isinstance(self.config, Conventions):
            return {**dataclasses.asdict(self.config), "feature_type": self.name}
        return {**self.config.to_dict(), "feature_type": self.name}

    def extract(self, samples: Array, sampling_rate: int) -> Array:
        """Return a clip's features, (num_frames, num_features), of the kind of `samples`.

        Args:
            samples: Shape (num_samples,) or (channels, num_samples).
            sampling_rate: That of the config.
        Raises:
            ValueError: The rate or the shape is another.
        """
        self._check_rate(sampling_rate)
        if samples.ndim not in (1, 2):
            raise ValueError(
                "samples must be (num_samples,) or (channels, num_samples), got "
                f"{tuple(samples.shape)}"
            )
        clip = samples if samples.ndim == 1 else samples[0]
        if isinstance(clip, Tensor):
            return self._compute(clip)
        return self._compute(tensor_over(clip)).numpy(force=True)

    def extract_batch(
        self,
        samples: Array | Sequence[Array],
        sampling_rate: int,
        lengths: Array | None = None,
    ) -> Array | list[Array]:
        """Return the features of several clips, as lhotse's `extract_batch` does.

        Args:
            samples: A list of clips, shape (num_samples,) or (1, num_samples), or a batch of equal
                lengths, shape (clips, num_samples).
            sampling_rate: That of the config.
            lengths: Number of valid samples of each clip; `samples` is then a padded tensor, shape
                (clips, num_samples).
        Returns:
            If all clips have as many frames, one array, shape (clips, num_frames, num_features),
            else a list of each clip's. That of a single clip is (num_frames, num_features), in a
            list if `samples` is one. They are tensors if a clip is one and there are no `lengths`.
        Raises:
            TypeError: There are lengths, and `samples` is no tensor, or they are no integers.
            ValueError: The rate or a shape is another, there is no clip, or a length is below 0 or
                above num_samples.
        """
        self._check_rate(sampling_rate)
        batch, counts = _gathered(samples, lengths)
        features = self._compute_batch(batch, counts)
        is_list = isinstance(samples, (list, tuple))
        gives_tensors = lengths is None and any(
            isinstance(one, Tensor) for one in (samples if is_list else [samples])
        )
        if isinstance(features, Tensor):
            whole = features if gives_tensors else features.numpy(force=True)
            if len(whole) > 1:
                return whole
            return [whole[0]] if is_list else whole[0]
        return [one if gives_tensors else one.numpy(force=True) for one in features]

    def _check_rate(self, sampling_rate: float) -> None:
        expected = self._conventions.sample_frequency
        if sampling_rate != expected:
            raise ValueError(
                f"sampling_rate must be the config's {expected:g} Hz, got {sampling_rate}; "
                "CutSet.resample changes that of cuts"
            )

    def _compute_batch(self, batch: Tensor, counts: list[int]) -> Tensor | list[Tensor]:
        """Return the features of each row's first samples, in one tensor if they are as many."""
        batch, config = batch.to(self._device), self._conventions
        frames = [config.num_frames(count) for count in counts]
        alike = all(number == frames[0] for number in frames)
        if self._energy is not None:
            rows = [self._compute(row[:count]) for row, count in zip(batch, counts, strict=True)]
            return _stacked(rows) if alike else rows
        if all(count == batch.shape[1] for count in counts):
            return api.fbank(batch, config)
        features = api.fbank(batch, config, lengths=counts)
        if alike:
            return features[:, : frames[0]]
        return [row[:number] for row, number in zip(features, frames, strict=True)]

    def _compute(self, clip: Tensor) -> Tensor:
        """Return a clip's features, (num_frames, num_features), on the extractor's device."""
        clip, config = clip.to(self._device), self._conventions
        if self._energy is None:
            return api.fbank(clip, config)
        # The energy and the filters see the same noise.
        keys = None if config.dither == 0.0 else api.draw_keys(clip)
        assert keys is None or isinstance(keys, Tensor)
        features = api.fbank_of_part(clip, config, "auto", keys)
        assert isinstance(features, Tensor)
        return _with_energy(features, clip, config, keys, self._energy)


@register_extractor
class UnmixedFbank(Fbank):
    """`Fbank` for configs whose features lhotse cannot mix, registered under a name of its own.

    lhotse knows from a stored feature's name alone how to mix it.
    """

    name = "ast-fast-fbank-unmixed"
    mix = staticmethod(FeatureExtractor.mix)
    compute_energy = staticmethod(FeatureExtractor.compute_energy)
    scale = staticmethod(FeatureExtractor.scale)


def _can_be_mixed(config: Conventions) -> bool:
    """Say whether features are natural logarithms of what can be added up."""
    plain = (config.log_factor, config.log_shift, config.log_offset) == (1.0, 0.0, 0.0)
    return config.use_log_fbank and plain and not config.needs_whole_clip


def _gathered(samples: Array | Sequence[Array], lengths: Array | None) -> tuple[Tensor, list[int]]:
    """Return clips as rows of a batch, (clips, most samples), and the samples of each."""
    if lengths is not None and not isinstance(samples, Tensor):
        raise TypeError(
            f"samples must be a tensor when lengths are given, got {type(samples).__name__}"
        )
    if isinstance(samples, (list, tuple)):
        clips = [_clip(one) for one in samples]
        if not clips:
            raise ValueError("samples must hold at least one clip, got none")
        return _padded(clips), [len(clip) for clip in clips]
    batch = samples if isinstance(samples, Tensor) else tensor_over(np.asarray(samples))
    if batch.dim() == 1:
        batch = batch[None]
    if batch.dim() == 3 and batch.shape[1] == 1:
        batch = batch[:, 0]
    if batch.dim() != 2 or len(batch) == 0:
        raise ValueError(f"samples must be (clips, num_samples), got {tuple(batch.shape)}")
    counts = eager.check_lengths(lengths, batch.shape[:1], batch)
    return batch, [batch.shape[1]] * len(batch) if counts is None else counts


def _clip(samples: Array) -> Tensor:
    """Return one clip of a list as a tensor, (num_samples,)."""
    clip = samples if isinstance(samples, Tensor) else tensor_over(np.asarray(samples))
    if clip.dim() == 2 and clip.shape[0] == 1:
        clip = clip[0]
    if clip.dim() != 1:
        raise ValueError(
            "samples must be clips of shape (num_samples,) or (1, num_samples), got "
            f"{tuple(clip.shape)}"
        )
    return clip


@on_one_thread_if_forked
def _padded(clips: list[Tensor]) -> Tensor:
    if len(clips) == 1:
        return clips[0][None]
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)


@on_one_thread_if_forked
def _stacked(features: list[Tensor]) -> Tensor:
    return torch.stack(features)


@on_one_thread_if_forked
def _with_energy(
    features: Tensor,
    clip: Tensor,
    config: Conventions,
    keys: Tensor | None,
    energy: extractors.FbankConfig,
) -> Tensor:
    """Put each frame's log energy before its features."""
    samples = clip[None]
    noise = None if keys is None else dither.noise_of(keys[None], samples, config)
    frames = reference.prepare_frames(samples, config, noise)[0]
    if not energy.raw_energy:
        frames = reference.apply_window(reference.preemphasise(frames, config), config)
    column = (frames.square().sum(dim=-1, keepdim=True) + LHOTSES_EPSILON).log()
    if energy.energy_floor > 0:
        column = column.clamp(min=math.log(energy.energy_floor))
    return torch.cat((column, features), dim=-1)


LHOTSES_EPSILON = 1e-15
"""Added to an energy before its logarithm; lhotse/features/kaldi/layers.py, _get_log_energy."""
