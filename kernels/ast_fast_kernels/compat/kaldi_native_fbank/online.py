"""Kaldi's online features: frames are computed as soon as they are complete, and kept as rows."""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._torch.optional import is_tensor
from ast_fast_kernels.compat.kaldi_native_fbank.conventions import (
    check_kind,
    config_of,
    with_whole_frames,
)
from ast_fast_kernels.compat.kaldi_native_fbank.options import (
    FbankOptions,
    FrameExtractionOptions,
    MelBanksOptions,
    MfccOptions,
    WhisperFeatureOptions,
)
from ast_fast_kernels.fbank.api import draw_keys, fbank, fbank_of_part
from ast_fast_kernels.fbank.cepstra import cepstral_matrix
from ast_fast_kernels.fbank.config import FLOAT32_EPS, FbankConfig
from ast_fast_kernels.fbank.tables import window

Floats: TypeAlias = npt.NDArray[np.float32]


class _Online(ABC):
    """Take samples in chunks, and keep the features of each frame until they are popped."""

    def __init__(self, config: FbankConfig, dim: int, frame_shift_ms: float) -> None:
        self._config = config
        # The ends are padded here, so that every part of the stream is cut like a whole clip.
        self._of_part = with_whole_frames(config)
        self._first, self._shift = config.first_sample, config.window_shift
        self._size = config.window_size
        self._dim = dim
        self._frame_shift_ms = frame_shift_ms
        self._rows: list[Floats] = []
        self._popped = 0
        self._num_samples = 0
        self._held: Floats = np.empty(0, np.float32)
        self._start = 0  # index of the first sample held: the next frame's, if it is not padding
        self._keys: Any = None  # of dither
        self._finished = False

    @property
    def dim(self) -> int:
        """Number of features of a frame."""
        return self._dim

    @property
    def frame_shift_in_seconds(self) -> float:
        """Hop between frames, in seconds."""
        return float(np.float32(self._frame_shift_ms) / np.float32(1000))

    @property
    def num_frames_ready(self) -> int:
        """Frames computed so far, with those that were popped."""
        return self._popped + len(self._rows)

    def accept_waveform(self, sampling_rate: float, waveform: Sequence[float] | Any) -> None:
        """Take the next samples, and compute the frames that they complete.

        Args:
            sampling_rate: The options' `samp_freq`, in Hz.
            waveform: Samples, shape (num_samples,): a sequence of numbers, an array or a tensor.
                They are not rescaled, whole numbers neither.
        Raises:
            TypeError: The waveform does not consist of numbers.
            ValueError: The rate is another one, or the waveform has not one dimension.
            RuntimeError: `input_finished` was called before.
        """
        samples = _as_samples(waveform)
        if not samples.size:
            return
        if self._finished:
            raise RuntimeError("accept_waveform cannot be called after input_finished")
        rate = self._config.sample_frequency
        if sampling_rate != rate and float(np.float32(sampling_rate)) != rate:
            raise ValueError(f"sampling_rate must be {rate:g} (samp_freq), got {sampling_rate:g}")
        self._num_samples += samples.size
        skipped = max(self._start - (self._num_samples - samples.size), 0)  # between frames
        samples = samples[skipped:]
        self._held = np.concatenate((self._held, samples)) if self._held.size else samples
        self._compute(self._complete_frames())
        if self._held is samples:  # whose memory the caller may use for the next chunk
            self._held = samples.copy()

    def input_finished(self) -> None:
        """End the stream, and compute the frames that waited for its end."""
        self._finished = True
        self._compute(int(self._config.num_frames(self._num_samples)))

    def is_last_frame(self, frame: int) -> bool:
        """Say whether a frame is the last one; none is before `input_finished`."""
        return self._finished and frame == self.num_frames_ready - 1

    def get_frame(self, frame: int) -> Floats:
        """Return a frame's features, shape (dim,): the memory that is kept, not a copy.

        Raises:
            IndexError: The frame is not computed yet.
            RuntimeError: It is below 0, or was popped.
        """
        place = frame - self._popped
        if place < 0:
            raise RuntimeError(f"frame must be at least {self._popped}, got {frame}")
        try:
            return self._rows[place]
        except IndexError:
            rule = f"below num_frames_ready ({self.num_frames_ready})"
            raise IndexError(f"frame must be {rule}, got {frame}") from None

    def pop(self, n: int) -> None:
        """Forget the first `n` of the frames that are kept; the others keep their numbers."""
        gone = min(max(n, 0), len(self._rows))
        del self._rows[:gone]
        self._popped += gone

    def _complete_frames(self) -> int:
        """Return how many frames, from the first, lie within the samples so far."""
        span = self._num_samples - self._first - self._size
        if span < 0:
            return 0
        complete = span // self._shift + 1
        if self._config.snip_edges:
            return complete
        return min(complete, int(self._config.num_frames(self._num_samples)))

    def _compute(self, end: int) -> None:
        """Compute the frames up to `end`, and drop the samples that no later one reads."""
        ready = self.num_frames_ready
        if end > ready:
            first = self._first + ready * self._shift
            last = self._first + (end - 1) * self._shift + self._size
            self._rows.extend(self._features(self._padded(first, last), ready))
            ready = end
        start = self._first + ready * self._shift
        if start > self._start:
            self._held = self._held[start - self._start :].copy()
            self._start = start

    def _padded(self, first: int, last: int) -> Floats:
        """Return samples by index; those beyond the ends are mirrored, the edge's repeated."""
        first, last, num_held = first - self._start, last - self._start, len(self._held)
        if first >= 0 and last <= num_held:
            return self._held[first:last]
        index = np.arange(first, last) % (2 * num_held)
        return self._held[np.where(index < num_held, index, 2 * num_held - 1 - index)]

    @abstractmethod
    def _features(self, samples: Floats, ready: int) -> Floats:
        """Return the features, (num_frames, dim), of the frames in some samples.

        Args:
            samples: From the first frame's first sample to the last one's last.
            ready: Frames before these.
        """

    def _log_mel(self, samples: Floats, ready: int) -> Floats:
        """Return the mel energies of the frames, with dither that depends on their number."""
        if self._of_part.dither == 0.0:
            return fbank(samples, self._of_part)
        if self._keys is None:
            self._keys = draw_keys(samples)
        self._keys[1] = ready
        energies: Floats = fbank_of_part(samples, self._of_part, "auto", self._keys)  # type: ignore[assignment]
        return energies

    def _log_mel_and_energy(
        self, samples: Floats, ready: int, raw: bool, floor: float
    ) -> tuple[Floats, Floats]:
        """Return the mel energies and the log energy, (num_frames,), of the same noisy frames.

        Args:
            samples: As in `_features`.
            ready: As in `_features`.
            raw: Whether the energy is taken before pre-emphasis and window.
            floor: Smaller energies are raised to this; 0 is float32's epsilon.
        """
        config = self._of_part
        shift, size = config.window_shift, config.window_size
        frames: Floats = np.lib.stride_tricks.sliding_window_view(samples, size)[::shift]
        if config.dither == 0.0:
            log_mel = self._log_mel(samples, ready)
        else:
            noise = np.random.standard_normal(frames.shape)  # noqa: NPY002 - np.random.seed's
            frames = frames + (config.dither * noise).astype(np.float32)
            log_mel = fbank(frames, config.replace(dither=0.0))[:, 0]
        if config.remove_dc_offset:
            frames = frames - frames.mean(axis=1, keepdims=True)
        if not raw:
            frames = _windowed(frames, config)
        energy = np.einsum("ij,ij->i", frames, frames)
        return log_mel, np.log(np.maximum(energy, max(FLOAT32_EPS, floor)))


