"""What extractors return: features of a batch in one array, padded as the library pads."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]


class Batch(NamedTuple):
    """Features of clips of different lengths, padded at their ends."""

    features: Float32Array  # (batch, num_frames, num_bins)
    lengths: list[int]  # frames that are not padding

    def valid(self) -> list[Float32Array]:
        """Return each clip's own rows, in place."""
        return [rows[:n] for rows, n in zip(self.features, self.lengths, strict=True)]

    def pad(self, value: float) -> None:
        """Write the padding."""
        for rows, n in zip(self.features, self.lengths, strict=True):
            rows[n:] = value

    def mask(self) -> npt.NDArray[np.int32]:
        """Return 1 for each frame that is not padding, (batch, num_frames)."""
        frames = np.arange(self.features.shape[1])
        return (frames < np.array(self.lengths)[:, None]).astype(np.int32)


def allocate(
    extractor: Any,
    lengths: list[int],
    num_bins: int,
    *,
    feature_size: int,
    padding: Any,
    max_length: int | None,
    truncation: bool,
    multiple: int | None,
) -> Batch | None:
    """Return an unfilled batch that takes features of these lengths as the library would pad them.

    None if something is truncated, padded on the left or over both axes (a `feature_size` of 1), or
    not all of one length: the library's own code does that.

    Raises:
        ValueError: The padding strategy is none of the library's, or needs a `max_length`.
    """
    strategy = extractor._get_padding_strategies(padding=padding, max_length=max_length).value
    if truncation or extractor.padding_side != "right" or feature_size <= 1:
        return None
    target = max(lengths)
    if strategy == "max_length":
        assert max_length is not None  # the library has checked it
        target = max_length
    if strategy != "do_not_pad":
        target = multiple_of(multiple, target)
    if strategy == "do_not_pad" or max(lengths) > target:
        target = lengths[0]
        if any(n != target for n in lengths):
            return None
    return Batch(np.empty((len(lengths), target, num_bins), np.float32), lengths)


def multiple_of(unit: int | None, size: int) -> int:
    """Return the least multiple of a unit that is not below a size; None is no unit."""
    return size if unit is None else -(-size // unit) * unit


def batch_feature(values: dict[str, Any], return_tensors: Any) -> Any:
    """Return the library's `BatchFeature`, as tensors or arrays over the same memory."""
    from transformers.feature_extraction_utils import BatchFeature

    batch = BatchFeature(values)
    return batch if return_tensors is None else batch.convert_to_tensors(return_tensors)
