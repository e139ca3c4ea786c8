import csv
import math
import os
import re
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ast_fast.augment import rows_of, spliced
from ast_fast.data.dataset import Dataset, sound_levels
from ast_fast.data.metadata import Clip
from ast_fast.data.speeds import with_speeds
from ast_fast.features import model_input
from ast_fast.machine.device import Placement, resolve_placement
from ast_fast.machine.distributed import Ranks
from ast_fast.machine.timing import Stages
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.settings.config import (
    AugmentConfig,
    Config,
    FeatureConfig,
    ModelConfig,
    TrainingConfig,
)
from ast_fast.settings.rules import check_config, check_memory
from ast_fast.training import checkpoint
from ast_fast.training.batches import Batches
from ast_fast.training.fold import DivergedError, split_fold, train_fold
from ast_fast.training.observers import Observer
from ast_fast.training.optimiser import parameter_groups
from ast_fast.training.results import EpochRow, FoldResult
from ast_fast.training.schedule import (
    clip_losses,
    ema_decay,
    epoch_seeds,
    learning_rate,
    presence_bias,
    soft_cross_entropy,
)
from ast_fast_kernels import mix
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig

CPU = torch.device("cpu")
ON_CPU = Placement(CPU, None)
NO_AUGMENTATION = AugmentConfig(
    roll=False, gain_db=0, polarity=False, mix_probability=0, num_masks=0, patch_drop=0
)
SMALL = Config(
    device="cpu",
    fbank=FbankConfig(num_mel_bins=32),
    features=FeatureConfig(target_frames=32),
    model=ModelConfig(
        embed_dim=16,
        num_heads=2,
        depth=1,
        dropout=0.1,
        stochastic_depth=0.1,
        stem_widths=(4, 8),
        conditional_position=True,
        conv_depth=1,
    ),
    augment=AugmentConfig(freq_mask=8, time_mask=8),
    training=TrainingConfig(epochs=3, batch_size=8, warmup_epochs=1.0),
)


ADAMW = replace(SMALL, training=replace(SMALL.training, optimizer="adamw"))


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fake_dataset(num_clips: int = 30, num_classes: int = 5, num_samples: int = 5000) -> Dataset:
    """Return noisy tones, a pitch for each class, in three folds, numbered as a csv might."""
    rng = np.random.default_rng(0)
    labels = np.arange(num_clips) % num_classes
    folds = np.arange(num_clips) // num_classes % 3 + 1
    pitch = 300.0 * 2.0 ** labels[:, None] * rng.uniform(0.95, 1.05, (num_clips, 1))
    tones = np.sin(2 * np.pi * pitch * np.arange(num_samples) / 16000)
    waveforms = 8000 * tones + 500 * rng.standard_normal((num_clips, num_samples))
    names = tuple(f"class-{label}" for label in range(num_classes))
    return Dataset(
        waveforms=waveforms.astype(np.int16),
        clips=tuple(
            Clip(f"{index}.wav", int(fold), 10 * int(label), names[label])
            for index, (fold, label) in enumerate(zip(folds, labels, strict=True))
        ),
        class_names=names,
        labels=labels,
        folds=folds,
        sample_rate=16000,
        bad_files=(),
        root=Path("nowhere"),
        key="0123abcd",
        decode_seconds=0.0,
        synthesised=False,
    )


def weights(out_dir: Path, fold: int = 1) -> dict[str, torch.Tensor]:
    return checkpoint.load(out_dir / f"fold-{fold}" / "model.safetensors")[0]


def assert_same_training(result: FoldResult, expected: FoldResult) -> None:
    """Assert that everything but the clock is equal to the bit."""
    assert (result.fold, result.accuracy, result.loss) == (
        expected.fold,
        expected.accuracy,
        expected.loss,
    )
    np.testing.assert_array_equal(result.probabilities, expected.probabilities)
    np.testing.assert_array_equal(result.test_indices, expected.test_indices)
    timeless = [replace(row, seconds=0, clips_per_second=0) for row in result.history]
    assert timeless == [replace(row, seconds=0, clips_per_second=0) for row in expected.history]


def assert_same_weights(out_dir: Path, expected_dir: Path) -> None:
    tensors, expected = weights(out_dir), weights(expected_dir)
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensors[name], tensor), name


class Killer(Observer):
    """Interrupt the training where told."""

    def __init__(self, epoch: int, step: int | None = None) -> None:
        self.at = (epoch, step)

    def on_step(self, fold, epoch, step, num_steps, loss, clips):
        if (epoch, step) == self.at:
            raise KeyboardInterrupt

    def on_epoch(self, row):
        if (row.epoch, None) == self.at:
            raise KeyboardInterrupt

    @staticmethod
    def kill(*arguments):
        raise KeyboardInterrupt


class Recorder(Observer):
    def __init__(self) -> None:
        self.events: list[tuple] = []

    def on_fold_start(self, fold, num_train, num_test, epochs):
        self.events.append(("fold", fold, num_train, num_test, epochs))

    def on_step(self, fold, epoch, step, num_steps, loss, clips):
        self.events.append(("step", epoch, step, num_steps, clips))

    def on_epoch(self, row):
        self.events.append(("epoch", row.epoch))

    def on_fold_end(self, result):
        self.events.append(("end", result.fold))


@pytest.mark.parametrize("loss", ["shares", "presence"])
def test_a_small_model_learns_twenty_clips_by_heart(tmp_path, loss):
    config = replace(
        SMALL,
        augment=NO_AUGMENTATION,
        model=ModelConfig(embed_dim=32, num_heads=2, depth=2),
        training=TrainingConfig(
            epochs=50,
            batch_size=10,
            learning_rate=5e-3,
            warmup_epochs=2.0,
            label_smoothing=0,
            loss=loss,
        ),
    )
    result = train_fold(config, fake_dataset(), 1, tmp_path)
    assert result.history[-1].train_accuracy == 1.0
    assert result.history[-1].train_loss < (0.1 if loss == "shares" else 0.2)  # the sum of five
    assert result.accuracy == 1.0  # the tones of the test fold are easy
    if loss == "presence":  # at first about that of even odds: one class in five is there
        assert result.history[0].train_loss == pytest.approx(
            math.log(5) + 4 * math.log(5 / 4), rel=0.1
        )


def test_training_with_all_augmentation_is_better_than_chance(tmp_path):
    config = replace(
        SMALL, training=TrainingConfig(epochs=40, batch_size=10, warmup_epochs=2, ema_decay=0.9)
    )
    assert train_fold(config, fake_dataset(), 2, tmp_path).accuracy > 0.6


def test_a_fold_writes_its_files_and_no_others(tmp_path):
    dataset = fake_dataset()
    config = replace(SMALL, features=FeatureConfig(norm_per_sample=False, target_frames=32))
    result = train_fold(config, dataset, 2, tmp_path)
    folder = tmp_path / "fold-2"
    assert {path.name for path in folder.iterdir()} == {
        "history.csv",
        "predictions.csv",
        "model.safetensors",
        "manifest.json",
    }
    np.testing.assert_array_equal(result.test_indices, np.flatnonzero(dataset.folds == 2))

    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert float(rows[-1]["test_accuracy"]) == result.accuracy == result.history[-1].test_accuracy
    assert float(rows[-1]["test_loss"]) == result.loss
    assert float(rows[1]["train_loss"]) == result.history[1].train_loss

    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["filename", "fold", "target", "predicted"]
    assert list(rows[0])[4:] == list(dataset.class_names)
    assert [row["filename"] for row in rows] == [
        dataset.clips[index].filename for index in result.test_indices
    ]
    assert {row["fold"] for row in rows} == {"2"}
    right = [row["target"] == row["predicted"] for row in rows]
    assert sum(right) / len(right) == result.accuracy
    assert {row["target"] for row in rows} == {"0", "10", "20", "30", "40"}  # the csv's own numbers

    tensors, facts = checkpoint.load(folder / "model.safetensors")
    assert facts["run"]["fold"] == 2
    assert facts["run"]["model"]["embed_dim"] == 16
    assert facts["class_names"] == list(dataset.class_names)
    assert facts["statistics"]["std"] > 0
    assert facts["accuracy"] == result.accuracy
    model = AudioSpectrogramTransformer(SMALL.model, num_mel_bins=32, num_frames=32, num_classes=5)
    model.load_state_dict(tensors)


def test_probabilities_are_those_of_the_test_fold(tmp_path):
    dataset = fake_dataset()
    result = train_fold(SMALL, dataset, 1, tmp_path)
    assert result.probabilities.shape == (10, 5)
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, rtol=1e-5)
    labels = dataset.labels[result.test_indices]
    assert result.accuracy == np.mean(result.probabilities.argmax(axis=1) == labels)
    own = result.probabilities[np.arange(len(labels)), labels]
    assert result.loss == pytest.approx(-np.log(own).mean(), rel=1e-5)


def test_the_observer_sees_every_step(tmp_path):
    recorder = Recorder()
    config = replace(SMALL, training=replace(SMALL.training, epochs=1))
    train_fold(config, fake_dataset(), 3, tmp_path, observers=[recorder])
    assert recorder.events == [
        ("fold", 3, 20, 10, 1),
        ("step", 1, 1, 3, 8),
        ("step", 1, 2, 3, 8),
        ("step", 1, 3, 3, 4),  # the last, small batch is used
        ("epoch", 1),
        ("end", 3),
    ]


def test_the_time_of_every_stage_is_counted(tmp_path):
    stages = Stages()
    train_fold(SMALL, fake_dataset(), 1, tmp_path, stages=stages)
    assert stages.seconds.keys() == {"features", "forward", "backward", "other"}
    assert all(seconds > 0 for seconds in stages.seconds.values())


