"""Whether two runs are the same: one comparison, and for each question what may differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from ast_fast.errors import InputError
from ast_fast.settings.config import Config
from ast_fast.settings.toml import config_values, recorded_config

CHANGES_NO_RESULT = frozenset(
    {
        *("data", "out", "cache", "resume", "download", "tensorboard"),
        *("audio.workers", "audio.download_url", "audio.download_sha256"),
    }
)
"""Settings, by their keys, that say where things lie, come from and go, and how fast. The content
of the clips, not `data`, says whether they are the same."""

OF_A_JOB = frozenset({"folds", "device", "threads"})
"""Settings that say which folds a process trains and where. They change a fold's model by rounding
alone."""

MAY_DIFFER_RESUMED = CHANGES_NO_RESULT
"""Settings in which a run may differ from itself when it is resumed."""

MAY_DIFFER_MERGED = CHANGES_NO_RESULT | OF_A_JOB
"""Settings in which the parts of one run may differ; so may those that train one fold."""

MAY_DIFFER_BY_SEED = CHANGES_NO_RESULT | OF_A_JOB | {"seed"}
"""Settings in which the runs of several seeds may differ."""

NOT_COMPARED = CHANGES_NO_RESULT | {"threads"}
"""Settings that a comparison of runs does not list: where or how a run was made."""

RESUMED_FACTS = ("data_key", "device", "kernels", "threads", "amp", "processes")
"""Facts of run.json that a resumed run must find unchanged: results depend on them."""

MERGED_FACTS = ("commit", "versions", "device", "kernels", "threads", "processes")
"""Facts of run.json that can differ between merged runs, and that results can depend on."""


def first_difference(
    there: Mapping[str, Any], here: Mapping[str, Any], *, apart_from: Set[str]
) -> str | None:
    """Return the first key whose values differ, of those that both have; None if all agree."""
    shared = (key for key in there if key in here and key not in apart_from)
    return next((key for key in shared if there[key] != here[key]), None)


def differing_facts(
    there: Mapping[str, Any], here: Mapping[str, Any], names: Iterable[str]
) -> list[str]:
    """Return the facts that differ between two runs, among those named.

    Of kernels, only the operations count that both versions name.

    Args:
        there: Facts as run.json has them; a missing one is None.
        here: Those of the other run.
        names: Which facts to compare.
    """

    def differ(name: str) -> bool:
        fact, other = there.get(name), here.get(name)
        if name == "kernels" and isinstance(fact, dict) and isinstance(other, dict):
            return first_difference(fact, other, apart_from=frozenset()) is not None
        return bool(fact != other)

    return [name for name in names if differ(name)]


def check_resumed_settings(config: Config, out: Path) -> None:
    """Check that a resumed run has the settings that it began with.

    Raises:
        InputError: One differs that could change a result; the message names the first.
    """
    there, here = config_values(recorded_config(out)), config_values(config)
    key = first_difference(there, here, apart_from=MAY_DIFFER_RESUMED)
    if key is not None:
        raise InputError(
            f"--resume must have the settings of the run in {out}: {key} is {there[key]} there and "
            f"{here[key]} here; leave it out, or name another --out without --resume"
        )


def fold_identity(config: Config, fold: int, data_key: str) -> dict[str, Any]:
    """Return what two trainings of a fold have in common if they are the same one.

    Args:
        config: The run's settings. The paths of this machine are left out.
        fold: The fold that is tested.
        data_key: `Dataset.key` of the clips.
    Returns:
        Settings nested as the dataclasses are, in the types that JSON has, `fold` and `data_key`.
    """
    values = dataclasses.asdict(config)
    del values["paths"]
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


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their keys, dots between tables."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        flat.update(_flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat
