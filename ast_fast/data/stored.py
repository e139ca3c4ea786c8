"""Stored features as clips: rows of an extraction, of one length, with labels and folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ast_fast.data.metadata import Clip, Subset, check_rows
from ast_fast_kernels import FeatureStore
from ast_fast_kernels.corpus.manifest import MANIFEST
from ast_fast_kernels.errors import InputError

LABELS = ("fold", "target", "category")
"""Columns that the manifest must have besides those that every manifest has."""


class StoredFeatures:
    """Log-mel features of some rows of a store, cut or padded with silence to one length.

    Indexed as an array of shape (num_clips, num_frames, num_mel_bins), by an array of indices;
    the result is a copy in float32.

    Args:
        store: The store.
        rows: Its rows that are the clips, in order.
        num_samples: Of the audio that a clip's features stand for.
    """

    def __init__(self, store: FeatureStore, rows: NDArray[np.int64], num_samples: int) -> None:
        self.store, self.num_samples = store, num_samples
        self.shape = len(rows), store.config.num_frames(num_samples), store.width
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def part(self, clips: NDArray[np.int64]) -> StoredFeatures:
        """Return some of the clips, in the order of their indices."""
        return StoredFeatures(self.store, self._rows[clips], self.num_samples)

    def __getitem__(self, clips: NDArray[np.int64] | Sequence[int]) -> NDArray[np.float32]:
        features = [self.store[row] for row in self._rows[clips]]
        return self.store.pad(features, self.shape[1])[0]


def stored_clips(
    store: FeatureStore, *, subset: Subset = "all"
) -> tuple[list[Clip], NDArray[np.int64]]:
    """Return the clips that a store's manifest describes, and the row of each.

    Args:
        store: Features with the columns fold, target and category, as in ESC-50's table.
        subset: `"esc10"` keeps the rows whose column esc10 is True.
    Raises:
        InputError: A column is missing, or a row is malformed; the message says which.
    """
    path = store.folder / MANIFEST
    wanted = [*LABELS, *(["esc10"] if subset == "esc10" else [])]
    missing = [name for name in wanted if name not in store.table.column_names]
    if missing:
        raise InputError(
            f"{path} must have the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} to "
            "train from; extract from a csv or JSONL manifest that has them"
        )
    columns = store.table.select(["path", *wanted]).to_pydict()
    names = {"path": "filename"}
    rows = [
        {names.get(name, name): str(value) for name, value in zip(columns, row, strict=True)}
        for row in zip(*columns.values(), strict=True)
    ]
    kept = check_rows(path, rows, subset)
    return [clip for _, clip in kept], np.array([row for row, _ in kept], np.int64)
