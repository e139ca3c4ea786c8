"""Dataclasses from JSON that another version may have written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def known_fields(cls: type[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the items of a JSON object that a dataclass has fields for."""
    names = {item.name for item in dataclasses.fields(cls)}
    return {name: value for name, value in document.items() if name in names}
