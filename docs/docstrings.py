"""A griffe extension: docstrings as this project writes them, for the site's reference.

Our sections (`Args:`, `Returns:`, `Raises:`, `Source:`) follow one another without blank lines, and
griffe sees a section only after one. A default that is a private name, such as `_AST`, says nothing
to a reader; its value does.
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

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Show a private default by its value."""
        for parameter in func.parameters:
            name = str(parameter.default)
            if name.startswith("_") and name in func.module.attributes:
                parameter.default = str(func.module.attributes[name].value)
