"""Versions of what a shard's bytes depend on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("numpy", "numba", "soundfile", "soxr", "pyarrow")
"""Distributions that a shard's bytes may depend on, beside our own; torch too if a model runs."""
LIBSNDFILE = "libsndfile"
"""The library inside soundfile, which may be the system's."""


def version_of(name: str) -> str:
    """Return the version of a distribution, or of LIBSNDFILE; "none" if it is not installed."""
    if name == LIBSNDFILE:
        import soundfile

        return str(soundfile.__libsndfile_version__)
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
