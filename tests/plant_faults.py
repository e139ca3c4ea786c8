"""Plant faults in the Triton kernels, one at a time, and see that some test catches each.

`python tests/plant_faults.py` copies the kernels aside, changes one line there and runs the
interpreter's tests on the copy until one fails. It takes some minutes, so nothing runs it by
itself; `test_plant_faults.py` checks that every line is still there to be changed. Exit code 1 and
a name mean a fault that no test sees.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "kernels" / "ast_fast_kernels"


@dataclass(frozen=True)
class Fault:
    """One line, and what it becomes."""

    what: str
    op: str
    line: str
    becomes: str

    @property
    def path(self) -> str:
        """The kernels' file, from the package."""
        return "_gpu/fft.py" if self.op == "fft" else f"{self.op}/triton_gpu.py"

    @property
    def tests(self) -> str:
        """The tests of that file."""
        return f"tests/kernels/test_{'fft_triton' if self.op == 'fft' else f'triton_{self.op}'}.py"


FAULTS = [
    Fault(
        "keys beyond the last are seen",
        "attention",
        'scores = tl.where(offs_n[None, :] < num_keys, scores, -float("inf"))',
        "scores = scores",
    ),
    Fault(
        "a tail that lacks one key is taken for a whole block",
        "attention",
        "whole = num_keys // BLOCK_N * BLOCK_N",
        "whole = (num_keys + 1) // BLOCK_N * BLOCK_N",
    ),
    Fault(
        "no tail",
        "attention",
        "if whole < num_keys:",
        "if whole + BLOCK_N < num_keys:",
    ),
    Fault(
        "the running sum is not corrected",
        "attention",
        "row_sum = row_sum * correction + tl.sum(weights, 1)",
        "row_sum = row_sum + tl.sum(weights, 1)",
    ),
    Fault(
        "the accumulator is not corrected",
        "attention",
        "acc = acc * correction[:, None]",
        "acc = acc",
    ),
    Fault(
        "the logarithm of the sum is of base two",
        "attention",
        "(row_max * scale_log2 + tl.log2(row_sum)) * LN_2)",
        "row_max * scale_log2 + tl.log2(row_sum))",
    ),
    Fault(
        "keys are read as values",
        "attention",
        "v_ptr = k_ptr + stride_c",
        "v_ptr = k_ptr",
    ),
    Fault(
        "heads are read by the tokens' stride",
        "attention",
        "q_ptr = qkv_ptr + clip * stride_b + head * stride_h",
        "q_ptr = qkv_ptr + clip * stride_b + head * stride_t",
    ),
    Fault(
        "lengths are not looked at",
        "attention",
        "return tl.minimum(tl.load(key_lengths_ptr + clip).to(tl.int32), tokens)",
        "return tokens",
    ),
    Fault(
        "lengths are read as if they were dense",
        "attention",
        "return key_lengths.to(torch.int32).contiguous()",
        "return key_lengths.to(torch.int32)",
    ),
    Fault(
        "the gradient of keys lacks the scale",
        "attention",
        "dk = tl.where(mask_n[:, None], dk * scale, 0.0)",
        "dk = tl.where(mask_n[:, None], dk, 0.0)",
    ),
    Fault(
        "the gradient of values beyond a clip is kept",
        "attention",
        "dv = tl.where(mask_n[:, None], dv, 0.0)",
        "dv = dv",
    ),
    Fault(
        "delta is left out",
        "attention",
        "dscores = weights * (dweights - delta[None, :])",
        "dscores = weights * dweights",
    ),
    Fault(
        "queries that are not there have gradients",
        "attention",
        "grad = tl.load(grad_ptrs, mask=mask_m[:, None], other=0.0)",
        "grad = tl.load(grad_ptrs, mask=mask_m[:, None], other=1.0)",
    ),
    Fault(
        "weights of keys beyond the last stay in the gradient of queries",
        "attention",
        "weights = tl.where(offs_n[None, :] < num_keys, weights, 0.0)",
        "weights = weights",
    ),
    Fault(
        "delta is stored by the wrong row",
        "attention",
        "token = offs_m // heads % tokens",
        "token = offs_m % tokens",
    ),
    Fault(
        "the variance counts what lies beyond the row",
        "layer_norm",
        "centred = tl.where(mask_d[None, :], x - mean[:, None], 0.0)",
        "centred = x - mean[:, None]",
    ),
    Fault(
        "epsilon is left out",
        "layer_norm",
        "tl.sqrt_rn(variance + eps)",
        "tl.sqrt_rn(variance)",
    ),
    Fault(
        "the gradient of the sum is dropped",
        "layer_norm",
        "if HAS_DRESIDUAL:",
        "if HAS_DUPDATE and HAS_DRESIDUAL:",
    ),
    Fault(
        "the gradient of the weight is of the values",
        "layer_norm",
        "dweight += dy * normed",
        "dweight += dy * residual",
    ),
    Fault(
        "the bias has no part in the gradient",
        "gelu",
        "x = tl.load(x_ptr + places, mask=mask, other=0.0).to(tl.float32) + bias[None, :]\n"
        "        dy",
        "x = tl.load(x_ptr + places, mask=mask, other=0.0).to(tl.float32)\n        dy",
    ),
    Fault(
        "the density is not in the gradient",
        "gelu",
        "dx = dy * (below + x * density)",
        "dx = dy * below",
    ),
    Fault(
        "a frame's first sample has no predecessor",
        "fbank",
        "before = index - (offs_n > 0).to(tl.int32)[None, :]",
        "before = index - 1",
    ),
    Fault(
        "reflection repeats the edge",
        "fbank",
        "repeats: tl.constexpr = 1 if PADDING == 2 else 0",
        "repeats: tl.constexpr = 1",
    ),
    Fault(
        "what lies before a clip is its first sample",
        "fbank",
        "index = tl.where(index < 0, -index - repeats, index)",
        "index = tl.where(index < 0, 0, index)",
    ),
    Fault(
        "twice a clip's length has a sign",
        "fbank",
        "count = count.to(tl.uint32)",
        "count = count",
    ),
    Fault(
        "a frame's mean is not taken around its first sample",
        "fbank",
        "differences = tl.where(mask, x - start, 0.0)",
        "start, differences = start * 0.0, x",
    ),
    Fault(
        "a frame's mean is not taken around its first sample, fused",
        "fbank",
        "        if REMOVE_DC:\n            first_of_frame = _load_samples(",
        "        if False:\n            first_of_frame = _load_samples(",
    ),
    Fault(
        "squares of magnitudes overflow",
        "fbank",
        "tl.where(largest < SMALL, RAISE, tl.where(largest > LARGE, LOWER, 1.0))",
        "tl.where(largest < SMALL, RAISE, tl.where(largest > LARGE, 1.0, 1.0))",
    ),
    Fault(
        "int16 is not scaled",
        "fbank",
        "samples = samples * 3.0517578125e-05  # 2 ** -15",
        "samples = samples",
    ),
    Fault(
        "the last bin of a filter is missing",
        "fbank",
        "ends - firsts",
        "np.maximum(ends - firsts - 1, 0)",
    ),
    Fault(
        "a chunk's filters write to the batch's first frames",
        "fbank",
        "out_ptrs = out_ptr + (frame * num_mel_bins)[:, None] + mel[None, :]",
        "out_ptrs = out_ptr + ((frame - first) * num_mel_bins)[:, None] + mel[None, :]",
    ),
    Fault(
        "frames beyond a clip are not silence",
        "fbank",
        "log_mel = tl.where(first + place_f < frame_count, log_mel, log_silence)",
        "log_mel = log_mel",
    ),
    Fault(
        "thread 0 writes mirrored frequencies too",
        "fbank",
        "tl.store(power_ptrs + (512 - 32 * j) - 2 * b, power, mask=b > 0)",
        "tl.store(power_ptrs + (512 - 32 * j) - 2 * b, power)",
    ),
    Fault(
        "points are turned the wrong way between the two transforms",
        "fbank",
        "re, im = re * cosines + im * sines, im * cosines - re * sines",
        "re, im = re * cosines - im * sines, im * cosines + re * sines",
    ),
    Fault(
        "the middle frequencies are one place too low",
        "fbank",
        "middle_bins = 16 + 32 * tl.arange(0, 8)",
        "middle_bins = 15 + 32 * tl.arange(0, 8)",
    ),
    Fault(
        "a frame's first sample has no predecessor, fused",
        "fbank",
        "back = tl.where(b > 0, 1, 0) if a == 0 else 1",
        "back = 1",
    ),
    Fault(
        "nothing is exchanged",
        "fft",
        "tl.reshape(values, (GROUPS, 16, 16)), (0, 2, 1))",
        "tl.reshape(values, (GROUPS, 16, 16)), (0, 1, 2))",
    ),
    Fault(
        "a quarter turn goes the wrong way",
        "fft",
        "return im, -re",
        "return -im, re",
    ),
]


def caught_by(fault: Fault | None) -> str | None:
    """Return the first test that fails with a fault, or None."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "ast_fast_kernels"
        shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("__pycache__"))
        tests = sorted({fault.tests for fault in FAULTS})
        if fault is not None:
            source = (copy / fault.path).read_text()
            (copy / fault.path).write_text(source.replace(fault.line, fault.becomes))
            tests = [fault.tests]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
             "-m", "interpreter", *tests],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": folder, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
    if run.returncode == 0:
        return None
    failed = re.search(r"^FAILED \S+::(\S+)", run.stdout, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"no test ran:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return failed[1]


def main() -> int:
    """Plant each fault, say what caught it, and return how many nothing caught."""
    if caught_by(None) is not None:
        raise RuntimeError("tests fail without a fault")
    missed = 0
    for fault in FAULTS:
        test = caught_by(fault)
        missed += test is None
        print(f"{fault.op:<10} {fault.what:<52} {test or 'NOT CAUGHT'}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
