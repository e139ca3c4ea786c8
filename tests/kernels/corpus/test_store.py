"""FeatureStore: rows at random, without copies, in any process; what is damaged is named."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ast_fast_kernels import FbankConfig, FeatureStore
from ast_fast_kernels.corpus.manifest import MANIFEST, SETTINGS, SHARDS
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.testing.stores import write_store

CONFIG = FbankConfig(num_mel_bins=6)
FRAMES = (3, 9, 1, 4, 8, 2, 5)
FEATURES = [
    np.random.default_rng(row).normal(-8, 4, (count, 6)).astype(np.float16).astype(np.float32)
    for row, count in enumerate(FRAMES)
]
COLUMNS = {"fold": [1, 2, 3, 4, 5, 1, None], "tags": [["a"], {}, None, 1, "é", [], []]}
TYPES = {"fold": "int64", "tags": "json"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An extraction of seven rows in three shards."""
    return write_store(tmp_path / "out", FEATURES, CONFIG, columns=COLUMNS, types=TYPES)


@pytest.mark.parametrize("form", ["arrow", "npy", "lhotse"])
def test_rows_are_read_at_random(form: str, tmp_path: Path) -> None:
    store = FeatureStore(write_store(tmp_path / "out", FEATURES, CONFIG, form=form), verify=True)
    assert len(store) == 7
    for row in (6, 0, 3, -1, -7, np.int64(4)):
        np.testing.assert_array_equal(store[row], FEATURES[row])
        assert not store[row].flags.owndata
    assert [len(rows) for rows in store] == list(FRAMES)
    assert store.num_frames.tolist() == list(FRAMES)
    for beyond in (7, -8):
        with pytest.raises(IndexError, match=f"row must be from -7 to 6, got {beyond}"):
            store[beyond]


def test_settings_and_columns_are_told(folder: Path) -> None:
    store = FeatureStore(folder)
    assert (store.config, store.width, store.ragged, store.dtype) == (CONFIG, 6, True, np.float16)
    assert store.settings["output"]["format"] == "arrow"
    assert store.paths == [f"{row}.wav" for row in range(7)]
    assert store.table["fold"].to_pylist() == COLUMNS["fold"]
    assert store.table["tags"].to_pylist() == ['["a"]', "{}", None, "1", '"\\u00e9"', "[]", "[]"]
    assert store.table["frames"].to_pylist() == list(FRAMES)
    assert repr(store) == f"FeatureStore({str(folder)!r}: 7 rows (num_frames, 6) float16)"


def test_an_extraction_may_have_no_row(tmp_path: Path) -> None:
    store = FeatureStore(write_store(tmp_path / "out", [], CONFIG))
    assert (len(store), store.num_frames.tolist(), store.paths) == (0, [], [])


def test_shards_are_opened_by_their_first_use(folder: Path) -> None:
    store = FeatureStore(folder)
    assert store._shards == [None] * 3
    store[4]
    assert [rows is None for rows in store._shards] == [True, False, True]


def test_padding_is_silence(folder: Path) -> None:
    store = FeatureStore(folder)
    padded, lengths = store.pad([store[1], store[2]])
    assert (padded.shape, padded.dtype, lengths.tolist()) == ((2, 9, 6), np.float32, [9, 1])
    np.testing.assert_array_equal(padded[0], FEATURES[1])
    assert (padded[1, 1:] == np.float32(CONFIG.log_silence)).all()
    cut, lengths = store.pad([store[1], store[2]], 4)
    assert (cut.shape, lengths.tolist()) == ((2, 4, 6), [4, 1])
    np.testing.assert_array_equal(cut[0], FEATURES[1][:4])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_the_same_rows(folder: Path, start: Any) -> None:
    store = FeatureStore(folder)
    store[0]  # mapped before the workers are forked
    loader = DataLoader(
        store, batch_size=3, collate_fn=store.collate, num_workers=1, multiprocessing_context=start
    )
    rows = [
        row[:length]
        for batch, lengths in loader
        for row, length in zip(batch, lengths, strict=True)
    ]
    for row, features in zip(rows, FEATURES, strict=True):
        assert row.dtype == torch.float32
        np.testing.assert_array_equal(row, features)


def test_a_pickle_holds_no_features(folder: Path) -> None:
    store = FeatureStore(folder)
    store.table  # noqa: B018 - kept by the store from here on
    assert len(pickle.dumps(store)) < 500
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store))[5], FEATURES[5])


def test_what_is_missing_or_damaged_is_named(folder: Path, tmp_path: Path) -> None:
    shard = folder / "shard-000001.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-600] + whole[-600:].replace(b"\0", b"\1", 1))
    with pytest.raises(InputError, match=rf"^{re.escape(str(shard))} is damaged: its digest is"):
        FeatureStore(folder, verify=True)
    shard.write_bytes(whole[:500])
    with pytest.raises(
        InputError, match=rf"^{re.escape(str(shard))} must be an Arrow file .*; extract"
    ):
        FeatureStore(folder)[3]
    os.replace(folder / "shard-000002.arrow", shard)
    with pytest.raises(
        InputError, match=rf"^{re.escape(str(folder))}/shard-000002.arrow is missing"
    ):
        FeatureStore(folder)
    (folder / "shard-000002.arrow").touch()
    with pytest.raises(
        InputError, match=rf"^{re.escape(str(shard))} must have 3 rows, got 1; extract"
    ):
        FeatureStore(folder)[3]


def test_tables_that_do_not_fit_are_named(folder: Path) -> None:
    manifest = folder / MANIFEST
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:-1]))
    with pytest.raises(
        InputError, match=r"manifest\.jsonl must have a line for each of the 7 rows, got 6"
    ):
        FeatureStore(folder).paths  # noqa: B018
    manifest.write_text(lines[0].replace("1", '"one"'))
    with pytest.raises(InputError, match=r"manifest\.jsonl must be as extract wrote it"):
        FeatureStore(folder).paths  # noqa: B018
    (folder / SHARDS).write_text("{}\n[]\n")
    with pytest.raises(InputError, match=r"shards\.jsonl cannot be read"):
        FeatureStore(folder)


def test_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be the output of a finished extraction"):
        FeatureStore(tmp_path)
    parquet = write_store(tmp_path / "parquet", FEATURES, CONFIG, form="parquet")
    with pytest.raises(InputError, match=r"must hold arrow, npy or lhotse.*got parquet"):
        FeatureStore(parquet)
    (folder / SETTINGS).write_text("[output]\nformat = 'arrow'")
    with pytest.raises(InputError, match=r"extract\.toml must have the tables output and features"):
        FeatureStore(folder)


def test_a_models_vectors_have_no_config(folder: Path) -> None:
    settings = (folder / SETTINGS).read_text()
    (folder / SETTINGS).write_text(settings.replace('kind = "fbank"', 'kind = "embedding"'))
    store = FeatureStore(folder)
    assert store.silence == 0.0
    with pytest.raises(ValueError, match="holds no log-mel features: embedding"):
        store.config  # noqa: B018