@pytest.mark.parametrize(
    "killer",
    [
        Killer(1, 1),
        Killer(1),
        Killer(2, 2),
        Killer(2),
        Killer(3),
    ],
    ids=[
        "before-any-checkpoint",
        "after-the-first-epoch",
        "within-an-epoch",
        "after-the-second-epoch",
        "before-the-fold-is-finished",
    ],
)
@pytest.mark.parametrize("norm_per_sample", [True, False], ids=["per-sample", "statistics"])
def test_a_resumed_fold_is_equal_to_the_bit(tmp_path, killer, norm_per_sample):
    dataset = fake_dataset()
    config = replace(
        SMALL,
        features=FeatureConfig(norm_per_sample=norm_per_sample, target_frames=32),
        augment=replace(SMALL.augment, speeds=(0.8, 1.25)),
    )
    expected = train_fold(config, dataset, 1, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_fold(config, dataset, 1, tmp_path / "killed", observers=[killer])
    assert not (tmp_path / "killed" / "fold-1" / "model.safetensors").exists()
    torch.manual_seed(123)  # whatever state another process has
    result = train_fold(replace(config, resume=True), dataset, 1, tmp_path / "killed")
    assert_same_training(result, expected)
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert not (tmp_path / "killed" / "fold-1" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("name", ["predictions.csv", "model.safetensors", "manifest.json"])
def test_a_fold_killed_while_it_finishes_is_finished_on_resume(tmp_path, monkeypatch, name):
    dataset = fake_dataset()
    expected = train_fold(SMALL, dataset, 1, tmp_path / "whole")
    rename = os.replace

    def kill(source, target):
        if Path(target).name == name:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", kill)
        with pytest.raises(KeyboardInterrupt):
            train_fold(SMALL, dataset, 1, tmp_path / "killed")
    result = train_fold(replace(SMALL, resume=True), dataset, 1, tmp_path / "killed")
    assert_same_training(result, expected)
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")


def test_what_a_kill_within_a_write_left_behind_is_removed(tmp_path, monkeypatch):
    dataset = fake_dataset()
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda path, missing_ok=False: None)
        patch.setattr("os.replace", Killer.kill)  # a SIGKILL runs no clean-up either
        with pytest.raises(KeyboardInterrupt):
            train_fold(SMALL, dataset, 1, tmp_path)
    folder = tmp_path / "fold-1"
    assert len(list(folder.iterdir())) == 1
    train_fold(replace(SMALL, resume=True), dataset, 1, tmp_path)
    assert {path.suffix for path in folder.iterdir()} == {".csv", ".json", ".safetensors"}
    assert len(list(folder.iterdir())) == 4


def test_a_finished_fold_is_not_trained_again(tmp_path):
    dataset = fake_dataset()
    expected = train_fold(SMALL, dataset, 1, tmp_path)
    model = tmp_path / "fold-1" / "model.safetensors"
    before = model.stat().st_mtime_ns
    recorder = Recorder()
    result = train_fold(replace(SMALL, resume=True), dataset, 1, tmp_path, observers=[recorder])
    assert_same_training(result, expected)
    assert result.history == expected.history  # the clock too: it is read, not measured
    assert recorder.events == [("fold", 1, 20, 10, 3), ("end", 1)]
    assert model.stat().st_mtime_ns == before


def test_without_resume_a_fold_begins_anew(tmp_path):
    dataset = fake_dataset()
    with pytest.raises(KeyboardInterrupt):
        train_fold(SMALL, dataset, 1, tmp_path, observers=[Killer(1)])
    recorder = Recorder()
    train_fold(SMALL, dataset, 1, tmp_path, observers=[recorder])
    assert [event for event in recorder.events if event[0] == "epoch"] == [
        ("epoch", 1),
        ("epoch", 2),
        ("epoch", 3),
    ]


def test_another_run_is_not_resumed(tmp_path):
    dataset = fake_dataset()
    with pytest.raises(KeyboardInterrupt):
        train_fold(SMALL, dataset, 1, tmp_path, observers=[Killer(1)])
    resumed = replace(SMALL, resume=True)
    other = replace(resumed, training=replace(SMALL.training, learning_rate=2e-3))
    message = "checkpoint.safetensors belongs to another run: training.learning_rate is 0.003 there"
    with pytest.raises(InputError, match=message):
        train_fold(other, dataset, 1, tmp_path)
    with pytest.raises(InputError, match="belongs to another run: data_key is 0123abcd there"):
        train_fold(resumed, replace(dataset, key="4567"), 1, tmp_path)
    train_fold(resumed, dataset, 1, tmp_path)
    with pytest.raises(InputError, match=r"model.safetensors belongs to another run"):
        train_fold(other, dataset, 1, tmp_path)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "predictions.csv"])
def test_a_damaged_file_stops_the_resume_and_is_named(tmp_path, name):
    dataset = fake_dataset()
    if name == "checkpoint.safetensors":
        with pytest.raises(KeyboardInterrupt):
            train_fold(SMALL, dataset, 1, tmp_path, observers=[Killer(1)])
    else:
        train_fold(SMALL, dataset, 1, tmp_path)
    path = tmp_path / "fold-1" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"fold-1.{name} must .*remove"):
        train_fold(replace(SMALL, resume=True), dataset, 1, tmp_path)


def _without_a_tensor(tensors, facts):
    del tensors["model.head.bias"]


def _of_another_shape(tensors, facts):
    tensors["average.head.bias"] = torch.zeros(3)


def _without_an_optimiser(tensors, facts):
    for name in [name for name in tensors if name.startswith("optimizer.")]:
        del tensors[name]


def _without_a_moment(tensors, facts):
    del tensors["optimizer.head.bias.exp_avg"]


def _with_a_moment_of_another_shape(tensors, facts):
    tensors["optimizer.head.bias.exp_avg"] = torch.zeros(1, 1)


def _without_moments_of_a_parameter(tensors, facts):
    for name in [name for name in tensors if name.startswith("optimizer.head.bias.")]:
        del tensors[name]


def _nested(tensors, facts):
    for _ in range(400):
        facts["run"] = {"model": facts["run"]}


