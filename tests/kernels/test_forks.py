"""Every preset, option and operation in a process forked after torch has used its threads."""

from __future__ import annotations

from ast_fast_kernels.testing.processes import run_program

START = """
import faulthandler, os, signal, sys
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch runs no backward in the fork of one that saw a GPU
import numpy as np, torch
from ast_fast_kernels import (
    FbankConfig, OnlineFbank, attention, fbank, kaldi, mfcc, mix, norm_gelu_conv, normalise,
)
from ast_fast_kernels.fbank.presets import PRESETS

torch.set_num_threads(2)
WAVES = torch.linspace(-1, 1, 2 * 30000).sin().view(2, 30000)  # enough for torch to share out
ONE = WAVES.view(1, -1)
# The test's own conversions are numpy's, which need no threads.
EXACT = torch.from_numpy(WAVES.numpy().astype(np.float64))
INTEGERS = torch.from_numpy((WAVES.numpy() * 20000).astype(np.int16))
calls = {}

def gradient(waves, config, **given):
    leaf = waves.detach().requires_grad_()
    out = fbank(leaf, config, **given)
    return torch.autograd.grad(out, leaf, torch.from_numpy(np.ones(out.shape, np.float32)))[0]

def stream():
    online = OnlineFbank()
    parts = [online.accept_waveform(part) for part in WAVES.expand(4, 2, -1).split(13000, dim=-1)]
    return np.concatenate([part.numpy() for part in [*parts, online.finish()]], axis=-2)

for name in PRESETS:
    config = FbankConfig.preset(name)
    calls |= {
        f"{name}": lambda c=config: fbank(WAVES, c),
        f"{name}, array": lambda c=config: fbank(WAVES.numpy(), c),
        f"{name}, lengths": lambda c=config: fbank(WAVES, c, lengths=[30000, 12345]),
        f"{name}, reference": lambda c=config: fbank(WAVES, c, backend="reference"),
        f"{name}, float64": lambda c=config: fbank(EXACT.numpy(), c, lengths=[30000, 99]),
        f"{name}, gradient": lambda c=config: gradient(WAVES, c),
    }
calls |= {
    "int16": lambda: fbank(INTEGERS),
    "dither": lambda: fbank(WAVES, FbankConfig(dither=1.0)),
    "dither, array": lambda: fbank(WAVES.numpy(), FbankConfig(dither=1.0)),
    "another FFT": lambda: fbank(WAVES, FbankConfig(n_fft=8192)),
    "strided": lambda: fbank(WAVES.expand(3, 2, -1).transpose(0, 1)),
    "negated": lambda: fbank(torch._neg_view(WAVES)),
    "mfcc": lambda: mfcc(WAVES.expand(8, 2, -1)),
    "mfcc, array": lambda: mfcc(WAVES.numpy()),
    "stream": stream,
}
OPTIONS = {
    "nothing": {},
    "dither": {"dither": 1.0},
    "negative dither": {"dither": -1.0},
    "energy": {"use_energy": True},
    "energy, last": {"use_energy": True, "htk_compat": True, "raw_energy": False},
    "energy with dither": {"use_energy": True, "dither": 1.0, "energy_floor": 0.0},
    "mean": {"subtract_mean": True},
    "whole clip": {"snip_edges": False},
    "even FFT": {"round_to_power_of_two": False},
    "no log": {"use_log_fbank": False, "use_power": False},
    "warp": {"vtln_warp": 1.1, "vtln_high": 7000.0},
    "window": {"window_type": "blackman", "preemphasis_coefficient": 0.0},
    "short": {"min_duration": 100.0},
}
for name, options in OPTIONS.items():
    options = {"num_mel_bins": 200, **options}  # so many that torch shares out the features too
    calls[f"kaldi {name}"] = lambda o=options: kaldi.fbank(ONE, **o)
    calls[f"kaldi {name}, int16"] = lambda o=options: kaldi.fbank(INTEGERS[:1], **o)
calls |= {
    "kaldi's filters": lambda: kaldi.get_mel_banks(200, 512, 16000.0, 20.0, 0.0, 0.0, 0.0, 1.0)[0],
    "kaldi's frames": lambda: kaldi._get_strided(ONE[0], 400, 160, False),
    "kaldi's windows": lambda: kaldi._get_window(
        ONE[0], 512, 400, 160, "povey", 0.42, True, True, 1.0, 0.0, True, 0.97
    )[0],
}

NONE = torch.from_numpy(np.zeros((64, 2), np.int64))
HALF = torch.from_numpy(np.full((64, 2), 0.5, np.float32))
MANY = torch.from_numpy(np.zeros((50_000, 2), np.int64))  # torch shares out the check of so many
HALVES = torch.from_numpy(np.full((50_000, 2), 0.5, np.float32))
FEATURES = torch.from_numpy(np.linspace(-3, 3, 160 * 300 * 8, dtype=np.float32))
FEATURES = FEATURES.view(160, 300, 8)
MASK = torch.from_numpy(np.zeros((160, 300), bool))
QKV = torch.from_numpy(np.sin(np.linspace(0, 99, 2 * 150 * 3 * 2 * 16, dtype=np.float32)))
QKV = QKV.view(2, 150, 3, 2, 16)
CELLS = torch.from_numpy(np.sin(np.linspace(0, 99, 2 * 32 * 32 * 32, dtype=np.float32)))
CELLS, WIDTH = CELLS.view(2, 32, 32, 32), torch.from_numpy(np.ones(32, np.float32))
TAPS = torch.from_numpy(np.ones((32, 1, 3, 3), np.float32))
calls |= {
    "mix": lambda: mix(ONE.numpy(), NONE, NONE, HALF),
    "mix, reference": lambda: mix(ONE, NONE, NONE, HALF, backend="reference"),
    "mix, int32": lambda: mix(ONE, NONE.int(), NONE.int(), HALF.double()),
    "mix, many": lambda: mix(ONE[:, :8], MANY, MANY, HALVES),
    "normalise": lambda: normalise(FEATURES, 512, log_silence=-15.0),
    "normalise, masks": lambda: normalise(
        FEATURES, 256, log_silence=-15.0, masked_frames=MASK, masked_bins=MASK[:, :8],
        offsets=FEATURES[:, 0].double(),
    ),
    "normalise, reference": lambda: normalise(
        FEATURES, 512, log_silence=-15.0, masked_frames=MASK, backend="reference"
    ),
    "attention": lambda: attention(QKV, key_lengths=[150, 3]),
    "attention, sdpa": lambda: attention(QKV, backend="sdpa"),
    "attention, reference": lambda: attention(QKV, key_lengths=[150, 3], backend="reference"),
    "attention, narrow": lambda: attention(QKV[..., :8]),
    "stem": lambda: norm_gelu_conv(CELLS, WIDTH, WIDTH, TAPS, WIDTH),
    "stem, reference": lambda: norm_gelu_conv(
        CELLS, WIDTH, WIDTH, TAPS, WIDTH, backend="reference"
    ),
}

def values(call):
    torch.manual_seed(0)
    np.random.seed(0)
    return np.asarray(call())

def exit_code(run):
    # -14 where it hangs.
    child = os.fork()
    if child == 0:
        try:
            run()
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def test_every_path_of_a_forked_process_gives_its_parents_values() -> None:
    """With the parent's bits on one thread; the thread count of torch is as it was afterwards."""
    printed = run_program(
        START
        + """
torch.set_num_threads(1)
expected = {name: values(call) for name, call in calls.items()}
torch.set_num_threads(2)
(torch.zeros(1000, 1000) + 1.0).sum()  # torch's threads start
torch.ones(512, 512) @ torch.ones(512, 512)

def check():
    for name, call in calls.items():
        signal.alarm(60)
        print(name, file=sys.stderr, flush=True)
        found = values(call)
        assert found.dtype == expected[name].dtype, name
        assert np.array_equal(found, expected[name], equal_nan=True), name
        assert torch.get_num_threads() == 2, name

def hang():
    fbank(WAVES, backend="reference")
    signal.alarm(2)
    (torch.zeros(1000, 1000) + 1.0).sum()

code = exit_code(check)
assert code == 0, code
assert exit_code(hang) == -signal.SIGALRM, "torch's own operators do not hang: nothing was tested"
print(len(calls))
""",
        OMP_NUM_THREADS="2",
        timeout=300.0,
    )
    assert int(printed) == 117
