"""The command line of a run: defaults, then a TOML file, then flags, each setting checked by name.

One table of settings, made from the dataclasses of `ast_fast.config`, reads TOML and flags alike,
so that both name a wrong setting in the same words; tyro prints `--help` from the same dataclasses.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w
import tyro

from ast_fast.config import Config, Paths
from ast_fast.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.presets import PresetName

PROGRAM = "python -m ast_fast.cv"

DEMO_DEFAULTS: dict[str, object] = {
    "training.epochs": 12,
    "training.batch_size": 16,
    "training.learning_rate": 2e-3,
    "training.warmup_epochs": 2.0,
    "training.ema_decay": 0.95,
    "augment.mix_probability": 0.0,
    "augment.patch_drop": 0.6,
}
"""Defaults of a run on the synthesised data set, whose few clips need fewer and smaller steps."""

LARGEST_INT = 2**31 - 1
LARGEST_SEED = 2**63 - 1
LARGEST_FLOAT = 1e12
"""Beyond any use, and far from where sizes computed from settings overflow."""

DESCRIPTION = """Train and test a minimal Audio Spectrogram Transformer on every fold of a data set.

Settings come from the defaults, then the TOML file of --config, then these flags. A preset of the
filterbank replaces all of its settings from before; those given beside it hold on top of it.
Without --data a small data set is synthesised, and a quick run over it is made."""


@dataclass(frozen=True)
class Setting:
    """One field of the run's dataclasses, as flags and TOML name it."""

    key: str
    """Name in TOML, dots between tables, e.g. `training.batch_size`."""
    fields: tuple[str, ...]
    """Attributes that lead to it from `Config`."""
    type: Any
    """Its annotation."""

    @property
    def flag(self) -> str:
        """The flag, e.g. `--training.batch-size`."""
        return "--" + self.key.replace("_", "-")

    @property
    def off_flag(self) -> str:
        """What switches a bool off, e.g. `--augment.no-roll`."""
        table, _, name = self.flag[2:].rpartition(".")
        return f"--{table}.no-{name}" if table else f"--no-{name}"


CONFIG_FILE = Setting("config", (), Path)
PRESET = Setting("fbank.preset", (), PresetName)
"""What flags name besides the settings of a `Config`; the second stands in TOML too."""


def parse_config(argv: Sequence[str]) -> Config:
    """Return the run that flags describe, over the TOML file of `--config`, over the defaults.

    `fbank.preset` replaces every setting of the filterbank that came before; those given beside it,
    in the same file or among the same flags, hold on top of it. With `--resume` the settings
    recorded in the folder of `--out` stand in for the defaults. Prints help and raises
    SystemExit(0) on `--help`. Only types are checked here, the filterbank's own rules, and that no
    number is beyond any use; ranges are checked by who uses a setting.

    Args:
        argv: The arguments, without the program's name.
    Raises:
        InputError: A flag or key that does not exist, or a value that its setting does not take;
            one line for each.
    """
    if "--help" in argv or "-h" in argv:
        print_help()
        raise SystemExit(0)
    flags, config_file = _read_flags(argv)
    values = {**(_read_toml(config_file) if config_file else {}), **flags}
    if values.get("resume"):
        if values.get("out") is None:
            raise InputError("--resume needs --out, the folder of the run to go on with")
        base = recorded_values(values["out"])
    else:
        demo = values.get("data") is None and not values.get("download")
        base = DEMO_DEFAULTS if demo else {}
    return _build({**base, **values})


def recorded_values(out: Path) -> dict[str, Any]:
    """Return the settings, by key, that the run in folder `out` was started with.

    Raises:
        InputError: `out` holds no run, or its config.toml cannot be read.
    """
    path = out / "config.toml"
    try:
        found = path.is_file()
    except OSError as error:
        raise InputError(f"--out {out} cannot be read: {error.strerror}") from error
    if not found:
        raise InputError(f"--out must hold a run to resume, got {out}, which has no config.toml")
    return _read_toml(path)


def recorded_config(out: Path) -> Config:
    """Return the configuration that the run in folder `out` was started with.

    Raises:
        InputError: `out` holds no run, or its config.toml cannot be read.
    """
    return _build(recorded_values(out))


def config_from_settings(settings: Mapping[str, Any], path: Path) -> Config:
    """Return the configuration that a checkpoint's settings describe, `checkpoint.settings`' way.

    Args:
        settings: Nested as the dataclasses are; None stands for a default.
        path: The file they are from, for messages.
    Raises:
        InputError: A setting is unknown here, or its value is not one of its kind.
    """
    return _build(_checked_document(_without_none(settings), path))


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
    """Return every setting by its key, in types that TOML and JSON have (paths as strings)."""
    return {key: _plain(_get(config, setting.fields)) for key, setting in settings().items()}