@pytest.mark.parametrize(
    "change",
    [
        _without_a_tensor,
        _of_another_shape,
        _without_an_optimiser,
        _without_a_moment,
        _with_a_moment_of_another_shape,
        _without_moments_of_a_parameter,
        _nested,
        lambda tensors, facts: facts.pop("run"),
        lambda tensors, facts: facts.update(run=[1]),
        lambda tensors, facts: facts.update(history=[{"epoch": 1}]),
        lambda tensors, facts: facts.update(history=3),
        lambda tensors, facts: facts.update(stages="x"),
        lambda tensors, facts: facts.pop("scaler"),
        lambda tensors, facts: facts.update(statistics={"mean": 0.0}),
    ],
)
def test_a_crafted_checkpoint_stops_the_resume_and_is_named(interrupted, tmp_path, change):
    """Fourteen files whose checksum is right."""
    tensors, facts = checkpoint.load(interrupted)
    change(tensors, facts)
    path = tmp_path / "fold-1" / "checkpoint.safetensors"
    path.parent.mkdir()
    checkpoint.save(path, tensors, facts)
    with pytest.raises(InputError, match=r"checkpoint\.safetensors (must|was wri|belongs)"):
        train_fold(replace(SMALL, resume=True), fake_dataset(), 1, tmp_path)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(KeyboardInterrupt):
        train_fold(SMALL, fake_dataset(), 1, folder, observers=[Killer(1)])
    return folder / "fold-1" / "checkpoint.safetensors"


