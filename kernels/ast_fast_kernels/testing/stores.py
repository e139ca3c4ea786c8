"""Finished extractions, as the command writes them, of features made up here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w

from ast_fast_kernels.corpus.formats import Shard, load_format, publish_shard, to_dtype
from ast_fast_kernels.corpus.manifest import (
    MANIFEST,
    SETTINGS,
    SHARDS,
    ShardFiles,
    line_of,
    manifest_lines,
    write_lines,
)
from ast_fast_kernels.fbank.config import FbankConfig


def write_store(
    folder: Path,
    features: Sequence[npt.NDArray[np.float32]],
    config: FbankConfig,
    *,
    columns: Mapping[str, Sequence[Any]] | None = None,
    types: Mapping[str, Any] | None = None,
    form: Any = "arrow",
    dtype: Any = "float16",
    shard_size: int = 3,
) -> Path:
    """Write an extraction of waveforms' features, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files, lines = [], []
    for index, first in enumerate(range(0, len(features), shard_size)):
        rows = slice(first, first + shard_size)
        shard = Shard(
            path=[f"{row}.wav" for row in range(len(features))[rows]],
            features=[to_dtype(row, dtype) for row in features[rows]],
            seconds=[len(row) / 100 for row in features[rows]],
            width=config.num_mel_bins,
            dtype=dtype,
            columns={name: values[rows] for name, values in (columns or {}).items()},
            types=types or {},
            facts={"sample_rate": int(config.sample_frequency), "frame_shift": config.frame_shift},
        )
        written = publish_shard(load_format(form), folder, index, [shard])
        frames = int(shard.num_frames.sum())
        files.append(line_of(asdict(ShardFiles(index, len(shard), frames, written))))
        lines += manifest_lines(index, shard, ["0" * 64] * len(shard))
    write_lines(folder / MANIFEST, lines)
    write_lines(folder / SHARDS, files)
    fields = {name: value for name, value in asdict(config).items() if value is not None}
    settings = {
        "output": {
            "format": form, "dtype": dtype, "width": config.num_mel_bins, "ragged": True,
            "columns": dict(types or {}),
        },
        "features": {"sample_rate": int(config.sample_frequency), "kind": "fbank", "fbank": fields},
    }  # fmt: skip
    (folder / SETTINGS).write_text(tomli_w.dumps(settings))
    return folder
