"""One setting: its name, its type, and its values, parsed from flags and checked from TOML."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ast_fast.settings.config import Config
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.presets import PresetName
from ast_fast_kernels.files.text import LONGEST_NAME, one_name

LARGEST_INT = 2**31 - 1
LARGEST_SEED = 2**63 - 1
LISTED = 20
"""Items of a list that an error shows."""
LARGEST_FLOAT = 1e12
"""Larger than any useful value, and far from overflow in sizes computed from settings."""


@dataclass(frozen=True)
class Setting:
    """One field of the run's dataclasses, as flags and TOML name it."""

    key: str
    """Name in TOML, with dots between tables, e.g. `training.batch_size`."""
    fields: tuple[str, ...]
    """Names of the attributes that lead from `Config` to it."""
    type: Any
    """Its annotation."""

    @property
    def flag(self) -> str:
        """The flag, e.g. `--training.batch-size`."""
        return "--" + self.key.replace("_", "-")

    @property
    def off_flag(self) -> str:
        """The flag that switches a bool off, e.g. `--augment.no-roll`."""
        table, _, name = self.flag[2:].rpartition(".")
        return f"--{table}.no-{name}" if table else f"--no-{name}"


CONFIG_FILE = Setting("config", (), Path)
"""The flag `--config`, which is no field of `Config`."""

PRESET = Setting("fbank.preset", (), PresetName)
"""The filterbank's preset, in flags and TOML; it stands for all fields of `Config.fbank`."""


@cache
def settings() -> dict[str, Setting]:
    """Return every setting by its key, top-level settings first."""
    found = sorted(_walk(Config, (), ()), key=lambda setting: "." in setting.key)
    return {setting.key: setting for setting in found}


def _walk(cls: type[Any], prefix: tuple[str, ...], fields: tuple[str, ...]) -> Iterator[Setting]:
    hints = get_type_hints(cls, include_extras=True)
    for item in dataclasses.fields(cls):
        kind, name = hints[item.name], item.name
        if get_origin(kind) is Annotated:
            kind, *notes = get_args(kind)
            name = next((n.name for n in notes if getattr(n, "name", None) is not None), name)
        inner_prefix = (*prefix, name) if name else prefix
        inner_fields = (*fields, item.name)
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from _walk(kind, inner_prefix, inner_fields)
        else:
            yield Setting(".".join(inner_prefix), inner_fields, kind)


def nearest(name: str, names: Sequence[str]) -> str:
    """Return '; did you mean …?' with the most similar name, or a hint to `--help`.

    The last part of a name counts most. In order: the same part in another table, a similar one in
    this table, one whose words have these initials (lr), a similar whole name, a similar part in
    any table.
    """
    if len(name) > LONGEST_NAME:  # similarity takes time, and nothing that long is a typing error
        return "; --help lists them all"
    table, _, wanted = name.lstrip("-").rpartition(".")
    last = {n: n.lstrip("-").rpartition(".")[2] for n in names}
    here = {last[n]: n for n in names if n.lstrip("-").rpartition(".")[0] == table}
    anywhere = {part: n for n, part in last.items()}
    found = (
        [n for n in names if last[n] == wanted]
        or [here[p] for p in difflib.get_close_matches(wanted, here, n=1, cutoff=0.6)]
        or [n for n in names if wanted == "".join(w[0] for w in re.split("[-_]", last[n]))]
        or difflib.get_close_matches(name, names, n=1, cutoff=0.8)
        or [anywhere[p] for p in difflib.get_close_matches(wanted, anywhere, n=1, cutoff=0.7)]
    )
    return f"; did you mean {found[0]}?" if found else "; --help lists them all"


def from_text(setting: Setting, tokens: list[str], flag: str) -> Any:
    """Return a flag's values as its setting's type."""
    inner, is_optional = strip_optional(setting.type)
    is_none = [token.lower() for token in tokens] == ["none"]
    if is_optional and is_none:
        return None
    if inner is bool and not tokens:
        return True
    if get_origin(inner) is tuple:
        item, *rest = get_args(inner)
        if rest == [...]:
            if not tokens:
                raise InputError(f"{flag} takes values, or the word none for no value")
            if is_none:
                return ()
        value = checked(inner, [_number(item, token) for token in tokens], flag)
    elif len(tokens) == 1:
        value = checked(inner, _number(inner, tokens[0]), flag)
    else:
        got = f"{len(tokens)} values: {one_name(' '.join(tokens))}" if tokens else "none"
        raise InputError(f"{flag} takes one value, got {got}")
    check_size(setting, value, flag)
    return value


