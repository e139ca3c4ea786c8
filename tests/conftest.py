from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder that holds esc10/ and esc50/."""
    root = os.environ.get("AST_FAST_DATA")
    if not root:
        pytest.skip("AST_FAST_DATA is not set: it names the folder that holds esc10/ and esc50/")
    path = Path(root)
    if not (path / "esc10" / "meta" / "esc50.csv").is_file():
        pytest.skip(f"AST_FAST_DATA={root} holds no esc10/meta/esc50.csv")
    return path


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.interpreter, id="interpreted"),
        pytest.param("cuda", marks=pytest.mark.gpu, id="gpu"),
    ]
)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where Triton kernels run; whatever they are to write holds NaN before.

    The interpreter has a process of its own: one that has compiled kernels, or has cached ones at
    hand, may take those.
    """
    if request.param == "cpu" and not INTERPRETED:
        pytest.skip("needs TRITON_INTERPRET=1, as test_triton_interpreter.py runs it")
    if request.param == "cuda" and (INTERPRETED or not torch.cuda.is_available()):
        pytest.skip("needs a CUDA GPU")
    if INTERPRETED:
        from ast_fast_kernels.testing import interpreter

        interpreter.install()
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialised memory
    yield torch.device(request.param)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(precision)