def first_difference(
    there: Mapping[str, Any], here: Mapping[str, Any], *, apart_from: Set[str]
) -> str | None:
    """Return the first key whose values differ, of those that both have; None if all agree."""
    shared = (key for key in there if key in here and key not in apart_from)
    return next((key for key in shared if there[key] != here[key]), None)


@cache
def settings() -> dict[str, Setting]:
    """Return every setting by its key, top-level settings first."""
    found = sorted(_walk(Config, (), ()), key=lambda setting: "." in setting.key)
    return {setting.key: setting for setting in found}


def print_help() -> None:
    """Print every flag with its help, by group."""
    tyro.cli(
        _CommandLine,
        prog=PROGRAM,
        description=DESCRIPTION,
        args=["--help"],
        registry=_help_registry(),
    )


@dataclass(frozen=True)
class _FbankFlags(FbankConfig):
    named: Annotated[PresetName, tyro.conf.arg(name="preset")] = "ast"
    """Named convention to begin with; the other settings of the filterbank change it."""


@dataclass(frozen=True)
class _CommandLine(Config, Paths):
    """What `--help` lists: the paths first, then everything else of a run."""

    paths: tyro.conf.Suppress[Paths] = field(default_factory=Paths)
    fbank: _FbankFlags = field(default_factory=_FbankFlags)
    config: Path | None = None
    """TOML file of settings, read before the flags; config.toml of an earlier run is one."""
    seeds: tuple[int, ...] = ()
    """Seeds of several runs, one after another in --out/seed-N, and their mean; none: --seed's."""
    merge: tuple[Path, ...] = ()
    """Folders of finished runs of other folds, of which --out becomes one run with one report."""


def _help_registry() -> tyro.constructors.ConstructorRegistry:
    """Show an optional setting as its type alone, without tyro's `{None}|`."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def optional(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        inner, is_optional = _strip_optional(info.type)
        if not is_optional:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=inner.__name__.upper(),
            instance_from_str=lambda tokens: tokens[0],
            is_instance=lambda _: True,
            str_from_instance=lambda value: ["none" if value is None else str(value)],
        )

    return registry


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


def _read_flags(argv: Sequence[str]) -> tuple[dict[str, Any], Path | None]:
    """Return the flags' values by key, and the file of `--config`."""
    known = {setting.flag: setting for setting in settings().values()}
    off = {setting.off_flag: setting for setting in known.values() if setting.type is bool}
    known |= {setting.flag: setting for setting in (CONFIG_FILE, PRESET)}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for given, tokens in split_flags(argv):
        flag = given.replace("_", "-")
        try:
            if flag in off:
                if tokens:
                    raise InputError(f"{flag} takes no value, got {' '.join(tokens)}")
                setting, value = off[flag], False
            elif flag in known:
                setting = known[flag]
                value = _from_text(setting, tokens, flag)
            elif flag:
                raise InputError(f"unknown flag {given}{_nearest(flag, [*known, *off])}")
            else:
                raise InputError(f"every argument must be a flag, got {tokens[0]!r}")
            if setting.key in values:
                raise InputError(f"{setting.flag} is given twice")
            values[setting.key] = value
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    config_file = values.pop(CONFIG_FILE.key, None)
    return _with_preset(values), config_file


