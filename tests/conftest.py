import os
from pathlib import Path

import pytest


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
