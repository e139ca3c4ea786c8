"""Candidates as files name them, and the trials of a plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ast_fast.machine.device import Placement
from ast_fast.selection.plan import Candidate, Plan, StoppingRule, Trial, read_candidates
from ast_fast.settings.config import Config
from ast_fast.settings.rules import check_config
from ast_fast_kernels.errors import InputError

CANDIDATES = sorted((Path(__file__).parents[3] / "recipes" / "candidates").glob("*.toml"))
TWO = (Candidate("a", Config()), Candidate("b", Config()))


def read(tmp_path: Path, text: str, **given) -> dict[str, Config]:
    path = tmp_path / "candidates.toml"
    path.write_text(text)
    options = {"data": Path("d"), "cache": None, "threads": 3} | given
    return {c.name: c.config for c in read_candidates(path, **options)}


def test_a_candidates_flags_replace_those_of_all_and_these_the_file(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[training]\nepochs = 80\nbatch_size = 16\n")
    found = read(
        tmp_path,
        'config = "base.toml"\nsettings = "--training.epochs 60 --augment.no-roll"\n'
        '[candidates]\nrecipe = ""\nlong = "--training.epochs 90 --augment.gain-db 3"\n',
        cache=Path("c"),
    )
    assert list(found) == ["recipe", "long"]
    shared = [(c.training.batch_size, c.augment.roll, c.threads) for c in found.values()]
    assert shared == [(16, False, 3)] * 2
    assert [(c.training.epochs, c.augment.gain_db) for c in found.values()] == [(60, 6), (90, 3)]
    assert {(str(c.paths.data), str(c.paths.cache)) for c in found.values()} == {("d", "c")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "keys must be among config, settings, candidates, got x"),
        ("", "candidates must be a table of names with flags, got None"),
        ("[candidates]", "candidates must be a table of names with flags, got a table of 0 keys"),
        ("[candidates]\na = 1", "a must be a text, got 1"),
        ("settings = 3\n[candidates]\na = ''", "settings must be a text, got 3"),
        ("[candidates]\n'a b' = ''", "a name must have letters, digits, - and _ only"),
        ("[candidates]\na = '--seed 3'", "flags must be settings of a training, got --seed"),
        ("[candidates]\na = '--help'", "flags must be settings of a training, got --help"),
        ('[candidates]\na = "--fbank.preset \'ast"', "not a command line: No closing quotation"),
        ("[candidates]\na = '--no-such 1'", "unknown flag --no-such"),
        ("[candidates]\na = '--model.pretrained m'", "trials begin with fresh weights"),
        ("[candidates", "not valid TOML"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    (problem,) = caught.value.problems
    assert message in problem
    assert "candidates.toml" in problem


def test_every_candidate_in_error_has_a_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, "[candidates]\na = '--seed 3'\nb = 2\nc = ''")
    assert len(caught.value.problems) == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"CANDIDATES .* cannot be read: No such file"):
        read_candidates(tmp_path / "none.toml", data=Path("d"), cache=None, threads=1)


def test_trials_come_seed_by_seed_and_fold_by_fold() -> None:
    plan = Plan(TWO, seeds=(1, 0), folds=(4, 5), left_out=1, rule=None)
    assert plan.trials == [
        *(Trial("a", 1, 4), Trial("b", 1, 4), Trial("a", 1, 5), Trial("b", 1, 5)),
        *(Trial("a", 0, 4), Trial("b", 0, 4), Trial("a", 0, 5), Trial("b", 0, 5)),
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": ()}, "--seeds must be at least one value, each once, got none"),
        ({"seeds": (1, 1)}, "--seeds must be at least one value, each once, got 1 1"),
        ({"seeds": (-1,)}, "--seeds must be at least 0, got -1"),
        ({"folds": (4, 4)}, "--test-folds must be at least one value, each once, got 4 4"),
        ({"left_out": 4}, "--test-folds must not hold the fold of --leave-out, got 4 in both"),
        ({"rule": StoppingRule(-0.1, 0)}, "--stop-margin must be at least 0, got -0.1"),
        ({"rule": StoppingRule(float("nan"), 0)}, "--stop-margin must be at least 0, got nan"),
    ],
)
def test_a_plan_that_cannot_be_used_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Plan(
            **{"candidates": TWO, "seeds": (0,), "folds": (4,), "left_out": 1, "rule": None}
            | changed
        )


@pytest.mark.parametrize("path", CANDIDATES, ids=lambda path: path.stem)
def test_our_candidates_can_be_trained(path: Path, tmp_path: Path) -> None:
    found = read_candidates(path, data=tmp_path, cache=None, threads=1)
    assert len({repr(candidate.config) for candidate in found}) == len(found) > 1
    for candidate in found:
        check_config(candidate.config, 80000, Placement(torch.device("cpu"), None))