def test_names_that_a_spreadsheet_would_run_are_quoted_and_read_back(tmp_path):
    dataset = fake_dataset()
    names = ("=cmd|' /C calc'!A0", "@SUM(1)", "'quoted", "-dash", "plain")
    clips = [
        replace(clip, category=names[label], filename=f"={clip.filename}")
        for clip, label in zip(dataset.clips, dataset.labels, strict=True)
    ]
    dataset = replace(dataset, clips=tuple(clips), class_names=names)
    expected = train_fold(SMALL, dataset, 1, tmp_path)
    with (tmp_path / "fold-1" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header[4:] == [f"'{name}" for name in names[:4]] + ["plain"]
    assert all(row[0].startswith("'=") for row in rows)
    result = train_fold(replace(SMALL, resume=True), dataset, 1, tmp_path)
    assert_same_training(result, expected)


def test_a_seed_gives_the_same_numbers_and_another_seed_others(tmp_path):
    dataset = fake_dataset()
    first = train_fold(SMALL, dataset, 1, tmp_path / "first")
    torch.rand(7)
    again = train_fold(SMALL, dataset, 1, tmp_path / "again")
    other = train_fold(replace(SMALL, seed=1), dataset, 1, tmp_path / "other")
    assert_same_training(again, first)
    assert_same_weights(tmp_path / "again", tmp_path / "first")
    assert other.loss != first.loss


def test_training_leaves_the_global_random_state_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_fold(SMALL, fake_dataset(), 1, tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("norm_per_sample", [True, False], ids=["per-sample", "statistics"])
def test_nothing_of_the_test_fold_touches_training(tmp_path, norm_per_sample):
    """Other sounds and other labels in the test fold change no weight and no statistic."""
    dataset = fake_dataset()
    config = replace(
        SMALL, features=FeatureConfig(norm_per_sample=norm_per_sample, target_frames=32)
    )
    train_fold(config, dataset, 1, tmp_path / "clean")
    waveforms, labels = dataset.waveforms.copy(), dataset.labels.copy()
    waveforms[dataset.folds == 1] = np.random.default_rng(1).choice([-32768, 32767], (10, 5000))
    labels[dataset.folds == 1] = 0
    poisoned = replace(dataset, waveforms=waveforms, labels=labels)
    train_fold(config, poisoned, 1, tmp_path / "poisoned")
    assert_same_weights(tmp_path / "poisoned", tmp_path / "clean")
    facts = [
        checkpoint.load(tmp_path / name / "fold-1" / "model.safetensors")[1]
        for name in ("clean", "poisoned")
    ]
    assert facts[0]["statistics"] == facts[1]["statistics"]
    assert facts[0]["history"][-1]["train_loss"] == facts[1]["history"][-1]["train_loss"]
    assert facts[0]["loss"] != facts[1]["loss"]


def test_the_learning_curve_changes_nothing(tmp_path, monkeypatch):
    dataset = fake_dataset()
    every = train_fold(SMALL, dataset, 1, tmp_path / "every")
    assert all(row.test_loss is not None for row in every.history)
    monkeypatch.setattr("ast_fast.training.fold.CURVE_POINTS", 1)
    once = train_fold(SMALL, dataset, 1, tmp_path / "once")
    assert [row.test_loss is None for row in once.history] == [True, True, False]
    assert_same_weights(tmp_path / "every", tmp_path / "once")


def test_a_loss_that_is_no_number_says_where_and_what_to_change(tmp_path):
    config = replace(
        SMALL,
        training=replace(SMALL.training, learning_rate=1e30, clip_grad_norm=0, warmup_epochs=0),
    )
    message = (
        r"the loss of fold 1 became (nan|inf) at epoch 1, step \d; lower training.learning_rate "
        r"\(now 1e\+30\), change training.clip_grad_norm \(now 0\), or turn training.amp off$"
    )
    with pytest.raises(DivergedError, match=message) as caught:
        train_fold(config, fake_dataset(), 1, tmp_path)
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, InputError)


def test_bfloat16_trains_on_the_cpu(tmp_path):
    config = replace(SMALL, training=replace(SMALL.training, amp="bfloat16"))
    result = train_fold(config, fake_dataset(), 1, tmp_path)
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


def test_without_average_the_trained_weights_are_tested(tmp_path):
    config = replace(SMALL, training=replace(SMALL.training, ema_decay=0.0))
    result = train_fold(config, fake_dataset(), 1, tmp_path)
    averaged = train_fold(SMALL, fake_dataset(), 1, tmp_path / "averaged")
    assert result.history[-1].train_loss == averaged.history[-1].train_loss
    assert result.loss != averaged.loss


def test_the_tested_weights_are_the_average_of_the_trained_ones(tmp_path, monkeypatch):
    """Follow every step's weights and average them by the formula."""
    trained: list[list[torch.Tensor]] = []
    step = torch.optim.AdamW.step

    def record(self, *args, **kwargs):
        if not trained:
            trained.append([p.detach().clone() for g in self.param_groups for p in g["params"]])
        step(self, *args, **kwargs)
        trained.append([p.detach().clone() for g in self.param_groups for p in g["params"]])

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    train_fold(ADAMW, fake_dataset(), 1, tmp_path)
    average = [parameter.double() for parameter in trained[0]]
    for number, parameters in enumerate(trained[1:]):
        decay = min(0.995, (1 + number) / (10 + number))
        average = [
            decay * a + (1 - decay) * p.double() for a, p in zip(average, parameters, strict=True)
        ]
    model = AudioSpectrogramTransformer(SMALL.model, num_mel_bins=32, num_frames=32, num_classes=5)
    tested = weights(tmp_path)
    names = [name for group in parameter_groups(model) for name in group]
    for name, expected in zip(names, average, strict=True):
        torch.testing.assert_close(tested[name].double(), expected, rtol=1e-5, atol=1e-7)


def test_decay_of_the_average_grows_to_its_limit():
    assert ema_decay(0, 0.995) == 0.1
    assert ema_decay(90, 0.995) == 0.91
    assert ema_decay(10**6, 0.995) == 0.995


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    config = TrainingConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_epochs=2.0)
    rates = [learning_rate(step, 50, 5, config) for step in range(50)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[9] == max(rates) == 1.0
    assert rates[29] == pytest.approx(0.55)  # halfway down
    assert rates[49] == pytest.approx(0.1)
    assert all(left > right for left, right in pairwise(rates[9:]))


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_warm_up_longer_than_the_run_leaves_half_of_it(num_steps):
    config = TrainingConfig(learning_rate=1.0, final_learning_rate=0.0, warmup_epochs=5.0)
    rates = [learning_rate(step, num_steps, 1, config) for step in range(num_steps)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[-1] == pytest.approx(0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_hard_labels_is_torchs(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 1, 0])
    targets = torch.nn.functional.one_hot(labels, 4).float()
    expected = torch.nn.functional.cross_entropy(
        logits, labels, label_smoothing=smoothing, reduction="none"
    )
    torch.testing.assert_close(soft_cross_entropy(logits, targets, smoothing), expected)


def test_the_loss_of_soft_labels_is_linear_in_them():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, generator=generator)
    first, second = torch.eye(3)[:1], torch.eye(3)[1:2]
    mixed = soft_cross_entropy(logits, 0.3 * first + 0.7 * second, 0.1)
    parts = [soft_cross_entropy(logits, target, 0.1) for target in (first, second)]
    torch.testing.assert_close(mixed, 0.3 * parts[0] + 0.7 * parts[1])


def test_a_presence_is_learnt_for_every_class_of_a_mixture():
    """Hand-computed: −log σ(z) where a sound is present, −log σ(−z) where it is not."""
    logits = torch.tensor([[0.0, math.log(3.0), -math.log(3.0)]])
    config = TrainingConfig(loss="presence", label_smoothing=0)
    of_first = -math.log(1 / 2) - math.log(1 / 4) - math.log(3 / 4)
    of_both = -math.log(1 / 2) - math.log(3 / 4) - math.log(3 / 4)
    for shares, expected in (
        ([1.0, 0.0, 0.0], of_first),
        ([0.5, 0.5, 0.0], of_both),
        ([0.9, 0.1, 0.0], of_both),
        ([0.91, 0.09, 0.0], of_first),  # too quiet to count
    ):
        loss = clip_losses(logits, torch.tensor([shares]), config)
        torch.testing.assert_close(loss, torch.tensor([expected]))


def test_a_head_begins_with_each_class_as_likely():
    assert torch.tensor(presence_bias(50)).sigmoid().item() == pytest.approx(1 / 50)


def test_epochs_folds_and_seeds_have_seeds_of_their_own():
    seeds = [
        epoch_seeds(seed, fold, epoch)
        for seed in range(5)
        for fold in range(1, 6)
        for epoch in range(5)
    ]
    assert len({seed for pair in seeds for seed in pair}) == 2 * len(seeds)


def test_processes_draw_the_same_data_and_dropout_of_their_own():
    data, own = zip(*(epoch_seeds(3, 1, 2, rank) for rank in range(4)), strict=True)
    assert len(set(data)) == 1
    assert len(set(own)) == 4


def test_folds_split_the_clips():
    dataset = fake_dataset()
    train, test = split_fold(dataset, 3)
    assert sorted([*train, *test]) == list(range(30))
    assert set(dataset.folds[test]) == {3}


def test_a_fold_that_does_not_exist_is_named():
    with pytest.raises(InputError, match=r"fold must be one of .*\(1, 2, 3\), got 7"):
        split_fold(fake_dataset(), 7)


def test_a_class_without_training_clip_is_named():
    dataset = fake_dataset()
    folds = dataset.folds.copy()
    folds[dataset.labels == 1] = 2
    with pytest.raises(InputError, match=r"training clip outside fold 2, got none of class-1"):
        split_fold(replace(dataset, folds=folds), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "training.epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "training.batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "training.learning_rate must be finite and above 0, got 0.0"),
        ({"learning_rate": math.inf}, "training.learning_rate must be finite and above 0, got inf"),
        ({"final_learning_rate": -1.0}, "training.final_learning_rate must be finite and at least"),
        ({"weight_decay": -0.1}, "training.weight_decay must be finite and at least 0, got -0.1"),
        ({"warmup_epochs": math.nan}, "training.warmup_epochs must be finite and at least 0, got"),
        ({"clip_grad_norm": -1.0}, "training.clip_grad_norm must be finite and at least 0"),
        ({"label_smoothing": 1.0}, "training.label_smoothing must be from 0 to below 1, got 1.0"),
        (
            {"loss": "presence"},
            "training.label_smoothing must be 0 where training.loss is presence, got 0.1",
        ),
        ({"ema_decay": 1.0}, "training.ema_decay must be from 0 to below 1, got 1.0"),
        ({"amp": "float16"}, "training.amp must be auto, off or bfloat16 on the CPU, got float16"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_training_settings_out_of_range_are_named(changes, message):
    config = replace(SMALL, training=replace(SMALL.training, **changes))
    with pytest.raises(InputError, match=message):
        check_config(config, 5000, resolve_placement("cpu", config.training.amp))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(SMALL, seed=-1), "seed must be at least 0, got -1"),
        (replace(SMALL, model=ModelConfig(embed_dim=130)), "model.embed_dim must be divisible"),
        (
            replace(SMALL, augment=AugmentConfig(speeds=(0.8, 0.4))),
            r"augment.speeds must be from 0.5 to 2 .*\(16000\), got 0.4",
        ),
        (replace(SMALL, augment=AugmentConfig(speeds=(1.00001,))), "augment.speeds must be"),
        (replace(SMALL, augment=AugmentConfig(freq_mask=33)), "augment.freq_mask"),
        (replace(SMALL, model=ModelConfig(patch_size=(16, 33))), "model.patch_size must fit"),
        (replace(SMALL, features=FeatureConfig(target_frames=8)), "the 29 frames of a clip"),
    ],
    ids=["seed", "model", "augment", "speeds", "hertz", "patches", "features"],
)
def test_every_part_of_the_config_is_checked_before_anything_is_done(tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        train_fold(config, fake_dataset(), 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_shipped_defaults_are_good():
    check_config(Config(), 80000, ON_CPU)


@pytest.mark.parametrize(("optimizer", "pool"), [("muon", "mean"), ("adamw", "cls")])
@pytest.mark.parametrize(("stem", "conv_depth"), [((), 0), ((96, 384), 0), ((), 3)])
def test_the_weights_are_counted_close_to_what_they_are(
    monkeypatch, stem, conv_depth, optimizer, pool
):
    """Let a machine have just too little, or just enough, for the weights of a model."""
    config = replace(
        Config(),
        model=ModelConfig(stem_widths=stem, conv_depth=conv_depth, pool=pool),
        training=TrainingConfig(batch_size=1, ema_decay=0, optimizer=optimizer),
    )
    model = AudioSpectrogramTransformer(
        config.model, num_mel_bins=128, num_frames=512, num_classes=50
    )
    weights = 4 * 4 * sum(parameter.numel() for parameter in model.parameters())
    if optimizer == "muon":  # which has one moment of each matrix
        weights -= 4 * sum(parameter.numel() for parameter in parameter_groups(model)[0].values())
    sizes = {"num_samples": 1, "num_clips": 1, "num_classes": 50}
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 0.95 * weights}.get)
    with pytest.raises(InputError, match=r"model.embed_dim 192, model.depth 4 and model.mlp_ratio"):
        check_memory(config, **sizes)
    batch = 4 * (512 * 128 + 256 * 128 + 1) + 8 * 128 * 257
    if stem:
        batch += 4 * 256 * (16 * 96 + 4 * 384)
    if conv_depth:
        batch += 4 * 256 * 384
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": weights + batch}.get)
    check_memory(config, **sizes)


