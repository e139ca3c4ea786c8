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