class OnlineFbank(_Online):
    """Log-mel energies of a stream: `kaldi_native_fbank.OnlineFbank`.

    Args:
        opts: The conventions; later changes of them have no effect.
    Raises:
        TypeError: `opts` are other options.
        ValueError: An option is out of range, or cannot be followed (the package's text says).
    """

    def __init__(self, opts: FbankOptions) -> None:
        check_kind(opts, FbankOptions)
        guard = "log_floor" if opts.use_log_floor else "log_offset"
        floors = {"log_floor": 0.0, "log_offset": 0.0, guard: opts.eps}
        if opts.use_log_floor:
            floors["log_floor"] = max(opts.eps, 0.0)  # no energy is below 0
        config = config_of(
            opts.frame_opts,
            opts.mel_opts,
            use_log_fbank=opts.use_log_fbank,
            use_power=opts.use_power,
            **floors,
        )
        super().__init__(
            config, config.num_mel_bins + opts.use_energy, opts.frame_opts.frame_shift_ms
        )
        self._use_energy, self._raw_energy = opts.use_energy, opts.raw_energy
        self._energy_floor, self._energy_last = opts.energy_floor, opts.htk_compat

    def _features(self, samples: Floats, ready: int) -> Floats:
        if not self._use_energy:
            return self._log_mel(samples, ready)
        log_mel, energy = self._log_mel_and_energy(
            samples, ready, self._raw_energy, self._energy_floor
        )
        columns = (log_mel, energy[:, None])
        return np.concatenate(columns if self._energy_last else columns[::-1], axis=1)


