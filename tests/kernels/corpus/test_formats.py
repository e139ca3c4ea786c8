"""Shards in every format: what is written is read back, by us and by others, and never differs."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ast_fast_kernels.corpus.formats import (
    Shard,
    arrow,
    load_format,
    publish_shard,
    to_dtype,
)
from ast_fast_kernels.corpus.formats.hashed import HashedFile
from ast_fast_kernels.corpus.formats.shard import FormatName

WIDTH = 5
FRAMES = (7, 0, 1, 12)
FORMATS = get_args(FormatName)


def shard(**changes: Any) -> Shard:
    """Four rows, one of them without frames, with text that is not ASCII."""
    generator = np.random.default_rng(0)
    rows = [generator.normal(-8, 4, (count, WIDTH)).astype(np.float32) for count in FRAMES]
    given: dict[str, Any] = {
        "path": ["a.wav", "b/ç.wav", "/c.wav", "./d.flac"],
        "features": [to_dtype(row, "float16") for row in rows],
        "seconds": [0.07, 0.001, 0.01, 0.12],
        "width": WIDTH,
        "columns": {
            "word": ["x", None, "é", "="],
            "take": [1, 2, None, 2**40],
            "more": [[1], {}, None, 0],
        },
        "types": {"take": "int64", "more": "json"},
        "facts": {"sample_rate": 16000, "frame_shift": 10.0},
    }
    return Shard(**given | changes)


def write(name: FormatName, folder: Path, *parts: Shard, index: int = 0) -> list[Path]:
    return [folder / file for file in publish_shard(load_format(name), folder, index, parts)]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_read_back_bit_for_bit(name: FormatName, dtype: Any, tmp_path: Path) -> None:
    written = shard(dtype=dtype, features=[row.astype(dtype) for row in shard().features])
    rows = load_format(name).open(write(name, tmp_path, written))
    assert len(rows) == 4
    assert rows.num_frames.tolist() == list(FRAMES)
    assert rows.num_frames.dtype == np.int32
    for row, features in enumerate(written.features):
        assert rows[row].dtype == dtype
        np.testing.assert_array_equal(rows[row], features)


@pytest.mark.parametrize("name", ["arrow", "npy", "parquet"])
def test_vectors_have_no_frames(name: FormatName, tmp_path: Path) -> None:
    vectors = [np.full(WIDTH, row, np.float32) for row in range(4)]
    written = shard(features=vectors, dtype="float32", ragged=False)
    rows = load_format(name).open(write(name, tmp_path, written))
    assert rows.num_frames.tolist() == [1, 1, 1, 1]
    np.testing.assert_array_equal([rows[row] for row in range(4)], vectors)


def test_shar_says_what_it_needs(tmp_path: Path) -> None:
    vectors = shard(features=[np.zeros(WIDTH, np.float16)] * 4, ragged=False)
    with pytest.raises(ValueError, match="needs features with frames; use --format arrow"):
        write("lhotse", tmp_path, vectors)
    with pytest.raises(ValueError, match="needs features with sample_rate and frame_shift"):
        write("lhotse", tmp_path, shard(facts={}))


@pytest.mark.parametrize("name", FORMATS)
def test_a_shard_can_be_empty(name: FormatName, tmp_path: Path) -> None:
    nothing = shard(path=[], features=[], seconds=[], columns={})
    rows = load_format(name).open(write(name, tmp_path, nothing))
    assert (len(rows), rows.num_frames.tolist()) == (0, [])


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_depend_on_the_rows_alone(
    name: FormatName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [path.read_bytes() for path in write(name, tmp_path, shard())]
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setenv("USER", "another")
    (tmp_path / "elsewhere").mkdir()
    second = [path.read_bytes() for path in write(name, tmp_path / "elsewhere", shard())]
    assert first == second
    assert not any(str(tmp_path).encode() in data for data in first)


@pytest.mark.parametrize("name", ["arrow", "npy", "lhotse"])
def test_rows_are_views_of_mapped_pages(name: FormatName, tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    rows = load_format(name).open(write(name, tmp_path, shard()))
    assert not rows[0].flags.owndata
    assert not rows[0].flags.writeable
    assert pa.total_allocated_bytes() - before < 2000
    opened = [
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
    ]
    assert not any("shard-" in path or "features." in path for path in opened)


def halves() -> list[Shard]:
    """The rows of `shard` in two parts."""
    whole = shard()
    return [
        shard(
            path=whole.path[rows],
            features=whole.features[rows],
            seconds=whole.seconds[rows],
            columns={name: values[rows] for name, values in whole.columns.items()},
        )
        for rows in (slice(3), slice(3, None))
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_parts_are_written_one_behind_the_other(name: FormatName, tmp_path: Path) -> None:
    paths = write(name, tmp_path, *halves())
    rows = load_format(name).open(paths)
    assert rows.num_frames.tolist() == list(FRAMES)
    for row, features in enumerate(shard().features):
        np.testing.assert_array_equal(rows[row], features)
    if name == "arrow":
        assert pa.ipc.open_file(pa.memory_map(str(paths[0]))).num_record_batches == 2
    elif name == "parquet":
        assert pq.ParquetFile(paths[0]).num_row_groups == 2
    else:
        assert [path.read_bytes() for path in write(name, tmp_path, shard())] == [
            path.read_bytes() for path in paths
        ]


def test_values_in_one_array_are_written_as_they_lie(tmp_path: Path) -> None:
    rows = shard()
    values = np.concatenate([features.reshape(-1) for features in rows.features])
    [apart] = write("arrow", tmp_path, rows)
    expected = apart.read_bytes()
    [together] = write("arrow", tmp_path, replace(rows, values=values))
    assert together.read_bytes() == expected


def test_a_row_that_is_too_large_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "MOST_VALUES", 11 * WIDTH)
    with pytest.raises(ValueError, match=r"\./d\.flac has 60 values"):
        write("arrow", tmp_path, shard())


def test_what_is_not_read_back_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = HashedFile.close

    def rot(self: HashedFile) -> None:
        """Close the file, of which one bit then turns."""
        close(self)
        [path] = tmp_path.iterdir()
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    monkeypatch.setattr(HashedFile, "close", rot)
    with pytest.raises(
        OSError, match=r"shard-000000\.arrow: what was written is not what was read"
    ):
        write("arrow", tmp_path, shard())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_named(name: FormatName, tmp_path: Path) -> None:
    paths = write(name, tmp_path, shard())
    damaged = paths[1] if name == "lhotse" else paths[0]
    whole = damaged.read_bytes()
    for content in (whole[: min(600, len(whole) // 2)], b""):
        damaged.write_bytes(content)
        with pytest.raises((ValueError, OSError), match=re.escape(str(damaged))):
            load_format(name).open(paths)


def test_pyarrow_reads_the_columns(tmp_path: Path) -> None:
    [path] = write("arrow", tmp_path, shard(key=["k1", "k2", "k3", "k4"]))
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    names = ["path", "key", "num_frames", "seconds", "word", "take", "more", "features"]
    assert table.column_names == names
    assert table.drop_columns(["features"]).to_pylist()[1] == {
        "path": "b/ç.wav", "key": "k2", "num_frames": 0, "seconds": 0.001,
        "word": None, "take": 2, "more": "{}",
    }  # fmt: skip
    np.testing.assert_array_equal(
        np.array(table["features"][3].as_py(), np.float16), shard().features[3]
    )
    facts = json.loads(table.schema.metadata[b"ast_fast_kernels"])
    assert facts == {
        "dtype": "float16",
        "frame_shift": 10.0,
        "ragged": True,
        "sample_rate": 16000,
        "width": WIDTH,
    }


def test_parquet_has_a_blob_a_row(tmp_path: Path) -> None:
    [path] = write("parquet", tmp_path, shard())
    row = pq.read_table(path).to_pylist()[3]
    features = np.frombuffer(row["features"], "float16").reshape(-1, WIDTH)
    np.testing.assert_array_equal(features, shard().features[3])


def test_datasets_gives_frames_by_bins(tmp_path: Path) -> None:
    """Hugging Face's library, with nothing of ours in between."""
    import datasets

    write("arrow", tmp_path, shard())
    write("arrow", tmp_path, shard(path=["e", "f", "g", "h"]), index=1)
    read = datasets.load_dataset(
        "arrow",
        data_files=str(tmp_path / "*.arrow"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    ).with_format("numpy")
    assert [read[row]["path"] for row in (3, 4)] == ["./d.flac", "e"]
    np.testing.assert_array_equal(read[3]["features"], shard().features[3].astype(np.float32))
    [first] = write("arrow", tmp_path, shard(), index=2)
    rows = load_format("arrow").open([first])  # `datasets` has given the type a class of its own
    np.testing.assert_array_equal(rows[3], shard().features[3])


def test_lhotse_loads_features_of_cuts(tmp_path: Path) -> None:
    import lhotse

    said = [
        [{"id": "s", "recording_id": "r", "start": 0, "duration": 0.07, "text": "hello"}],
        [],
        [],
        [],
    ]
    rows = shard(
        columns={"supervisions": said, "take": [1, 2, 3, 4]},
        types={"supervisions": "json", "take": "int64"},
    )
    write("lhotse", tmp_path, rows)
    (tmp_path / "manifest.jsonl").touch()  # must not be taken for a field of the cuts
    cuts = list(lhotse.CutSet.from_shar(in_dir=tmp_path / "shar"))
    assert [cut.id for cut in cuts] == ["a.wav", "b/ç.wav", "/c.wav", "d.flac"]
    assert cuts[0].supervisions[0].text == "hello"
    assert [cut.recording_id for cut in cuts] == ["r", *rows.path[1:]]
    for cut in (cut for cut in cuts if cut.num_frames):
        lhotse.validate(cut)  # as its datasets do
    assert (cuts[3].custom["path"], cuts[3].custom["take"]) == ("./d.flac", 4)
    assert (cuts[3].sampling_rate, cuts[3].frame_shift, cuts[3].num_frames) == (16000, 0.01, 12)
    np.testing.assert_array_equal(cuts[3].load_features(), rows.features[3])


EDGES = [0.0, -0.0, 65504.0, 65519.99, 2049.0, 2051.0, 6e-8, 2.9e-8, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize(
    "values",
    [EDGES, EDGES[:3], np.random.default_rng(1).normal(-8, 6, 4099)],
    ids=["edges", "few", "many"],
)
def test_float16_is_rounded_as_numpy_rounds(values: Sequence[float]) -> None:
    features = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        expected = features.astype(np.float16)
    np.testing.assert_array_equal(to_dtype(features, "float16"), expected)
    np.testing.assert_array_equal(to_dtype(features[::-2], "float16"), expected[::-2])


@pytest.mark.parametrize("beyond", [65520.0, -1e30])
@pytest.mark.parametrize("size", [3, 40])
def test_what_float16_cannot_hold_is_refused(beyond: float, size: int) -> None:
    features = np.array([np.inf] + [1.0] * size + [beyond], np.float32)
    with pytest.raises(
        ValueError, match=r"is beyond float16's range \(65504\); use --dtype float32"
    ):
        to_dtype(features, "float16")
    assert to_dtype(features, "float32") is features


def test_names_are_checked() -> None:
    with pytest.raises(
        ValueError, match="format must be one of arrow, npy, parquet, lhotse, got 'x'"
    ):
        load_format("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a further column cannot be called digest, path"):
        replace(shard(), columns={"path": [1], "digest": [2]})