def test_memory_is_counted_for_the_clips_that_there_are():
    config = replace(Config(), training=TrainingConfig(batch_size=2**31 - 1))
    check_memory(config, num_samples=80000, num_clips=2, num_classes=2)
    with pytest.raises(InputError, match=r"training.batch_size 2147483647, features.target_frames"):
        check_memory(config, num_samples=80000, num_clips=10**9, num_classes=2)


def test_memory_is_counted_for_copies_at_other_speeds():
    config = replace(Config(), augment=AugmentConfig(speeds=(0.8, 1.25)))
    with pytest.raises(InputError, match=r"augment.speeds 0.8 1.25 need at least 447\S* GiB"):
        check_memory(config, num_samples=80000, num_clips=10**6, num_classes=2)


@pytest.mark.parametrize(("memory", "fits"), [(500 * 2**30, True), (400 * 2**30, False)])
def test_copies_at_other_speeds_are_in_the_memory_of_a_gpus_host(monkeypatch, memory, fits):
    config = replace(Config(), augment=AugmentConfig(speeds=(0.8, 1.25)))
    monkeypatch.setattr("ast_fast.settings.rules._physical_memory", lambda: memory)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=8 * 2**30)
    )
    with nullcontext() if fits else pytest.raises(InputError, match=r"augment.speeds 0.8 1.25 nee"):
        check_memory(
            config,
            num_samples=80000,
            num_clips=10**6,
            num_classes=2,
            device=torch.device("cuda"),
        )


