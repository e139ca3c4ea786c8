"""Tables of the presets: each convention in words, and how far it is from every other.

python -m ast_fast_kernels.testing.conventions > docs/conventions.md
python -m ast_fast_kernels.testing.conventions --short   the table in docs/guides/filterbank.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ast_fast_kernels import fbank
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.presets import PRESETS, PresetName
from ast_fast_kernels.testing.signals import make_signal

SIGNAL, SECONDS = "bursts", 5.0
COMMON: dict[str, object] = {
    "sample_frequency": 16000.0,
    "window_shift": 160,
    "num_mel_bins": 80,
    "use_log_fbank": True,
    "log_type": "ln",
    "top_db": 0.0,
    "output_shift": 0.0,
    "output_scale": 1.0,
    "norm_per_feature": False,
}
"""What features need in common to be compared bin by bin."""

WORDS = {
    "povey": "Povey",
    "hanning": "Hann",
    "hamming": "Hamming",
    "htk": "HTK",
    "slaney": "Slaney",
    "ln": "ln",
    "log10": "log10",
    "db": "10 log10",
}


LIBRARIES: dict[str, str] = {
    "ast": "the original AST and transformers' `ASTFeatureExtractor`",
    "kaldi": "torchaudio's `compliance.kaldi.fbank`, kaldi-native-fbank",
    "seed": "this project's first design",
    "lhotse": "`lhotse.Fbank`",
    "librosa": "librosa's `feature.melspectrogram` through `power_to_db`",
    "melspectrogram": "torchaudio's `transforms.MelSpectrogram`",
    "nemo": "NeMo's `AudioToMelSpectrogramPreprocessor`",
    "python_speech_features": "python_speech_features' `logfbank`",
    "speechbrain": "speechbrain's `lobes.features.Fbank`",
    "vggish": "VGGish's `log_mel_spectrogram`",
    "whisper": "OpenAI's Whisper, transformers' `WhisperFeatureExtractor`",
}
"""What each preset reproduces."""


def main(arguments: Sequence[str] = ()) -> None:
    """Print both tables, or with --short the one in docs/guides/filterbank.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    if parser.parse_args(arguments).short:
        print("\n".join(short_table()))
    else:
        print_tables()


def short_table() -> list[str]:
    """Return the lines of a table of presets: the library of each, and how far it is from ast."""
    titles = ("preset", "as in", "5 s give", "difference from `ast`", "without the bins' means")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    matrix = differences()
    for i, name in enumerate(names()):
        far = [f"{value:.2f}" if i else "" for value in (matrix[0, i], matrix[i, 0])]
        cells = (f"`{name}`", LIBRARIES[name], size(FbankConfig.preset(name)), *far)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def print_tables() -> None:
    """Print docs/conventions.md."""
    configs = {name: FbankConfig.preset(name) for name in names()}
    print(INTRODUCTION)
    print("| preset | 5 s give | frames | window | before it | spectrum | mel | logarithm |")
    print("|---|---|---|---|---|---|---|---|")
    for name, config in configs.items():
        print(f"| {' | '.join((name, size(config), *describe(config)))} |")
    print(AGREEMENT.rstrip())
    print(DIFFERENCES)
    print(f"| | {' | '.join(configs)} |")
    print("|---" * (len(configs) + 1) + "|")
    for name, row in zip(configs, differences(), strict=True):
        cells = [f"{value:.2f}" if value else "" for value in row]
        print(f"| **{name}** | {' | '.join(cells)} |")


INTRODUCTION = """# Conventions

Made by `python -m ast_fast_kernels.testing.conventions`. Each row is `FbankConfig.preset(name)`.
"""

AGREEMENT = """
## How far they follow

`FbankConfig.preset(name, **changes)` follows its library through changes: a field that means an
option of the library means the same there. What the library derives from an option follows too,
unless it is changed as well. What no field expresses is an error.

| preset | derives | refuses |
|---|---|---|
| lhotse | Blackman window: periodic; samples: `floor(seconds · rate)` | a shift above the window |
| librosa | window: as long as `n_fft` | `center=False` with a window below `n_fft` |
| melspectrogram | window: as long as `n_fft`; shift: half the window | the same |
| nemo | samples: `int(seconds · rate)` | |
| python_speech_features | samples: rounded to the nearest | a window above `n_fft` (512) |
| speechbrain | samples: rounded to the nearest, half to even | a window above `n_fft` (400) |
| vggish | samples: rounded to the nearest, half to even | `high_freq` (7500) above Nyquist |
| whisper | window and `n_fft`: as long as each other | `high_freq` (8000) above Nyquist |

`center=False` of librosa and melspectrogram sets `snip_edges`. FFTs have an even length.
`FbankConfig.replace` derives nothing.

The tests hold each preset to its library, in natural logarithms, maximum and mean; `melspectrogram`
has no logarithm, so there it is the relative norm.

| preset | beside | on | within |
|---|---|---|---|
| ast | transformers' `ASTFeatureExtractor`, live | signals, clips, 6 draws | 4e-3, 1e-5 |
| kaldi | torchaudio, golden | signals, clips, 800 draws | 4e-3, 1e-5 |
| kaldi | kaldi-native-fbank, live | signals, clips, 150 draws | 4e-3, 1e-5 |
| lhotse | lhotse, live | signals, clips, 150 draws | 4e-3, 1e-5 |
| librosa | librosa, live | signals, clips, 100 draws | 4e-3, 1e-5 |
| melspectrogram | torchaudio, golden | signals, 120 draws | 2e-5 |
| nemo | a transcript of its code, golden | signals | 4e-3, 1e-5 |
| python_speech_features | itself, live | signals, clips, 150 draws | 4e-3, 1e-5 |
| speechbrain | itself, golden | signals, 100 draws | 4e-3, 1e-5 |
| vggish | a transcript of its code, golden | signals | 4e-3, 1e-5 |
| whisper | transformers' `WhisperFeatureExtractor`, live | signals, clips, 60 draws | 4e-3, 1e-5 |

Draws are over windows, rates from 8 to 48 kHz, lengths, bins, norms, mel scales and frequency
limits (`tests/kernels/test_conventions_grid.py`, `test_conventions.py`, `test_kaldi.py`). lhotse's
own filters differ by a float32 logarithm's last bits from machine to machine: with 128 filters at
8 kHz, most of them narrower than an FFT bin, the mean difference reaches 3e-5.
"""

