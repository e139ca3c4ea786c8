"""The host's times are measured without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_case_has_both_times(tmp_path: Path) -> None:
    written = tmp_path / "times.json"
    command = [sys.executable, "-m", "bench.host_time", "--tiny", "--json", str(written)]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    table = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    figures = json.loads(written.read_text(encoding="utf-8"))
    assert len(figures) == 10
    for case, row in figures.items():
        assert f"| {case} |" in table
        assert row["torch"] > 0
        assert row["ours"] > 0
