"""Temperatures: fitted on the tests of the other folds, and written into the models."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from ast_fast.data.dataset import Dataset
from ast_fast.data.metadata import Clip
from ast_fast.training import checkpoint
from ast_fast.training.calibration import (
    TEMPERATURE,
    at_temperature,
    calibrate,
    cross_entropies,
    fit_temperature,
    log_probabilities,
)
from ast_fast.training.manifest import (
    MANIFEST,
    check_files,
    describe,
    read_manifest,
    replace_listed,
    write_manifest,
)
from ast_fast.training.results import MODEL, FoldResult
from ast_fast_kernels.errors import InputError

NUM_CLASSES = 5


def drawn(num_clips: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return logits, and labels drawn from their softmax: the best temperature is 1."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((num_clips, NUM_CLASSES))
    shares = softmax(logits, axis=1).cumsum(axis=1)
    labels = (rng.random((num_clips, 1)) > shares).sum(axis=1)
    return logits, labels.clip(max=NUM_CLASSES - 1)


def loss(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    return -float(log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("known", [0.2, 1.0, 3.0])
def test_a_known_temperature_is_found(known: float) -> None:
    """Its standard error on 20,000 such clips is 1 %: the loss's second derivative gives it."""
    logits, labels = drawn(20_000, seed=1)
    found = fit_temperature(softmax(known * logits, axis=1).astype(np.float32), labels)
    assert found == pytest.approx(known, rel=0.03)
    assert found == float(f"{found:.4g}")


def test_it_is_where_the_loss_is_least() -> None:
    logits, labels = drawn(2000, seed=2)
    probabilities = softmax(3 * logits, axis=1).astype(np.float32)

    def objective(temperature: float) -> float:
        scale = 1 / temperature
        return len(labels) * loss(3 * logits * scale, labels) + scale - np.log(scale)

    found = fit_temperature(probabilities, labels)
    assert all(objective(found) < objective(found * factor) for factor in (0.99, 1.01))
    assert loss(3 * logits / found, labels) < 0.8 * loss(3 * logits, labels)


@pytest.mark.parametrize("num_clips", [1, 40, 1600])
def test_clips_that_are_all_right_leave_some_doubt(num_clips: int) -> None:
    """The loss alone would have them certain. Where its slope and the prior's are level, a share of
    (1 - temperature) / 4 of one clip remains: 4 is how far apart the logits are."""
    labels = np.arange(num_clips) % NUM_CLASSES
    probabilities = softmax(np.eye(NUM_CLASSES)[labels] * 4.0, axis=1)
    found = fit_temperature(probabilities, labels)
    doubt = 1 - at_temperature(probabilities, found).max(axis=1).mean()
    assert 0 < found < 1
    assert doubt == pytest.approx((1 - found) / (4 * num_clips), rel=0.01)


def test_clips_that_are_all_wrong_are_not_believed() -> None:
    labels = np.arange(1000) % NUM_CLASSES
    wrong = (labels + 1) % NUM_CLASSES
    probabilities = np.eye(NUM_CLASSES, dtype=np.float32)[wrong]  # certain, and zero elsewhere
    found = fit_temperature(probabilities, labels)
    assert np.isfinite(found)
    np.testing.assert_allclose(at_temperature(probabilities, found), 1 / NUM_CLASSES, atol=0.01)


def test_no_clip_has_no_temperature() -> None:
    with pytest.raises(ValueError, match="probabilities must have at least one clip, got none"):
        fit_temperature(np.empty((0, 3)), np.empty(0, np.int64))


