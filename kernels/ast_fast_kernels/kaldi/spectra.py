"""`spectrogram`: every bin of each frame's spectrum, and its energy."""

from __future__ import annotations

from torch import Tensor

from ast_fast_kernels.fbank.config import WindowType
from ast_fast_kernels.kaldi.calls import compute


def spectrogram(
    waveform: Tensor,
    blackman_coeff: float = 0.42,
    channel: int = -1,
    dither: float = 0.0,
    energy_floor: float = 1.0,
    frame_length: float = 25.0,
    frame_shift: float = 10.0,
    min_duration: float = 0.0,
    preemphasis_coefficient: float = 0.97,
    raw_energy: bool = True,
    remove_dc_offset: bool = True,
    round_to_power_of_two: bool = True,
    sample_frequency: float = 16000.0,
    snip_edges: bool = True,
    subtract_mean: bool = False,
    window_type: WindowType = "povey",
) -> Tensor:
    """Compute Kaldi's log power spectrogram of one channel, as torchaudio does.

    The logarithm of each bin's power is natural, and floored at float32's epsilon. Column 0 is the
    frame's log energy, in place of the bin at 0 Hz. Everything else is as in `fbank`: numbers of
    any type, errors, backends, int16, gradients, `torch.compile`.

    Args:
        waveform: Samples, shape (channels, num_samples), as in `fbank`.
        blackman_coeff: Constant coefficient of the generalised Blackman window.
        channel: Channel to take; below 0, the first.
        dither: Factor on the Gaussian noise added to each frame, which is torchaudio's for the same
            state of torch's generator; 0 is none.
        energy_floor: Floor of the energy, not of the bins; 0 is none.
        frame_length: Length of a frame, in milliseconds.
        frame_shift: Hop between frames, in milliseconds.
        min_duration: Shortest duration, in seconds; a shorter clip gives an empty tensor, (0,).
        preemphasis_coefficient: Per-frame pre-emphasis; 0 is none.
        raw_energy: Whether the energy is taken before pre-emphasis and window.
        remove_dc_offset: Whether each frame's mean is subtracted.
        round_to_power_of_two: Whether frames are zero-padded to a power of two for the FFT.
        sample_frequency: Sample rate, in Hz.
        snip_edges: Whether only whole frames are taken; False mirrors the clip at both ends.
        subtract_mean: Whether each column's mean over the clip is subtracted.
        window_type: Shape of the (symmetric) window.
    Returns:
        Log powers, shape (num_frames, n_fft // 2 + 1), where n_fft is the smallest power of two
        that holds a frame, or a frame's length without `round_to_power_of_two`. On the waveform's
        device and of its dtype (float32 for int16); (0,) for a clip below `min_duration`.
    Raises:
        TypeError: As in `fbank`.
        ValueError: As in `fbank`.
    Source: torchaudio 2.9.1, compliance/kaldi.py, spectrogram.
    """
    given = (
        blackman_coeff, channel, dither, energy_floor, frame_length, frame_shift, min_duration,
        preemphasis_coefficient, raw_energy, remove_dc_offset, round_to_power_of_two,
        sample_frequency, snip_edges, subtract_mean, window_type,
    )  # fmt: skip
    return compute(waveform, "spectrogram", given)
