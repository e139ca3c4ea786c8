"""The filterbank where torch is not installed, and where it is not loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from ast_fast_kernels.testing.processes import modules_loaded_by, run_program

SCRIPT = Path(__file__).with_name("without_torch.py")
RUN = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
BLOCK = "import sys; sys.modules['torch'] = None\n"


def test_arrays_get_the_bits_of_tensors_and_what_needs_torch_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "features.npz")
    run_program(RUN, "save", path)
    assert "arrays are the same without torch" in run_program(BLOCK + RUN, "check", path)


@pytest.mark.parametrize(
    "call",
    ["fbank(x)", "fbank(x, lengths=800)", "mfcc(x)", "OnlineFbank().accept_waveform(x)"],
)
def test_an_array_loads_numba_but_not_torch(call: str) -> None:
    loaded = modules_loaded_by(
        "import numpy as np\nfrom ast_fast_kernels import OnlineFbank, fbank, mfcc\n"
        f"x = np.zeros(800, np.float32)\n{call}"
    )
    assert "numba" in loaded
    assert "torch" not in loaded


def test_what_numba_does_not_take_loads_torch() -> None:
    assert "torch" in modules_loaded_by(
        "import numpy as np\nfrom ast_fast_kernels import fbank\nfbank(np.zeros(800))"
    )


THREADS = """
import numpy as np
from ast_fast_kernels._cpu import team, threads
from ast_fast_kernels import fbank
x = np.random.default_rng(0).standard_normal((16, 40000)).astype(np.float32)
before = fbank(x)
print(team.team_size(), threads._helpers)
import torch
torch.set_num_threads(2)
assert team.team_size() == 2
assert (fbank(x) == before).all()
"""


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "2,4"}, 2),
        ({"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}, 1),
        ({"OMP_NUM_THREADS": "", "NUMBA_NUM_THREADS": "2"}, 2),
    ],
    ids=str,
)
def test_threads_without_torch_are_those_of_the_environment(
    environment: dict[str, str], threads: int
) -> None:
    printed = run_program(THREADS, **environment).split()
    assert printed == [str(threads), str(threads - 1)]