def check_size(setting: Setting, value: Any, name: str) -> None:
    """Raise if a number is larger than any useful value."""
    largest: float = LARGEST_SEED if setting.key == "seed" else LARGEST_INT
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float):
            largest = LARGEST_FLOAT
        if isinstance(number, int | float) and not -largest <= number <= largest:
            most = f"{largest:g}" if isinstance(number, float) else str(largest)
            raise InputError(f"{name} must be from -{most} to {most}, got {shown(number)}")


def _number(kind: Any, token: str) -> Any:
    """Return the token as a bool, int or float if that is the kind and it can be parsed."""
    if kind is bool:
        return {"true": True, "false": False}.get(token.lower(), token)
    if kind in (int, float):
        for parse in (int, float):
            try:
                return parse(token)
            except ValueError:
                continue
    return token


def checked(kind: Any, raw: Any, name: str) -> Any:
    """Return a TOML value as its setting's type, or raise naming the setting, rule and value."""
    kind, is_optional = strip_optional(kind)
    if raw is None and is_optional:
        return None
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if isinstance(raw, str) and raw in choices:
            return raw
        is_short = isinstance(raw, str) and len(raw) <= LONGEST_NAME
        near = difflib.get_close_matches(raw, choices, n=1) if is_short else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {shown(raw)}{hint}")
    if get_origin(kind) is tuple:
        item, *rest = get_args(kind)
        count = None if rest == [...] else 1 + len(rest)
        if not isinstance(raw, list) or (count is not None and len(raw) != count):
            number = "integers" if count is None else f"{count} integers"
            raise InputError(f"{name} must be {number}, got {shown(raw)}")
        return tuple(checked(item, value, name) for value in raw)
    if kind is bool and isinstance(raw, bool):
        return raw
    if kind is int and isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        try:
            return float(raw)
        except OverflowError:
            raise InputError(f"{name} must be a finite number, got {shown(raw)}") from None
    if kind is float and isinstance(raw, float):
        if not math.isfinite(raw):
            raise InputError(f"{name} must be a finite number, got {shown(raw)}")
        return raw
    if kind in (str, Path) and isinstance(raw, str) and not is_utf8(raw):
        raise InputError(f"{name} must be text in UTF-8, got {shown(raw)}")
    if kind is str and isinstance(raw, str):
        return raw
    if kind is Path and isinstance(raw, str) and raw and "\0" not in raw:
        try:
            return Path(raw).expanduser()
        except RuntimeError as error:
            raise InputError(
                f"{name} must be in a home folder that exists, got {shown(raw)}"
            ) from error
    raise InputError(f"{name} must be {_TYPE_WORDS[kind]}, got {shown(raw)}")


_TYPE_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    Path: "a path",
}


def is_utf8(text: str) -> bool:
    """Return whether text can be encoded as UTF-8; undecodable bytes of a command line cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_names(names: Sequence[Any], what: str) -> list[str]:
    """Return names, such as a model's classes; raise unless all are text, and all differ.

    Args:
        names: Of any type, as a file has them.
        what: What an error begins with.
    Raises:
        InputError: One is no text, is blank, cannot be encoded, or comes twice.
    """
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name.strip() or not is_utf8(name):
            raise InputError(f"{what} must be text, got {shown(name)}")
        if name in seen:
            raise InputError(f"{what} must differ, got {shown(name)} twice")
        seen.add(name)
    return list(names)


def strip_optional(kind: Any) -> tuple[Any, bool]:
    """Return the type without `| None`, and whether it was there."""
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = [arg for arg in get_args(kind) if arg is not types.NoneType]
        return inner, True
    return kind, False


def shown(value: Any) -> str:
    """Return a value as a user would write it; a long one loses its middle."""
    if isinstance(value, int) and value.bit_length() > 128:
        return (
            f"a number of {value.bit_length()} bits"  # Python prints none with thousands of digits
        )
    if isinstance(value, list | tuple):
        items = [shown(item) for item in value[:LISTED]]
        rest = [f"and {len(value) - LISTED} more"] if len(value) > LISTED else []
        return one_name(" ".join([*items, *rest]) or "none")
    if isinstance(value, dict):
        return f"a table of {len(value)} keys"
    if isinstance(value, str) and len(value) > LONGEST_NAME:
        value = one_name(value)
    return one_name(repr(value) if isinstance(value, str) else str(value))
