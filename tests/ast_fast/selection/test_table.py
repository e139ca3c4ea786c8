"""The table, against values worked out by hand."""

from __future__ import annotations

from ast_fast.selection.plan import Candidate, Plan, StoppingRule, Trial
from ast_fast.selection.table import Estimate, markdown, rows_of
from ast_fast.selection.trial import Scores
from ast_fast.settings.config import Config

PLAN = Plan(
    tuple(Candidate(name, Config()) for name in ("recipe", "worse", "better", "waiting")),
    seeds=(0, 1),
    folds=(4, 5),
    left_out=1,
    rule=StoppingRule(0.05, 0),
)


def scores(calibrated_loss: float, accuracy: float = 0.5) -> Scores:
    return Scores(
        accuracy=accuracy,
        loss=2.0,
        calibrated_loss=calibrated_loss,
        temperature=1.5,
        train_accuracy=0.75,
        seconds=90.0,
    )


SCORES = {
    Trial("recipe", 0, 4): scores(1.0, 0.70),
    Trial("recipe", 0, 5): scores(0.8, 0.74),
    Trial("recipe", 1, 4): scores(0.9, 0.72),
    Trial("worse", 0, 4): scores(1.1, 0.68),
    Trial("worse", 0, 5): scores(1.0, 0.70),
    Trial("better", 0, 4): scores(0.9, 0.70),
    Trial("better", 1, 4): scores(0.84, 0.75),
    Trial("better", 1, 5): scores(0.7, 0.77),  # the recipe has no such trial yet
}


def test_differences_are_of_pairs_and_rank_the_candidates() -> None:
    rows = {row.name: row for row in rows_of(PLAN, SCORES, ["worse"])}
    assert list(rows) == ["better", "recipe", "worse", "waiting"]
    assert (rows["recipe"].trials, rows["recipe"].loss_difference) == (3, None)
    # (1.0 + 0.8 + 0.9) / 3, deviation 0.1 over the root of 3.
    assert shown(rows["recipe"].calibrated_loss) == "0.9000 ± 0.0577"
    # −0.1 and −0.06: mean −0.08, deviation 0.0283 over the root of 2.
    assert shown(rows["better"].loss_difference) == "-0.0800 ± 0.0200"
    # 0 and +0.03.
    assert shown(rows["better"].accuracy_difference) == "0.0150 ± 0.0150"
    # +0.1 and +0.2.
    assert shown(rows["worse"].loss_difference) == "0.1500 ± 0.0500"
    assert rows["waiting"].calibrated_loss is None


def shown(estimate: Estimate | None) -> str:
    assert estimate is not None
    return estimate.shown(".4f")


def test_the_table_says_what_was_found_and_how() -> None:
    lines = markdown(PLAN, rows_of(PLAN, SCORES, ["worse"]), ["By somebody."]).splitlines()
    assert lines[2:6] == [
        "| better | 3 of 4 | 0.813 ± 0.059 | -0.080 ± 0.020 | 74.0 ± 2.1 | +1.5 ± 1.5 "
        "| 75.0 ± 0.0 | 1.50 | 2 |",
        "| **recipe** | 3 of 4 | 0.900 ± 0.058 | – | 72.0 ± 1.2 | – | 75.0 ± 0.0 | 1.50 | 2 |",
        "| worse | 2 of 4, stopped | 1.050 ± 0.050 | +0.150 ± 0.050 | 69.0 ± 1.0 | -3.0 ± 1.0 "
        "| 75.0 ± 0.0 | 1.50 | 2 |",
        "| waiting | 0 of 4 | – | – | – | – | – | – | – |",
    ]
    assert (
        "Stopping rule: a candidate whose calibrated loss with seed 0 exceeds the first "
        "candidate's by more than 0.05 on every fold gets no further seed." in lines
    )
    assert lines[-1] == "By somebody."


def test_one_trial_has_no_error() -> None:
    one = {trial: SCORES[trial] for trial in (Trial("recipe", 0, 4), Trial("better", 0, 4))}
    text = markdown(PLAN, rows_of(PLAN, one, []), [])
    assert "| better | 1 of 4 | 0.900 ± ? | -0.100 ± ? | 70.0 ± ? | +0.0 ± ? |" in text