def test_copies_at_other_speeds_add_to_no_other_need(monkeypatch):
    model = replace(Config().model, conv_depth=50, embed_dim=1536)
    counted = []
    for speeds in ((), (0.8, 0.9, 1.1, 1.2, 1.25, 1.5, 2.0)):
        config = replace(Config(), model=model, augment=AugmentConfig(speeds=speeds))
        monkeypatch.setattr("ast_fast.settings.rules._physical_memory", lambda: 2**20)
        with pytest.raises(InputError) as caught:
            check_memory(config, num_samples=1000, num_clips=1, num_classes=2)
        counted.append(float(re.search(r"need at least (\S+) GiB", str(caught.value))[1]))
    assert counted[1] == pytest.approx(counted[0], rel=1e-3)  # the copies are 16 kB


def test_dither_is_for_training_alone(tmp_path):
    """It changes the training, and nothing of a test depends on what was drawn before it."""
    dithered = replace(SMALL, fbank=SMALL.fbank.replace(dither=1.0))
    first = train_fold(dithered, fake_dataset(), 1, tmp_path / "dithered")
    plain = train_fold(SMALL, fake_dataset(), 1, tmp_path / "plain")
    assert first.history[-1].train_loss != plain.history[-1].train_loss
    with pytest.raises(KeyboardInterrupt):
        train_fold(dithered, fake_dataset(), 1, tmp_path / "killed", observers=[Killer(3)])
    torch.manual_seed(123)
    resumed = replace(dithered, resume=True)
    again = train_fold(resumed, fake_dataset(), 1, tmp_path / "killed")
    assert_same_training(again, first)
    assert_same_weights(tmp_path / "killed", tmp_path / "dithered")


def make(batches, drawn, clips, first, rows):
    """Return features, targets and kept patches of rows of a batch."""
    inputs = batches.load(drawn, clips, first, rows)
    return batches.features(inputs), inputs.drawn.mixtures.targets, inputs.drawn.keep


