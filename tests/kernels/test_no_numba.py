"""Where Numba cannot compile: auto takes torch's operators and says why, numba by name raises."""

from __future__ import annotations

import pytest

from ast_fast_kernels.testing.processes import run_program

EVERY_WAY = """
import contextlib, logging, sys
from pathlib import Path
import numpy as np, torch
from ast_fast_kernels import (
    FbankConfig, OnlineFbank, _dispatch, attention, chosen_backend, fbank, kaldi, mfcc, mix,
    norm_gelu_conv, normalise,
)

logged = []
class Keep(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING:
            logged.append(record.getMessage())
logging.getLogger("ast_fast_kernels").addHandler(Keep())

wave, one, width = np.linspace(-1, 1, 800, dtype=np.float32), torch.ones(1, 1), torch.ones(4)
steps = torch.arange(6.0).view(1, 2, 3)
zero, qkv = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 3, 3, 2, 16)
stem = (torch.ones(1, 2, 2, 4), width, width, torch.ones(4, 1, 3, 3), width)
calls = {
    "fbank": lambda **given: fbank(wave, **given),
    "fbank of tensor": lambda **given: fbank(torch.from_numpy(wave), **given),
    "gradient": lambda **given: fbank(torch.from_numpy(wave).requires_grad_(), **given).detach(),
    "mfcc": lambda **given: mfcc(wave, **given),
    "stream": lambda **given: OnlineFbank(**given).accept_waveform(wave),
    "mix": lambda **given: mix(wave[None], zero, zero, one, **given),
    "normalise": lambda **given: normalise(steps, 2, log_silence=0.0, **given),
    "attention": lambda **given: attention(qkv, **given),
    "attention of half": lambda **given: attention(qkv.half(), **given),
    "stem": lambda **given: norm_gelu_conv(*stem, **given),
}
inputs = {
    "fbank": (wave,), "mix": (wave[None],), "normalise": (steps,), "attention": (qkv,),
    "stem": stem,
}
instead = {"attention": "sdpa", "attention of half": "sdpa"}
expected = {name: call(backend=instead.get(name, "reference")) for name, call in calls.items()}
assert "numba" not in sys.modules

def check(reason):
    _dispatch._numba_obstacle.cache_clear()
    logged.clear()
    for name, call in calls.items():
        assert np.array_equal(np.asarray(call()), np.asarray(expected[name])), name
        try:
            call(backend="numba")
        except RuntimeError as error:
            other = instead.get(name, "reference")
            assert str(error) == f'{reason}; use backend="{other}"', error
        else:
            raise AssertionError(name)
    kaldi.fbank(torch.from_numpy(wave[None]))
    for name, given in inputs.items():
        assert chosen_backend(name, *given) == instead.get(name, "reference")
    assert logged == [f"{reason}: auto chooses slower backends on the CPU"], logged
    print(reason)
"""

BROKEN_IMPORTS = {
    'ImportError("Numba needs NumPy 2.3 or less")': (
        "numba does not work here (ImportError: Numba needs NumPy 2.3 or less)"
    ),
    'OSError("Could not find/load\\n shared object file libllvmlite.so")': (
        "numba does not work here (OSError: Could not find/load shared object file libllvmlite.so)"
    ),
    'AttributeError("module llvmlite has no attribute ir")': (
        "numba does not work here (AttributeError: module llvmlite has no attribute ir)"
    ),
    'SystemError("initialization of _internal failed")': (
        "numba does not work here (SystemError: initialization of _internal failed)"
    ),
    'SyntaxError("invalid syntax")': "numba does not work here (SyntaxError: invalid syntax)",
    'ModuleNotFoundError("No module named \'llvmlite\'", name="llvmlite")': (
        "numba cannot be loaded (No module named 'llvmlite')"
    ),
}
BROKEN_COMPILERS = {
    'AssertionError("no target")': "numba does not work here (AssertionError: no target)",
    'TypingError("\\x1b[1mno kernel\\x1b[0m for\\n you")': (
        "numba does not work here (RuntimeError: no kernel for you)"
    ),
    'RuntimeError("Unable to find target for this triple (no targets are registered)")': (
        "numba does not work here (RuntimeError: Unable to find target for this triple "
        "(no targets are registered))"
    ),
}


def test_auto_takes_torchs_operators_and_numba_by_name_says_why(tmp_path) -> None:
    """Numba missing, then not to be imported in six ways, then not to compile in three."""
    program = (
        EVERY_WAY
        + f"""
sys.modules["numba"] = None
check("numba is not installed (pip install numba)")
del sys.modules["numba"]

fake = Path({str(tmp_path)!r}, "numba")
fake.mkdir()
sys.path.insert(0, str(fake.parent))
for error, reason in {BROKEN_IMPORTS!r}.items():
    (fake / "__init__.py").write_text(f"raise {{error}}  # {{'x' * len(logged) * 7}}")
    sys.path_importer_cache.clear()
    check(reason)
sys.path.pop(0)
sys.path_importer_cache.clear()

from numba.core import ccallback
from numba.core.errors import TypingError
for error, reason in {BROKEN_COMPILERS!r}.items():
    def compile(self):
        raise eval(error)
    ccallback.CFunc.compile = compile
    check(reason)
"""
    )
    printed = run_program(program, PYTHONDONTWRITEBYTECODE="1").splitlines()
    assert len(printed) == 1 + len(BROKEN_IMPORTS) + len(BROKEN_COMPILERS)


def test_numba_that_may_not_compile_is_left_out_of_runs_too() -> None:
    """With kernels on the disk or without: `NUMBA_DISABLE_JIT` decides."""
    printed = run_program(
        EVERY_WAY
        + """
check("numba compiles nothing while NUMBA_DISABLE_JIT is set (unset it)")

from ast_fast_kernels.errors import InputError
from ast_fast.machine.device import Placement
from ast_fast.run.kernels import check_backend, kernels_in_use
from ast_fast.settings.config import Config
placement = Placement(torch.device("cpu"), None)
print(kernels_in_use(Config(), placement)["fbank"])
try:
    check_backend(Config(backend="numba"), placement)
except InputError as error:
    print(error)
""",
        NUMBA_DISABLE_JIT="1",
    ).splitlines()
    assert printed[1:] == [
        "reference",
        "--backend numba: numba compiles nothing while NUMBA_DISABLE_JIT is set (unset it); "
        'use backend="reference"',
    ]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_without_torch_either_both_remedies_are_named(backend: str) -> None:
    printed = run_program(f"""
import sys
sys.modules["torch"] = sys.modules["numba"] = None
import numpy as np
from ast_fast_kernels import fbank
try:
    fbank(np.zeros(400, np.float32), backend={backend!r})
except ImportError as error:
    print(error)
""")
    assert printed == (
        'numba is not installed (pip install numba); backend "reference" needs torch: '
        "pip install 'ast-fast-kernels[torch]'\n"
    )
