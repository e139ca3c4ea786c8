"""Whether two runs agree: one comparison, and what may differ for each purpose."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from ast_fast.settings.config import Config
from ast_fast.settings.toml import config_values, recorded_config
from ast_fast_kernels.errors import InputError

CHANGES_NO_RESULT = frozenset(
    {
        *("data", "out", "cache", "resume", "download", "tensorboard"),
        *("download_model", "download_model_sha256"),
        *("audio.workers", "audio.download_url", "audio.download_sha256"),
        "training.cuda_graph",
    }
)
"""Keys of settings that change no result: places, sources and speed. Whether the clips are the same
is decided by their content, not by `data`."""

OF_A_JOB = frozenset({"folds", "device", "threads"})
"""Settings for which folds a process trains and where. They change a fold's model only by
rounding."""

MAY_DIFFER_RESUMED = CHANGES_NO_RESULT | {"model.pretrained"}
"""Settings that may change when a run is resumed. Whether the pre-trained model is the same is
decided by its content."""

MAY_DIFFER_MERGED = MAY_DIFFER_RESUMED | OF_A_JOB
"""Settings that may differ between merged runs, and between two processes that train one fold."""

MAY_DIFFER_BY_SEED = CHANGES_NO_RESULT | OF_A_JOB | {"seed"}
"""Settings that may differ between the runs of several seeds."""

NOT_COMPARED = CHANGES_NO_RESULT | {"threads"}
"""Settings that a comparison of runs does not list: where or how a run was made."""

RESUMED_FACTS = ("data_key", "device", "kernels", "threads", "amp", "processes")
"""Facts of run.json that a resumed run must find unchanged: results depend on them."""

PRETRAINED = "pretrained_sha256"
"""Fact of run.json, where a model was fine-tuned, that resumed and merged runs must share."""

MERGED_FACTS = ("commit", "versions", "device", "kernels", "threads", "processes")
"""Facts of run.json that can differ between merged runs, and that results can depend on."""


def first_difference(
    there: Mapping[str, Any], here: Mapping[str, Any], *, apart_from: Set[str]
) -> str | None:
    """Return the first shared key whose values differ; None if all agree."""
    shared = (key for key in there if key in here and key not in apart_from)
    return next((key for key in shared if there[key] != here[key]), None)


def differing_facts(
    there: Mapping[str, Any], here: Mapping[str, Any], names: Iterable[str]
) -> list[str]:
    """Return the named facts that differ between two runs.

    Kernels are compared only for operations that both runs name.

    Args:
        there: Facts as run.json has them; a missing one is None.
        here: Facts of the other run.
        names: The facts to compare.
    """

    def differ(name: str) -> bool:
        fact, other = there.get(name), here.get(name)
        if name == "kernels" and isinstance(fact, dict) and isinstance(other, dict):
            return first_difference(fact, other, apart_from=frozenset()) is not None
        return bool(fact != other)

    return [name for name in names if differ(name)]


def check_resumed_settings(config: Config, out: Path) -> None:
    """Check that a resumed run keeps its settings.

    Raises:
        InputError: A setting that can change a result differs; the message names the first.
    """
    there, here = config_values(recorded_config(out)), config_values(config)
    key = first_difference(there, here, apart_from=MAY_DIFFER_RESUMED)
    if key is not None:
        raise InputError(
            f"--resume must keep the settings of the run in {out}: {key} was {there[key]} and is "
            f"now {here[key]}; leave it out, or start a new run with another --out"
        )


def fold_identity(config: Config, fold: int, data_key: str) -> dict[str, Any]:
    """Return what identifies the training of a fold: its settings, the fold and the clips.

    Args:
        config: The run's settings; its paths are left out, and that of a pre-trained model.
        fold: The test fold.
        data_key: `Dataset.key` of the clips.
    Returns:
        Settings nested as the dataclasses are, in the types that JSON has, `fold` and `data_key`.
    """
    values = dataclasses.asdict(config)
    del values["paths"], values["model"]["pretrained"]
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain | {"fold": fold, "data_key": data_key}


def check_same_fold(path: Path, recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise if a file belongs to another training than this one.

    Args:
        path: The file, for the message.
        recorded: `fold_identity` of the training that wrote it.
        expected: That of this one.
    Raises:
        InputError: The message names the first setting that differs, with both values.
    """
    there, here = _flat(recorded), _flat(expected)
    for name in sorted((there.keys() | here.keys()) - MAY_DIFFER_MERGED):
        if name not in there:
            raise InputError(
                f"{path} was written by a version without {name} (here {here[name]}); "
                "give another --out"
            )
        if there.get(name) != here.get(name):
            raise InputError(
                f"{path} belongs to another run: {name} is {there.get(name)} there and "
                f"{here.get(name)} here; give the same settings, or another --out"
            )


def differing_setting(
    recorded: Mapping[str, Any], expected: Mapping[str, Any]
) -> tuple[str, Any, Any] | None:
    """Return the first setting in which two trainings differ, with both values; None if none does.

    Unlike `check_same_fold`, it takes a setting that a version lacked for its default.

    Args:
        recorded: `fold_identity` of one training.
        expected: That of the other.
    """
    defaults = _flat(fold_identity(Config(), 0, ""))
    there, here = defaults | _flat(recorded), defaults | _flat(expected)
    for name in sorted((there.keys() | here.keys()) - MAY_DIFFER_MERGED):
        if there.get(name) != here.get(name):
            return name, there.get(name), here.get(name)
    return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by key, with dots between tables."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        flat.update(_flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat
