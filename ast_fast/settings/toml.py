"""Settings as TOML (the file of --config, a run's config.toml), and from a checkpoint."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w

from ast_fast.settings.config import Config
from ast_fast.settings.values import PRESET, check_size, checked, nearest, settings, shown
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.files.sealed import CHECKSUM, digest_of, is_intact
from ast_fast_kernels.files.text import one_name, read_document

CONFIG = "config.toml"
"""File in a run's folder that keeps its settings."""
RUN = "run.json"
"""File beside it that keeps what else the run's numbers depend on, and the settings' digest."""
DIGEST = "settings_sha256"
"""Key of that digest."""

LARGEST_CONFIG = 2**18
"""Bytes of a TOML file; one with every setting has 4,000."""

MOST_DOTS = 32
"""Of a line. A setting's key has one; tomllib takes time with the square of a key's."""

LISTED_KEYS = 5
"""Unknown keys that an error names before it counts the rest."""


def recorded_values(out: Path) -> dict[str, Any]:
    """Return the settings, by key, with which the run in folder `out` started.

    Raises:
        InputError: `out` holds no run, or its config.toml cannot be read or was changed.
    """
    path = out / CONFIG
    try:
        found = path.is_file()
    except OSError as error:
        raise InputError(f"--out {out} cannot be read: {error.strerror}") from error
    if not found:
        raise InputError(f"--out must hold a run to resume, got {out}, which has no config.toml")
    values = read_toml(path)
    _check_unchanged(out)
    return values


def recorded_run(out: Path) -> dict[str, Any]:
    """Return the content of run.json in a run's folder, without its checksum.

    Raises:
        InputError: It is missing or damaged.
    """
    path = out / RUN
    try:
        document = json.loads(read_document(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} must hold a run's facts, got a {type(document).__name__}")
    if (CHECKSUM in document or DIGEST in document) and not is_intact(document):
        raise InputError(
            f"{path} is damaged or was changed: its checksum does not match; restore it, or start "
            "a new run with another --out"
        )
    return {key: value for key, value in document.items() if key != CHECKSUM}


def settings_digest(text: str) -> str:
    """Return the SHA-256 of the values in a TOML text; its layout and comments do not count."""
    return digest_of(tomllib.loads(text))


def _check_unchanged(out: Path) -> None:
    """Raise if config.toml has other values than those whose digest run.json keeps.

    Versions up to 0.2.0 kept none. A missing run.json is for whoever needs its facts to name.
    """
    if not (out / RUN).exists():
        return
    kept = recorded_run(out).get(DIGEST)
    if kept is None or kept == settings_digest(read_document(out / CONFIG, LARGEST_CONFIG)):
        return
    raise InputError(
        f"{out / CONFIG} must hold the settings that the run began with, and was cut or changed "
        f"({RUN} has their SHA-256); restore it, or start a new run with another --out"
    )


def recorded_config(out: Path) -> Config:
    """Return the configuration with which the run in folder `out` started.

    Raises:
        InputError: `out` holds no run, or its config.toml cannot be read.
    """
    return build_config(recorded_values(out))


def config_from_settings(settings: Mapping[str, Any], path: Path) -> Config:
    """Return the configuration in a checkpoint, from settings as `agree.fold_identity` gives them.

    Args:
        settings: Nested as the dataclasses are; None stands for a default.
        path: The checkpoint, for messages.
    Raises:
        InputError: A setting is unknown, or its value is of the wrong type.
    """
    return build_config(_checked_document(_without_none(settings), path))


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def config_to_toml(config: Config) -> str:
    """Return the run's settings as TOML that `--config` reads back to an equal `Config`.

    Settings that are None are left out: TOML has no null, and None is always their default.
    """
    document: dict[str, Any] = {}
    for key, value in config_values(config).items():
        if value is None:
            continue
        *tables, name = key.split(".")
        table = document
        for part in tables:
            table = table.setdefault(part, {})
        table[name] = value
    return tomli_w.dumps(document)


def config_values(config: Config) -> dict[str, Any]:
    """Return every setting by its key, as types of TOML and JSON (paths as strings)."""
    return {key: _plain(_get(config, setting.fields)) for key, setting in settings().items()}


def read_toml(path: Path) -> dict[str, Any]:
    """Return the file's values by key, each checked against its setting's type.

    One may be `fbank.preset`, which `build_config` makes settings of.
    """
    try:
        document = tomllib.loads(_checked_text(read_document(path, LARGEST_CONFIG), path))
        return _checked_document(document, path)
    except OSError as error:
        message = f"--config must be a readable TOML file, got {path}: {error.strerror}"
        raise InputError(message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    except InputError:
        raise
    except ValueError as error:  # Python parses no number with thousands of digits
        raise InputError(f"{path}: not valid TOML: a number is too long") from error
    except RecursionError as error:
        raise InputError(f"{path}: not valid TOML: nested too deeply") from error


def _checked_text(text: str, path: Path) -> str:
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MOST_DOTS:
            raise InputError(
                f"{path}: line {number} must have at most {MOST_DOTS} dots, got {line.count('.')}"
            )
    return text


def _checked_document(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    known = settings() | {PRESET.key: PRESET}
    tables = {key.rpartition(".")[0] for key in known} - {""}
    values: dict[str, Any] = {}
    problems: list[str] = []
    unknown = 0
    for key, raw in _flatten(document, tables):
        if key in known:
            try:
                values[key] = checked(known[key].type, raw, f"{path}: {key}")
                check_size(known[key], values[key], f"{path}: {key}")
            except InputError as error:
                problems.append(str(error))
        elif key in tables:
            problems.append(f"{path}: {key} must be a table, got {shown(raw)}")
        else:
            unknown += 1
            if unknown <= LISTED_KEYS:
                hint = nearest(key, [*known, *tables])
                problems.append(f"{path}: unknown key {one_name(key)}{hint}")
    if unknown > LISTED_KEYS:
        problems.append(f"{path}: and {unknown - LISTED_KEYS} more unknown keys")
    if problems:
        raise InputError(*problems)
    return values


def _flatten(
    document: Mapping[str, Any], tables: set[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        key = prefix + name
        if isinstance(value, dict) and key in tables:
            yield from _flatten(value, tables, key + ".")
        else:
            yield key, value


def over(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by key, the later ones first; their preset replaces an earlier filterbank."""
    if PRESET.key in later:
        earlier = {key: earlier[key] for key in earlier if not key.startswith("fbank.")}
    return {**earlier, **later}


def build_config(values: Mapping[str, Any]) -> Config:
    """Return the configuration with these values, by key, over the defaults or their preset."""
    values = dict(values)
    preset = values.pop(PRESET.key, None)
    nested: dict[tuple[str, ...], dict[str, Any]] = {} if preset is None else {("fbank",): {}}
    for key, value in values.items():
        *parents, name = settings()[key].fields
        nested.setdefault(tuple(parents), {})[name] = value
    top = nested.pop((), {})
    hints = get_type_hints(Config)
    for (section,), changes in nested.items():
        try:
            if section == "fbank" and preset is not None:
                top[section] = FbankConfig.preset(preset, **changes)
            else:
                top[section] = hints[section](**changes)
        except ValueError as error:
            raise InputError(f"{section}.{error}") from error
    return Config(**top)


def _get(config: Config, fields: tuple[str, ...]) -> Any:
    value: Any = config
    for name in fields:
        value = getattr(value, name)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
