"""The folds that are timed are those of the recipes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ast_fast.settings.config import Config
from bench.bench_fold import RECIPES, config_of


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_timed_over_the_defaults(recipe: Path) -> None:
    given = tomllib.loads(recipe.read_text())
    config, defaults = config_of(recipe), Config()
    for table in ("model", "augment", "training"):
        for name, default in vars(getattr(defaults, table)).items():
            value = given.get(table, {}).get(name, default)
            value = tuple(value) if isinstance(value, list) else value
            assert getattr(getattr(config, table), name) == value, f"{table}.{name}"