DIFFERENCES = f"""
## How far apart they are

Mean absolute difference of natural-log mel energies over {SECONDS:g} s of the test signal
`{SIGNAL}` (harmonics in syllables over noise 60 dB down). All have 80 bins at 16 kHz every 10 ms,
and no step after the logarithm; frames are matched by their centres. Above the diagonal is the
plain difference. Below it, each bin's mean difference is removed first, as a normalisation per bin
would do.
"""


def names() -> list[PresetName]:
    """Return the presets, the default first."""
    return list(PRESETS)  # type: ignore[arg-type]


def size(config: FbankConfig) -> str:
    """Say how many frames and bins 5 s give."""
    return f"{config.num_frames(round(5 * config.sample_frequency))} × {config.num_mel_bins}"


def describe(config: FbankConfig) -> tuple[str, str, str, str, str, str]:
    """Say framing, window, what comes before it, spectrum, filters and logarithm in words."""
    return (
        _framing(config),
        _window(config),
        _before(config),
        _spectrum(config),
        _filters(config),
        _logarithm(config),
    )


def differences() -> npt.NDArray[np.float64]:
    """Return the matrix of differences, shape (num_presets, num_presets)."""
    waveform = make_signal(SIGNAL, round(SECONDS * 16000))
    configs = [FbankConfig.preset(name, **COMMON) for name in names()]
    # Frame m of AST's is at 160 m + 200 samples; others are matched to the nearest.
    ast_centre = configs[0].first_sample + configs[0].window_size / 2
    features = []
    for config in configs:
        centre = config.first_sample + config.window_size / 2
        skipped = max(round((ast_centre - centre) / config.window_shift), 0)
        features.append(fbank(waveform, config)[skipped:])
    count = min(len(one) for one in features)
    stacked = np.stack([one[:count] for one in features])  # (presets, frames, bins)
    matrix = np.zeros((len(configs), len(configs)))
    for i, one in enumerate(stacked):
        for j, other in enumerate(stacked):
            difference = one - other
            if i > j:
                difference = difference - difference.mean(axis=0)
            matrix[i, j] = np.abs(difference).mean()
    return matrix


def _framing(config: FbankConfig) -> str:
    if config.snip_edges:
        words = "whole, and a zero-padded tail" if config.pad_tail else "whole"
    else:
        beyond = {"symmetric": "mirrored", "reflect": "reflected", "constant": "zeros"}
        where = "centred" if config.center else "one per shift"
        if config.left_padding == "lhotse":
            where += f" from {-config.first_sample} before"
        words = f"{where}, {beyond[config.pad_mode]} beyond"
    return f"{words}, last dropped" if config.drop_last_frame else words


def _window(config: FbankConfig) -> str:
    shape = WORDS.get(config.window_type, config.window_type)
    if config.window_type != "rectangular":
        shape = f"{'periodic' if config.window_periodic else 'symmetric'} {shape}"
    rate = config.sample_frequency / 1000
    return f"{shape}, {config.window_size} every {config.window_shift} at {rate:g} kHz"


def _before(config: FbankConfig) -> str:
    words = []
    if config.remove_dc_offset:
        words.append("mean removed")
    if config.preemphasis_coefficient:
        over = "whole waveform" if config.preemphasis_over == "waveform" else "each frame"
        words.append(f"{config.preemphasis_coefficient:g} over {over}")
    return ", ".join(words) or "nothing"


def _spectrum(config: FbankConfig) -> str:
    words = "power" if config.use_power else "magnitude"
    divided = f" / {config.fft_size}" if config.divide_by_n_fft else ""
    return f"{words} of {config.fft_size}{divided}"


def _filters(config: FbankConfig) -> str:
    straight = {"mel": "mel", "hertz": "Hz", "bins": "floored bins"}[config.triangle_axis]
    area = ", area 1" if config.mel_norm == "slaney" else ""
    span = f"{config.low_freq:g}–{config.upper_edge:g} Hz"
    shape = "" if config.filter_shape == "triangular" else f"{config.filter_shape}, "
    return f"{WORDS[config.mel_scale]}, {span}, {shape}straight in {straight}{area}"


def _logarithm(config: FbankConfig) -> str:
    if not config.use_log_fbank:
        return "none"
    inner = "x"
    if config.log_offset:
        inner = f"x + {config.log_offset:.3g}"
    if config.log_floor and config.floor_zeros_only:
        inner = f"{inner}, or {config.log_floor:.3g} for 0"
    elif config.log_floor:
        inner = f"max({inner}, {config.log_floor:.3g})"
    words = f"{WORDS[config.log_type]}({inner})"
    if config.top_db:
        words += f", at most {config.top_db:g} dB below the clip's largest"
    if config.output_shift or config.output_scale != 1.0:
        words += f", then (y + {config.output_shift:g}) · {config.output_scale:g}"
    return f"{words}, each bin normalised over the clip" if config.norm_per_feature else words


if __name__ == "__main__":
    main(sys.argv[1:])
