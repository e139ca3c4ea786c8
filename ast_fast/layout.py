"""ESC-50's layout: where a data set's table and its audio lie, under the data set's own folder."""

from __future__ import annotations

from pathlib import Path

METADATA = Path("meta", "esc50.csv")
AUDIO = Path("audio")
COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
"""Columns of the table; the last three may be missing where nothing asks for them."""
REQUIRED_COLUMNS = COLUMNS[:4]
