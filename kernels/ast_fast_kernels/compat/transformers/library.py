"""The library's own classes, imported beside a torchaudio that may be broken."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def live_class(model: str, name: str) -> Any:
    """Return the library's feature extractor of a model, by the names of its folder and class.

    Raises:
        ModuleNotFoundError: transformers is not installed.
    """
    if find_spec("transformers") is None:
        raise ModuleNotFoundError(
            f"{name} needs transformers: pip install transformers", name="transformers"
        )
    with _broken_torchaudio_absent():
        return getattr(
            import_module(f"transformers.models.{model}.feature_extraction_{model}"), name
        )


def module_of(live: type) -> ModuleType:
    """Return the module that a class of the library is from."""
    return sys.modules[live.__module__]


@contextmanager
def _broken_torchaudio_absent() -> Iterator[None]:
    """Let imports see no torchaudio if it is installed and cannot be imported.

    The library asks whether there is one, not whether it works, and its modules of audio then
    cannot be imported at all.
    """
    if find_spec("torchaudio") is None or _can_import("torchaudio"):
        yield
        return
    utils = import_module("transformers.utils")
    places = [
        (module, name)
        for module in (utils, import_module("transformers.utils.import_utils"))
        for name in ("is_torchaudio_available", "is_speech_available")
    ]
    kept = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, _never)
        yield
    finally:
        for (module, name), function in zip(places, kept, strict=True):
            setattr(module, name, function)


def _can_import(name: str) -> bool:
    try:
        import_module(name)
    except Exception:  # whatever a library of another build raises: OSError, AttributeError, ...
        return False
    return True


def _never() -> bool:
    return False