def split_flags(argv: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Group the arguments into (flag, its values); values before any flag have the flag ''."""
    groups: list[tuple[str, list[str]]] = []
    for token in argv:
        if token.startswith("--"):
            flag, equals, value = token.partition("=")
            groups.append((flag, [value] if equals else []))
        elif groups:
            groups[-1][1].append(token)
        else:
            groups.append(("", [token]))
    return groups


def _with_preset(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the settings of their preset, if they name one, under their own."""
    name = values.pop(PRESET.key, None)
    if name is None:
        return values
    whole = dataclasses.asdict(FbankConfig.preset(name))
    return {f"fbank.{field_name}": value for field_name, value in whole.items()} | values


def _read_toml(path: Path) -> dict[str, Any]:
    """Return the file's values by key, each checked against its setting's type."""
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
        return _with_preset(_checked_document(document, path))
    except OSError as error:
        message = f"--config must be a readable TOML file, got {path}: {error.strerror}"
        raise InputError(message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    except InputError:
        raise
    except ValueError as error:  # Python reads no number of thousands of digits
        raise InputError(f"{path}: not valid TOML: a number is too long") from error
    except RecursionError as error:
        raise InputError(f"{path}: not valid TOML: nested too deeply") from error


def _checked_document(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    known = settings() | {PRESET.key: PRESET}
    tables = {key.rpartition(".")[0] for key in known} - {""}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, raw in _flatten(document, tables):
        if key in known:
            try:
                values[key] = _checked(known[key].type, raw, f"{path}: {key}")
                _check_size(known[key], values[key], f"{path}: {key}")
            except InputError as error:
                problems.append(str(error))
        elif key in tables:
            problems.append(f"{path}: {key} must be a table, got {_shown(raw)}")
        else:
            problems.append(f"{path}: unknown key {key}{_nearest(key, [*known, *tables])}")
    if problems:
        raise InputError("\n".join(problems))
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


def _nearest(name: str, names: Sequence[str]) -> str:
    """Return '; did you mean …?' for the name that looks most alike, or the way to all of them.

    The last part counts most: the same one in another table, then one like it in this table, then
    one whose words have these initials (lr), then any name like the whole.
    """
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


def _from_text(setting: Setting, tokens: list[str], flag: str) -> Any:
    """Return a flag's values as its setting's type."""
    inner, is_optional = _strip_optional(setting.type)
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
        value = _checked(inner, [_number(item, token) for token in tokens], flag)
    elif len(tokens) == 1:
        value = _checked(inner, _number(inner, tokens[0]), flag)
    else:
        got = f"{len(tokens)} values: {' '.join(tokens)}" if tokens else "none"
        raise InputError(f"{flag} takes one value, got {got}")
    _check_size(setting, value, flag)
    return value


def _check_size(setting: Setting, value: Any, name: str) -> None:
    """Raise if a number is beyond any use."""
    largest: float = LARGEST_SEED if setting.key == "seed" else LARGEST_INT
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float):
            largest = LARGEST_FLOAT
        if isinstance(number, int | float) and not -largest <= number <= largest:
            shown = f"{largest:g}" if isinstance(number, float) else str(largest)
            raise InputError(f"{name} must be from -{shown} to {shown}, got {_shown(number)}")


def _number(kind: Any, token: str) -> Any:
    """Return the token as a bool, int or float if that is the kind and it reads as one."""
    if kind is bool:
        return {"true": True, "false": False}.get(token.lower(), token)
    if kind in (int, float):
        for parse in (int, float):
            try:
                return parse(token)
            except ValueError:
                continue
    return token


def _checked(kind: Any, raw: Any, name: str) -> Any:
    """Return a TOML value as its setting's type, or raise naming the setting, rule and value."""
    kind, is_optional = _strip_optional(kind)
    if raw is None and is_optional:
        return None
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if isinstance(raw, str) and raw in choices:
            return raw
        near = difflib.get_close_matches(raw, choices, n=1) if isinstance(raw, str) else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {_shown(raw)}{hint}")
    if get_origin(kind) is tuple:
        item, *rest = get_args(kind)
        count = None if rest == [...] else 1 + len(rest)
        if not isinstance(raw, list) or (count is not None and len(raw) != count):
            number = "integers" if count is None else f"{count} integers"
            raise InputError(f"{name} must be {number}, got {_shown(raw)}")
        return tuple(_checked(item, value, name) for value in raw)
    if kind is bool and isinstance(raw, bool):
        return raw
    if kind is int and isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        try:
            return float(raw)
        except OverflowError:
            raise InputError(f"{name} must be a finite number, got {_shown(raw)}") from None
    if kind is float and isinstance(raw, float):
        if not math.isfinite(raw):
            raise InputError(f"{name} must be a finite number, got {raw}")
        return raw
    if kind in (str, Path) and isinstance(raw, str) and not is_utf8(raw):
        raise InputError(f"{name} must be text in UTF-8, got {raw!r}")
    if kind is str and isinstance(raw, str):
        return raw
    if kind is Path and isinstance(raw, str) and raw and "\0" not in raw:
        try:
            return Path(raw).expanduser()
        except RuntimeError as error:
            raise InputError(f"{name} must be in a home folder that exists, got {raw!r}") from error
    raise InputError(f"{name} must be {_TYPE_WORDS[kind]}, got {_shown(raw)}")


_TYPE_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    Path: "a path",
}


def is_utf8(text: str) -> bool:
    """Say whether text can be written as UTF-8, which odd bytes of a command line cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _strip_optional(kind: Any) -> tuple[Any, bool]:
    """Return the type without `| None`, and whether it was there."""
    if get_origin(kind) in (Union, types.UnionType):
        (inner,) = [arg for arg in get_args(kind) if arg is not types.NoneType]
        return inner, True
    return kind, False


def _build(values: Mapping[str, Any]) -> Config:
    """Return the run with these settings by key, over the defaults."""
    nested: dict[tuple[str, ...], dict[str, Any]] = {}
    for key, value in values.items():
        *parents, name = settings()[key].fields
        nested.setdefault(tuple(parents), {})[name] = value
    top = nested.pop((), {})
    hints = get_type_hints(Config)
    for (section,), changes in nested.items():
        try:
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


def _shown(value: Any) -> str:
    """Return a value as a user would write it."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"  # Python prints none of thousands of digits
    if isinstance(value, list | tuple):
        return " ".join(_shown(item) for item in value) or "none"
    return repr(value) if isinstance(value, str) else str(value)