def test_a_batch_is_made_where_the_model_is():
    """All that is drawn on the CPU must follow; meta stands for a device of its own."""
    meta = torch.device("meta")
    augment = AugmentConfig(freq_mask=8, time_mask=8, mix_probability=1.0, filter_db=3.0)
    config = replace(SMALL, augment=augment)
    dataset = fake_dataset()
    batches = Batches(config, dataset, None, meta)
    sources, drawn = batches.draw(np.arange(16), torch.Generator().manual_seed(0))
    features, targets, keep = make(batches, drawn, sources[8:16], 8, slice(0, 5))
    assert keep is not None
    assert (features.device, targets.device, keep.device) == (meta, meta, meta)
    assert features.shape == (5, 32, 32)
    assert keep.shape[0] == 5


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("mix_probability", [0.0, 1.0])
@pytest.mark.parametrize("cutmix_probability", [0.0, 1.0])
def test_what_is_drawn_ahead_reaches_the_clips_it_is_for(
    mix_probability, cutmix_probability, capturable
):
    """Of two batches and one of a single clip, made by one process or by three."""
    augment = AugmentConfig(
        freq_mask=8, time_mask=8, mix_probability=mix_probability,
        cutmix_probability=cutmix_probability, filter_db=3.0,
    )  # fmt: skip
    config = replace(SMALL, augment=augment, training=replace(SMALL.training, batch_size=8))
    dataset = fake_dataset()
    batches = Batches(config, dataset, None, CPU, capturable=capturable)
    order = np.arange(17)[::-1].copy()
    sources, drawn = batches.draw(order, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(sources, order)
    for first in (0, 8, 16):
        batch = sources[first : first + 8]
        whole = make(batches, drawn, batch, first, slice(0, len(batch)))
        parts = [
            make(batches, drawn, batch, first, Ranks(rank, 3).part(len(batch))) for rank in range(3)
        ]
        for made, pieces in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.cat(pieces), made)
        among = slice(first, first + len(batch))
        mixtures = rows_of(drawn.mixtures, among)
        clips = torch.from_numpy(order)[mixtures.clips]
        mixed = mix(dataset.waveforms, clips, mixtures.starts, mixtures.factors)
        expected = model_input(mixed, config, None, changes=rows_of(drawn.changes, among))
        classes = torch.from_numpy(dataset.labels)[clips]
        if cutmix_probability:
            cuts = rows_of(drawn.cuts, among)
            cuts = cuts._replace(partners=cuts.partners - first)
            expected = spliced(expected, cuts)
            classes = torch.cat((classes, classes[cuts.partners]), dim=1)
        features, targets, _ = whole
        assert torch.equal(features, expected)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(batch)))
        named = torch.zeros_like(targets).scatter_(1, classes, value=1.0)
        assert not targets[named == 0].any()


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("mix_probability", [0.0, 1.0])
def test_half_of_the_clips_are_heard_at_another_speed(mix_probability, capturable):
    """Each draw's clips are those that it names, at its own level."""
    augment = AugmentConfig(
        roll=False, gain_db=0, polarity=False, num_masks=0, patch_drop=0,
        mix_probability=mix_probability, speeds=(0.8, 1.25),
    )  # fmt: skip
    config = replace(SMALL, augment=augment)
    dataset = fake_dataset()
    copies = with_speeds(dataset.waveforms, (0.8, 1.25), 16000)
    batches = Batches(config, dataset, None, CPU, capturable=capturable)
    order = np.tile(np.arange(8), 200)
    sources, drawn = batches.draw(order, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(sources % 30, order)
    shares = np.bincount(sources // 30) / len(order)
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.05)

    features, targets, _ = make(batches, drawn, sources[8:16], 8, slice(0, 8))
    terms = torch.from_numpy(sources)[drawn.mixtures.clips[8:16]]
    mixed = mix(copies, terms, drawn.mixtures.starts[8:16], drawn.mixtures.factors[8:16])
    assert torch.equal(features, model_input(mixed, config, None))
    if mix_probability:  # both sounds of a mixture have the levels of their shares
        levels = torch.from_numpy(sound_levels(copies))[terms] * drawn.mixtures.factors[8:16]
        own = targets.gather(1, torch.from_numpy(dataset.labels[order[8:16]])[:, None])
        partner = dataset.labels[sources[drawn.mixtures.clips[8:16, 1]] % 30]
        other = partner != dataset.labels[order[8:16]]
        ratio = levels[:, :1] / levels.sum(dim=1, keepdim=True)
        torch.testing.assert_close(ratio[other], own[other])


@pytest.mark.parametrize("change", [{"speeds": (0.8, 1.25)}, {"cutmix_probability": 1.0}])
def test_other_clips_change_the_training(tmp_path, change):
    config = replace(SMALL, training=replace(SMALL.training, epochs=1))
    heard = replace(config, augment=replace(config.augment, **change))
    plain = train_fold(config, fake_dataset(), 1, tmp_path / "plain")
    result = train_fold(heard, fake_dataset(), 1, tmp_path / "changed")
    assert result.history[0].train_loss != plain.history[0].train_loss


@pytest.mark.parametrize(("share", "last_mixed"), [(0.0, 5), (0.3, 3), (0.4, 3), (1.0, 0)])
def test_the_last_epochs_are_unmixed(tmp_path, monkeypatch, share, last_mixed):
    """Two of five are 0.4 of them, and 0.3 rounded."""
    load, mixed = Batches.load, []

    def watched(batches, drawn, batch, first, rows):
        inputs = load(batches, drawn, batch, first, rows)
        mixed[-1] |= bool((inputs.drawn.mixtures.targets.amax(dim=1) < 1).any())
        return inputs

    def counted(*arguments, **given):
        mixed.append(False)
        return draw_epoch(*arguments, **given)

    draw_epoch = Batches.of_epoch
    monkeypatch.setattr(Batches, "load", watched)
    monkeypatch.setattr(Batches, "of_epoch", counted)
    augment = replace(
        SMALL.augment, mix_probability=1.0, cutmix_probability=1.0, unmixed_share=share
    )
    config = replace(SMALL, augment=augment, training=replace(SMALL.training, epochs=5))
    train_fold(config, fake_dataset(), 1, tmp_path)
    epochs = [number for number, is_mixed in enumerate(mixed, start=1) if is_mixed]
    assert epochs == list(range(1, last_mixed + 1))


@pytest.mark.parametrize("ahead", [1, 16, 10**6])
def test_every_clip_is_drawn_for_however_far_ahead(tmp_path, monkeypatch, ahead):
    monkeypatch.setattr("ast_fast.training.batches.DRAWN_AHEAD", ahead)
    dataset, load, seen = fake_dataset(), Batches.load, []

    def watched(batches, drawn, batch, first, rows):
        inputs = load(batches, drawn, batch, first, rows)
        targets = inputs.drawn.mixtures.targets
        assert len(batches.features(inputs)) == len(targets) == len(batch)
        assert targets.argmax(dim=1).tolist() == dataset.labels[batch].tolist()
        seen.extend(batch)
        return inputs

    monkeypatch.setattr(Batches, "load", watched)
    training = replace(SMALL.training, batch_size=8)
    augment = replace(SMALL.augment, mix_probability=0.0)
    config = replace(SMALL, augment=augment, training=training)
    train_fold(config, dataset, 1, tmp_path)
    train_indices, _ = split_fold(dataset, 1)
    epochs = np.array(seen).reshape(training.epochs, -1)
    assert len(train_indices) > 2 * 8
    assert (np.sort(epochs, axis=1) == np.sort(train_indices)).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("amp", ["off", "bfloat16", "float16"])
def test_a_fold_resumed_on_a_gpu_is_equal_to_the_bit(tmp_path, amp):
    training = replace(SMALL.training, amp=amp)
    config = replace(SMALL, device="cuda", training=training)
    expected = train_fold(config, fake_dataset(), 1, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_fold(config, fake_dataset(), 1, tmp_path / "killed", observers=[Killer(2, 2)])
    result = train_fold(replace(config, resume=True), fake_dataset(), 1, tmp_path / "killed")
    assert_same_training(result, expected)
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("amp", ["auto", "off", "bfloat16", "float16"])
def test_a_gpu_learns_too(tmp_path, amp):
    training = replace(SMALL.training, epochs=30, amp=amp, ema_decay=0.9)
    config = replace(SMALL, device="cuda", augment=NO_AUGMENTATION, training=training)
    assert train_fold(config, fake_dataset(), 1, tmp_path).accuracy > 0.8


def test_history_rows_are_what_the_csv_shows():
    assert [*EpochRow.__dataclass_fields__] == [
        "epoch",
        "learning_rate",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
        "seconds",
        "clips_per_second",
    ]
