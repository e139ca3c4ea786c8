"""How long torch's threads wait at full speed, which the package says before torch is imported."""

import os
import subprocess
import sys

import pytest

import ast_fast
from ast_fast_kernels.cores import available_cores

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

SHOW = f"""
import os, ast_fast
print(*(os.environ.get(name) for name in {NAMES}))
"""

IDLE = """
import ast_fast, time, torch
torch.set_num_threads(2)
x = torch.ones(1 << 20)
x.add(1)
begin = time.process_time()
for _ in range(20):
    x.add(1)
    time.sleep(0.02)
print(time.process_time() - begin)
"""


def printed(code: str, **given: str) -> str:
    """What a new process prints, that is given no more of OpenMP's settings than named."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | given
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, f"{ast_fast.SPINS} None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_what_the_user_says_stays(given, expected):
    assert printed(SHOW, **given) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="is about libgomp")
@pytest.mark.skipif(available_cores() < 2, reason="needs two cores")
def test_idle_threads_sleep():
    """By the CPU's time between operators: libgomp's own count burns milliseconds each time."""
    assert float(printed(IDLE)) < 0.5 * float(printed(IDLE, GOMP_SPINCOUNT="300000"))
