"""All of torchaudio.compliance.kaldi, with the same names and signatures: only the import changes.

`fbank`, `mfcc` and `spectrogram` are compiled. The names that begin with an underscore are
torchaudio's private ones, for the projects that call them.
"""

from ast_fast_kernels._torch.optional import needs_torch

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    raise needs_torch("ast_fast_kernels.kaldi") from error

from ast_fast_kernels.kaldi.cepstra import (
    _get_dct_matrix as _get_dct_matrix,
)
from ast_fast_kernels.kaldi.cepstra import (
    _get_lifter_coeffs as _get_lifter_coeffs,
)
from ast_fast_kernels.kaldi.cepstra import mfcc
from ast_fast_kernels.kaldi.filterbank import fbank
from ast_fast_kernels.kaldi.framing import (
    BLACKMAN as BLACKMAN,
)
from ast_fast_kernels.kaldi.framing import (
    EPSILON as EPSILON,
)
from ast_fast_kernels.kaldi.framing import (
    HAMMING as HAMMING,
)
from ast_fast_kernels.kaldi.framing import (
    HANNING as HANNING,
)
from ast_fast_kernels.kaldi.framing import (
    MILLISECONDS_TO_SECONDS as MILLISECONDS_TO_SECONDS,
)
from ast_fast_kernels.kaldi.framing import (
    POVEY as POVEY,
)
from ast_fast_kernels.kaldi.framing import (
    RECTANGULAR as RECTANGULAR,
)
from ast_fast_kernels.kaldi.framing import (
    WINDOWS as WINDOWS,
)
from ast_fast_kernels.kaldi.framing import (
    _feature_window_function as _feature_window_function,
)
from ast_fast_kernels.kaldi.framing import (
    _get_epsilon as _get_epsilon,
)
from ast_fast_kernels.kaldi.framing import (
    _get_log_energy as _get_log_energy,
)
from ast_fast_kernels.kaldi.framing import (
    _get_strided as _get_strided,
)
from ast_fast_kernels.kaldi.framing import (
    _get_waveform_and_window_properties as _get_waveform_and_window_properties,
)
from ast_fast_kernels.kaldi.framing import (
    _get_window as _get_window,
)
from ast_fast_kernels.kaldi.framing import (
    _next_power_of_2 as _next_power_of_2,
)
from ast_fast_kernels.kaldi.framing import (
    _subtract_column_mean as _subtract_column_mean,
)
from ast_fast_kernels.kaldi.mel import (
    get_mel_banks,
    inverse_mel_scale,
    inverse_mel_scale_scalar,
    mel_scale,
    mel_scale_scalar,
    vtln_warp_freq,
    vtln_warp_mel_freq,
)
from ast_fast_kernels.kaldi.spectra import spectrogram

__all__ = [
    "fbank",
    "get_mel_banks",
    "inverse_mel_scale",
    "inverse_mel_scale_scalar",
    "mel_scale",
    "mel_scale_scalar",
    "mfcc",
    "spectrogram",
    "vtln_warp_freq",
    "vtln_warp_mel_freq",
]
