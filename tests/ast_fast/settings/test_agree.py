"""Whether two runs are the same: which settings and facts may differ, and the first that does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ast_fast.settings.agree import (
    MERGED_FACTS,
    check_same_fold,
    differing_facts,
    first_difference,
    fold_identity,
)
from ast_fast.settings.config import AudioConfig, Config, ModelConfig, Paths, TrainingConfig
from ast_fast_kernels.errors import InputError

PATH = Path("fold-1", "checkpoint.safetensors")


def identity(config):
    return fold_identity(config, 1, "0123abcd")


def test_the_first_difference_is_of_settings_that_both_have() -> None:
    there, here = {"a": 1, "b": 2, "c": 3, "old": 0}, {"a": 0, "b": 2, "c": 4, "new": 0}
    assert first_difference(there, here, apart_from={"a"}) == "c"
    assert first_difference(there, here, apart_from={"a", "c"}) is None


def test_settings_name_no_path():
    config = Config(paths=Paths(data=Path("/somewhere/private"), out=Path("/somewhere/else")))
    assert "somewhere" not in str(identity(config))


@pytest.mark.parametrize(
    "other",
    [
        Config(resume=True, folds=(2,), threads=3, device="cpu"),
        Config(paths=Paths(out=Path("elsewhere"))),
        Config(audio=AudioConfig(workers=5)),
    ],
    ids=["other-folds-and-threads", "other-paths", "other-workers"],
)
def test_settings_that_say_nothing_of_the_training_may_differ(other):
    check_same_fold(PATH, identity(Config()), identity(other))


def test_a_run_of_an_earlier_version_is_named_as_one():
    earlier = identity(Config())
    del earlier["model"]["stem_widths"]
    with pytest.raises(
        InputError, match=r"written by a version without model.stem_widths \(here \[\]\); give ano"
    ):
        check_same_fold(PATH, earlier, identity(Config()))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Config(model=ModelConfig(embed_dim=96)), "model.embed_dim is 192 there and 96 here"),
        (Config(model=ModelConfig(patch_size=(8, 16))), r"patch_size is \[16, 16\] there and \[8"),
        (
            Config(training=replace(TrainingConfig(), epochs=7)),
            r"training.epochs is \d+ there and 7",
        ),
        (Config(seed=1), "seed is 0 there and 1 here"),
    ],
    ids=["embed-dim", "patch-size", "epochs", "seed"],
)
def test_settings_of_another_run_are_named(other, message):
    with pytest.raises(
        InputError, match=f"checkpoint.safetensors belongs to another run: .*{message}"
    ):
        check_same_fold(PATH, identity(Config()), identity(other))


def test_kernels_differ_where_both_versions_name_them():
    there = {"kernels": {"fbank": "numba", "linear": "onednn"}, "threads": 2}
    here = {"kernels": {"fbank": "numba", "mix": "numba"}, "threads": 2}
    assert differing_facts(there, here, MERGED_FACTS) == []
    here["kernels"]["fbank"], here["threads"] = "reference", 1
    assert differing_facts(there, here, MERGED_FACTS) == ["kernels", "threads"]