def test_a_temperature_divides_the_logits() -> None:
    logits, _ = drawn(50, seed=3)
    probabilities = softmax(logits, axis=1).astype(np.float32)
    scaled = at_temperature(probabilities, 2.5)
    np.testing.assert_allclose(scaled, softmax(logits / 2.5, axis=1), rtol=1e-5)
    assert (scaled.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert at_temperature(probabilities, None) is probabilities
    assert np.isfinite(log_probabilities(np.zeros(1))).all()


def test_a_clip_s_loss_is_that_of_its_label() -> None:
    losses = cross_entropies(
        np.array([[0.25, 0.75], [0.25, 0.75], [1.0, 0.0]]), np.array([0, 1, 1])
    )
    least = np.finfo(np.float32).tiny  # counts for a probability of 0
    np.testing.assert_allclose(losses, -np.log([0.25, 0.75, least]), rtol=1e-12)


@pytest.fixture
def dataset() -> Dataset:
    """Three folds of 40 clips."""
    names = tuple("abcde")
    clips = tuple(
        Clip(f"{fold}-{take}.wav", fold, take % NUM_CLASSES, names[take % NUM_CLASSES])
        for fold in (1, 2, 3)
        for take in range(40)
    )
    return Dataset(
        waveforms=np.zeros((len(clips), 10), np.int16),
        clips=clips,
        class_names=names,
        labels=np.array([clip.target for clip in clips]),
        folds=np.array([clip.fold for clip in clips]),
        sample_rate=16000,
        bad_files=(),
        root=Path("/data"),
        key="k",
        decode_seconds=0.0,
        synthesised=False,
    )


@pytest.fixture
def results(dataset: Dataset) -> list[FoldResult]:
    rng = np.random.default_rng(4)
    found = []
    for fold in (1, 2, 3):
        indices = np.flatnonzero(dataset.folds == fold)
        logits = fold * (rng.standard_normal((40, 5)) + 2 * np.eye(5)[dataset.labels[indices]])
        probabilities = softmax(logits, axis=1).astype(np.float32)
        found.append(FoldResult(fold, 0.5, 1.0, [], indices, probabilities))
    return found


@pytest.fixture
def run(tmp_path: Path, results: list[FoldResult]) -> Path:
    """A run's folder with a small model for each fold."""
    for result in results:
        folder = tmp_path / f"fold-{result.fold}"
        folder.mkdir()
        facts = {"class_names": list("abcde"), "statistics": None, "loss": 0.1 + 0.2}
        checkpoint.save(folder / MODEL, {"weight": torch.randn(3)}, facts)
        write_manifest(folder, describe(folder, (MODEL,)))
    return tmp_path


def stored(run: Path, fold: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return a fold's model, which its manifest must list."""
    folder = run / f"fold-{fold}"
    files = read_manifest(folder)
    assert files is not None
    check_files(folder, files, (MODEL,))
    return checkpoint.load(folder / MODEL)


def test_every_model_gets_the_temperature_of_the_other_folds(
    run: Path, dataset: Dataset, results: list[FoldResult]
) -> None:
    before = {fold: stored(run, fold) for fold in (1, 2, 3)}
    calibrated = calibrate(run, dataset, results)
    for result in calibrated:
        others = [other for other in results if other.fold != result.fold]
        expected = fit_temperature(
            np.concatenate([other.probabilities for other in others]),
            np.concatenate([dataset.labels[other.test_indices] for other in others]),
        )
        tensors, facts = stored(run, result.fold)
        was, known = before[result.fold]
        assert result.temperature == facts[TEMPERATURE] == expected
        assert facts == known | {TEMPERATURE: expected}
        assert torch.equal(tensors["weight"], was["weight"])
    assert len({result.temperature for result in calibrated}) == 3


def test_a_fold_s_own_test_does_not_reach_its_temperature(
    run: Path, dataset: Dataset, results: list[FoldResult]
) -> None:
    honest = calibrate(run, dataset, results)
    labels = dataset.labels.copy()
    labels[dataset.folds == 1] = 0
    nonsense = replace(results[0], probabilities=results[0].probabilities[:, ::-1])
    changed = calibrate(run, replace(dataset, labels=labels), [nonsense, *results[1:]])
    assert changed[0].temperature == honest[0].temperature
    assert changed[1].temperature != honest[1].temperature
    assert changed[2].temperature != honest[2].temperature


def test_a_second_time_changes_no_file(
    run: Path, dataset: Dataset, results: list[FoldResult]
) -> None:
    calibrate(run, dataset, results)
    files = [path for path in run.rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in files}
    calibrate(run, dataset, results)
    assert {path: (path.read_bytes(), path.stat().st_ino) for path in files} == before


def test_one_fold_alone_has_none(run: Path, dataset: Dataset, results: list[FoldResult]) -> None:
    (alone,) = calibrate(run, dataset, results[:1])
    assert alone.temperature is None
    assert TEMPERATURE not in stored(run, 1)[1]
    calibrate(run, dataset, results)
    assert TEMPERATURE in stored(run, 1)[1]
    calibrate(run, dataset, results[:1])  # one of before does not stay
    assert TEMPERATURE not in stored(run, 1)[1]


def test_a_kill_at_any_write_leaves_files_that_are_listed(
    run: Path, dataset: Dataset, results: list[FoldResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    rename = os.replace

    def dying(left: int) -> Callable[[Any, Any], None]:
        def replace_or_die(source: Any, target: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Killed
            rename(source, target)

        return replace_or_die

    whole = {fold: (run / f"fold-{fold}" / MODEL).read_bytes() for fold in (1, 2, 3)}
    for dies_at in range(1, 10):
        for fold, content in whole.items():
            folder = run / f"fold-{fold}"
            (folder / MODEL).write_bytes(content)
            write_manifest(folder, describe(folder, (MODEL,)))
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying(dies_at))
            with pytest.raises(Killed):
                calibrate(run, dataset, results)
        for fold in (1, 2, 3):
            stored(run, fold)
        calibrated = calibrate(run, dataset, results)
        for result in calibrated:
            assert stored(run, result.fold)[1][TEMPERATURE] == result.temperature
            assert "next" not in (run / f"fold-{result.fold}" / MANIFEST).read_text()


def test_a_model_without_a_manifest_stays_without(
    run: Path, dataset: Dataset, results: list[FoldResult]
) -> None:
    (run / "fold-2" / MANIFEST).unlink()
    calibrate(run, dataset, results)
    assert checkpoint.load(run / "fold-2" / MODEL)[1][TEMPERATURE] > 0
    assert not (run / "fold-2" / MANIFEST).exists()


def test_an_announced_file_of_other_content_is_not_listed(run: Path) -> None:
    folder = run / "fold-1"
    with pytest.MonkeyPatch.context() as patch:
        rename = os.replace
        patch.setattr(os, "replace", lambda a, b: rename(a, b) if b.name == MANIFEST else fail())
        with pytest.raises(OSError, match="full"):
            replace_listed(folder, MODEL, b"another")
    stored(run, 1)
    (folder / MODEL).write_bytes(b"yet another")
    with pytest.raises(InputError, match=r"must have the .* bytes that manifest\.json lists"):
        stored(run, 1)


def fail() -> None:
    raise OSError("full")
