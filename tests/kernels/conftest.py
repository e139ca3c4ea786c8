from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def clips(data_root: Path) -> np.ndarray:
    """One clip of each ESC-10 class: 5 s at 16 kHz, float32, (10, 80000)."""
    soundfile = pytest.importorskip("soundfile")
    soxr = pytest.importorskip("soxr")
    rows = []
    for target in (0, 1, 10, 11, 12, 20, 21, 38, 40, 41):
        path = sorted((data_root / "esc10" / "audio").glob(f"1-*-{target}.*"))[0]
        samples, sample_rate = soundfile.read(path, dtype="float32")
        samples = soxr.resample(samples, sample_rate, 16000)[:80000]
        rows.append(np.pad(samples, (0, 80000 - len(samples))))
    return np.stack(rows)


@pytest.fixture
def read_only_package(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A copy of the kernels where nothing can be written, and an environment that takes it.

    A file where each cache folder would be cannot be written into by anyone, root included.
    """
    import ast_fast_kernels

    source, site = Path(ast_fast_kernels.__file__).parent, tmp_path / "site"
    for path in source.rglob("*.py"):
        target = site / "ast_fast_kernels" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        (target.parent / "__pycache__").touch()
    blocker = tmp_path / "file"
    blocker.touch()
    environment = {
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(blocker),
        "XDG_CACHE_HOME": str(blocker),
    }
    return site, environment
