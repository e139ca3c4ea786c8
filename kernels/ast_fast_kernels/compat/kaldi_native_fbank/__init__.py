"""kaldi-native-fbank's online features under its own names: only the import changes.

`import ast_fast_kernels.compat.kaldi_native_fbank as knf` gives `OnlineFbank`, `OnlineMfcc`,
`OnlineWhisperFbank`, `MelBanks`, `FeatureWindowFunction` and their options, with numpy and Numba
only. Frames are those of kaldi-native-fbank 1.23 up to float rounding. What differs: filters may be
empty, so that 128 bins at 16 kHz work; a NaN makes its own frames NaN, where the library raises;
dither is repeated by `np.random.seed`, where the library's cannot be; a key that no option has is
an error in `from_dict`, where the library ignores it.

Left out are `debug_mel`, `htk_mode`, the window `"sine"`, and slaney's norm with
`floor_to_int_bin`, each with an error; and the rest of the library: pitch, CMVN, deltas, splicing,
transforms, the FFT, the STFT and its inverse, `OnlineNemoFbank` and `OnlineRawAudioSamples`.
"""

from ast_fast_kernels.compat.kaldi_native_fbank.online import (
    OnlineFbank,
    OnlineMfcc,
    OnlineWhisperFbank,
)
from ast_fast_kernels.compat.kaldi_native_fbank.options import (
    FbankOptions,
    FrameExtractionOptions,
    MelBanksOptions,
    MfccOptions,
    WhisperFeatureOptions,
)
from ast_fast_kernels.compat.kaldi_native_fbank.tables import FeatureWindowFunction, MelBanks

__all__ = [
    "FbankOptions",
    "FeatureWindowFunction",
    "FrameExtractionOptions",
    "MelBanks",
    "MelBanksOptions",
    "MfccOptions",
    "OnlineFbank",
    "OnlineMfcc",
    "OnlineWhisperFbank",
    "WhisperFeatureOptions",
]