class OnlineMfcc(_Online):
    """Cepstral coefficients of a stream: `kaldi_native_fbank.OnlineMfcc`.

    Args:
        opts: The conventions; later changes of them have no effect.
    Raises:
        TypeError: `opts` are other options.
        ValueError: An option is out of range, or cannot be followed (the package's text says).
    """

    def __init__(self, opts: MfccOptions) -> None:
        check_kind(opts, MfccOptions)
        config = config_of(opts.frame_opts, opts.mel_opts)
        if not 1 <= opts.num_ceps <= config.num_mel_bins:
            rule = f"from 1 to num_bins ({config.num_mel_bins})"
            raise ValueError(f"num_ceps must be {rule}, got {opts.num_ceps}")
        if not 0 <= opts.cepstral_lifter < math.inf:
            rule = "at least 0 and finite"
            raise ValueError(f"cepstral_lifter must be {rule}, got {opts.cepstral_lifter:g}")
        super().__init__(config, opts.num_ceps, opts.frame_opts.frame_shift_ms)
        self._use_energy, self._raw_energy = opts.use_energy, opts.raw_energy
        self._energy_floor = opts.energy_floor
        matrix = cepstral_matrix(config.num_mel_bins, opts.num_ceps, opts.cepstral_lifter).copy()
        self._energy_at = -1 if opts.htk_compat else 0
        if opts.htk_compat:  # C0 comes last, without the factor that makes the DCT orthonormal
            matrix[0] *= math.sqrt(2)
            matrix = np.roll(matrix, -1, axis=0)
        self._matrix = np.ascontiguousarray(matrix.T, np.float32)

    def _features(self, samples: Floats, ready: int) -> Floats:
        if not self._use_energy:
            return self._log_mel(samples, ready) @ self._matrix
        log_mel, energy = self._log_mel_and_energy(
            samples, ready, self._raw_energy, self._energy_floor
        )
        cepstra = log_mel @ self._matrix
        cepstra[:, self._energy_at] = energy
        return cepstra


class OnlineWhisperFbank(_Online):
    """Mel energies of Whisper's kind, without a logarithm: `kaldi_native_fbank.OnlineWhisperFbank`.

    Args:
        opts: Its `dim` is the number of filters; the rest is ignored.
    Raises:
        TypeError: `opts` are other options.
        ValueError: `dim` is below 1.
    """

    def __init__(self, opts: WhisperFeatureOptions) -> None:
        check_kind(opts, WhisperFeatureOptions)
        frame = FrameExtractionOptions(
            dither=0.0,
            preemph_coeff=0.0,
            remove_dc_offset=False,
            window_type="hann",
            round_to_power_of_two=False,
            snip_edges=False,
        )
        mel = MelBanksOptions(num_bins=opts.dim, low_freq=0.0, is_librosa=True)
        config = config_of(frame, mel, use_log_fbank=False)
        super().__init__(config, opts.dim, frame.frame_shift_ms)

    def _features(self, samples: Floats, ready: int) -> Floats:
        return self._log_mel(samples, ready)


def _as_samples(waveform: Any) -> Floats:
    """Return samples as float32, (num_samples,); they may share memory."""
    if type(waveform) is np.ndarray and waveform.dtype == np.float32 and waveform.ndim == 1:
        return waveform
    if type(waveform) is list:
        return _packed(waveform)
    if is_tensor(waveform):
        waveform = waveform.numpy(force=True)
    if isinstance(waveform, np.ndarray):
        if waveform.dtype.kind not in "biuf":
            raise TypeError(f"waveform must be numbers, got an array of {waveform.dtype}")
        if waveform.ndim != 1:
            raise ValueError(f"waveform must be (num_samples,), got {waveform.shape}")
        return np.asarray(waveform, np.float32)
    if not isinstance(waveform, Sequence) or isinstance(waveform, (str, bytes)):
        rule = "a sequence of numbers, an array or a tensor"
        raise TypeError(f"waveform must be {rule}, got {type(waveform).__name__}")
    return _packed(waveform)


def _packed(waveform: Sequence[float]) -> Floats:
    """Return numbers as an array; numpy and `array.array` take three times as long for a list."""
    try:
        return np.frombuffer(struct.pack(f"{len(waveform)}f", *waveform), np.float32)
    except struct.error as error:
        raise TypeError(f"waveform must consist of numbers: {error}") from None


def _windowed(frames: Floats, config: FbankConfig) -> Floats:
    """Return frames after pre-emphasis and window."""
    coefficient = np.float32(config.preemphasis_coefficient)
    previous = np.concatenate((frames[:, :1], frames[:, :-1]), axis=1)
    windowed: Floats = (frames - coefficient * previous) * window(config).astype(np.float32)
    return windowed
