"""Shards of features on disk: Arrow, npy, Parquet, and Lhotse's Shar.

The same rows give the same bytes in every format: no file holds a time, a host or a random name.
"""

from __future__ import annotations

from ast_fast_kernels.corpus.formats.publish import publish_shard
from ast_fast_kernels.corpus.formats.shard import Format, Rows, Shard, load_format
from ast_fast_kernels.corpus.formats.values import to_dtype

__all__ = ["Format", "Rows", "Shard", "load_format", "publish_shard", "to_dtype"]
