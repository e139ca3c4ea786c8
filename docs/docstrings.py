"""A griffe extension: docstrings as this project writes them, for the site's reference.

Our sections (`Args:`, `Returns:`, `Raises:`, `Source:`) follow one another without blank lines, and
griffe sees a section only after one.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"\n(?=(?:Args|Returns|Raises|Yields|Source):)")


class Sections(griffe.Extension):
    """Put a blank line in front of every section of a docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub("\n\n", obj.docstring.value)
