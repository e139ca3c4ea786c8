"""The library's window and mel filters on their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ast_fast_kernels.compat.kaldi_native_fbank.conventions import check_kind, config_of
from ast_fast_kernels.compat.kaldi_native_fbank.options import (
    FrameExtractionOptions,
    MelBanksOptions,
)
from ast_fast_kernels.fbank import tables


class FeatureWindowFunction:
    """The window that options describe: `kaldi_native_fbank.FeatureWindowFunction`.

    Args:
        opts: Its type and size.
    Raises:
        ValueError: There is no such window.
    """

    def __init__(self, opts: FrameExtractionOptions) -> None:
        check_kind(opts, FrameExtractionOptions)
        self._window = tables.window(config_of(opts, MelBanksOptions(low_freq=0.0)))

    @property
    def window(self) -> list[float]:
        """The window's values, rounded to float32."""
        values: list[float] = self._window.astype(np.float32).tolist()
        return values

    def apply(self, wave: Sequence[float]) -> list[float]:
        """Return a frame's samples times the window."""
        frame = np.asarray(wave, np.float32)
        if frame.shape != self._window.shape:
            raise ValueError(f"wave must be {self._window.shape}, got {frame.shape}")
        windowed: list[float] = (frame * self._window.astype(np.float32)).tolist()
        return windowed


class MelBanks:
    """The mel filters that options describe: `kaldi_native_fbank.MelBanks`.

    Args:
        opts: The filters.
        frame_opts: The sample rate and the FFT's length.
        vtln_warp_factor: Vocal-tract-length warp factor; 1 is none. Kaldi's filters alone have it.
    Raises:
        ValueError: An option is out of range, or cannot be followed (the package's text says).
    """

    def __init__(
        self,
        opts: MelBanksOptions | None = None,
        frame_opts: FrameExtractionOptions | None = None,
        vtln_warp_factor: float = 1.0,
    ) -> None:
        mel = MelBanksOptions() if opts is None else opts
        frame = FrameExtractionOptions() if frame_opts is None else frame_opts
        check_kind(mel, MelBanksOptions)
        check_kind(frame, FrameExtractionOptions, "frame_opts")
        warp = {} if mel.is_librosa else {"vtln_warp": vtln_warp_factor}
        config = config_of(frame, mel, vtln_low=mel.vtln_low, vtln_high=mel.vtln_high, **warp)
        self._banks = tables.mel_banks(config).astype(np.float32)

    @property
    def dim(self) -> int:
        """Number of filters."""
        return len(self._banks)

    def get_matrix(self) -> npt.NDArray[np.float32]:
        """Return the filters, shape (dim, FFT length / 2 + 1)."""
        return self._banks.copy()

    def compute(self, fft_energies: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return the energies, shape (dim,), of a spectrum, shape (FFT length / 2 + 1,)."""
        spectrum = np.asarray(fft_energies, np.float32)
        if spectrum.shape != self._banks.shape[1:]:
            rule = f"{self._banks.shape[1:]}"
            raise ValueError(f"fft_energies must be {rule}, got {spectrum.shape}")
        energies: npt.NDArray[np.float32] = self._banks @ spectrum
        return energies

    @staticmethod
    def mel_scale(hz: float) -> float:
        """Return Hz as mel, on HTK's and Kaldi's scale."""
        return float(tables.mel_scale(hz))

    @staticmethod
    def inverse_mel_scale(mel: float) -> float:
        """Return mel, of HTK's and Kaldi's scale, as Hz."""
        return float(tables.inverse_mel_scale(mel))

    @staticmethod
    def mel_scale_slaney(hz: float) -> float:
        """Return Hz as mel, on the scale of Slaney's toolbox."""
        return float(tables.mel_scale(hz, "slaney"))

    @staticmethod
    def inverse_mel_scale_slaney(mel: float) -> float:
        """Return mel, of the scale of Slaney's toolbox, as Hz."""
        return float(tables.inverse_mel_scale(mel, "slaney"))
