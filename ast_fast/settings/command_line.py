"""The command line of a run: defaults, then a TOML file, then flags, each setting checked by name.

One table of settings, made from the dataclasses of `settings.config`, reads TOML and flags alike,
so that both name a wrong setting in the same words; tyro prints `--help` from the same dataclasses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import tyro

from ast_fast.errors import InputError
from ast_fast.settings.config import Config, Paths
from ast_fast.settings.toml import build_config, read_toml, recorded_values, with_preset
from ast_fast.settings.values import (
    CONFIG_FILE,
    PRESET,
    from_text,
    nearest,
    settings,
    strip_optional,
)
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

SEEDS, MERGE = "--seeds", "--merge"
"""Flags that make several runs, or one of several; they are no settings."""

DESCRIPTION = """Train and test a minimal Audio Spectrogram Transformer on every fold of a data set.

Settings come from the defaults, then the TOML file of --config, then these flags. A preset of the
filterbank replaces all of its settings from before; those given beside it hold on top of it.
Without --data a small data set is synthesised, and a quick run over it is made."""


@dataclass(frozen=True)
class Arguments:
    """A command line, without the program's name, in the groups that its flags make."""

    tokens: tuple[str, ...]

    @cached_property
    def groups(self) -> list[tuple[str, list[str]]]:
        """Each flag with its values; values before any flag have the flag ''."""
        groups: list[tuple[str, list[str]]] = []
        for token in self.tokens:
            if token.startswith("--"):
                flag, equals, value = token.partition("=")
                groups.append((flag, [value] if equals else []))
            elif groups:
                groups[-1][1].append(token)
            else:
                groups.append(("", [token]))
        return groups

    @property
    def ask_for_help(self) -> bool:
        """Whether `--help` or `-h` stands anywhere."""
        return not {"--help", "-h"}.isdisjoint(self.tokens)

    def of(self, flag: str) -> list[list[str]]:
        """Return the values of a flag, for each time that it is given."""
        return [values for name, values in self.groups if name == flag]

    def without(self, *flags: str) -> Arguments:
        """Return all arguments but these flags and their values."""
        kept = [(flag, values) for flag, values in self.groups if flag not in flags]
        return Arguments(
            tuple(t for flag, values in kept for t in ([flag] if flag else []) + values)
        )


@dataclass(frozen=True)
class SeedsJob:
    """A run for each of several seeds."""

    seeds: tuple[int, ...]
    arguments: Arguments
    """Of every one of them."""


@dataclass(frozen=True)
class MergeJob:
    """One run made of the folds of several."""

    runs: tuple[Path, ...]
    out: Path


def read_job(arguments: Arguments) -> SeedsJob | MergeJob | None:
    """Return what `--seeds` or `--merge` ask for; None where the arguments are one run's.

    Raises:
        InputError: They cannot be used as they are given; the message says why.
    """
    if arguments.ask_for_help:
        return None
    if arguments.of(SEEDS):
        return _read_seeds(arguments)
    if arguments.of(MERGE):
        return _read_merge(arguments)
    return None


def _read_seeds(arguments: Arguments) -> SeedsJob:
    values, *again = arguments.of(SEEDS)
    if again:
        raise InputError(f"{SEEDS} is given twice")
    for other in ("--seed", MERGE):
        if arguments.of(other):
            raise InputError(f"{SEEDS} must be given without {other}")
    if not values:
        raise InputError(f"{SEEDS} takes at least one value, got none")
    seeds: list[int] = []
    for token in values:
        if not token.isdecimal() or int(token) in seeds:
            raise InputError(f"{SEEDS} must be different whole numbers from 0 on, got {token}")
        seeds.append(int(token))
    return SeedsJob(tuple(seeds), arguments.without(SEEDS))


def _read_merge(arguments: Arguments) -> MergeJob:
    groups = dict(arguments.groups)
    if len(groups) < len(arguments.groups):
        raise InputError(f"{MERGE} and --out must each be given once")
    if unknown := groups.keys() - {MERGE, "--out"}:
        raise InputError(f"{MERGE} takes --out alone beside it, got {min(unknown)}")
    out = groups.get("--out", [])
    if len(out) != 1:
        raise InputError(f"{MERGE} needs --out, the folder of the run that it makes")
    runs = tuple(Path(token).expanduser() for token in groups[MERGE])
    return MergeJob(runs, Path(out[0]).expanduser())


def parse_config(argv: Sequence[str] | Arguments) -> Config:
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
    arguments = argv if isinstance(argv, Arguments) else Arguments(tuple(argv))
    if arguments.ask_for_help:
        print_help()
        raise SystemExit(0)
    flags, config_file = _read_flags(arguments)
    values = {**(read_toml(config_file) if config_file else {}), **flags}
    if values.get("resume"):
        if values.get("out") is None:
            raise InputError("--resume needs --out, the folder of the run to go on with")
        base = recorded_values(values["out"])
    else:
        demo = values.get("data") is None and not values.get("download")
        base = DEMO_DEFAULTS if demo else {}
    return build_config({**base, **values})


def print_help() -> None:
    """Print every flag with its help, by group."""
    tyro.cli(
        CommandLine,
        prog=PROGRAM,
        description=DESCRIPTION,
        args=["--help"],
        registry=_help_registry(),
    )


@dataclass(frozen=True)
class FbankFlags(FbankConfig):
    named: Annotated[PresetName, tyro.conf.arg(name="preset")] = "ast"
    """Named convention to begin with; the other settings of the filterbank change it."""


@dataclass(frozen=True)
class CommandLine(Config, Paths):
    """What `--help` lists: the paths first, then everything else of a run."""

    paths: tyro.conf.Suppress[Paths] = field(default_factory=Paths)
    fbank: FbankFlags = field(default_factory=FbankFlags)
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
        inner, is_optional = strip_optional(info.type)
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


def _read_flags(arguments: Arguments) -> tuple[dict[str, Any], Path | None]:
    """Return the flags' values by key, and the file of `--config`."""
    known = {setting.flag: setting for setting in settings().values()}
    off = {setting.off_flag: setting for setting in known.values() if setting.type is bool}
    known |= {setting.flag: setting for setting in (CONFIG_FILE, PRESET)}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for given, tokens in arguments.groups:
        flag = given.replace("_", "-")
        try:
            if flag in off:
                if tokens:
                    raise InputError(f"{flag} takes no value, got {' '.join(tokens)}")
                setting, value = off[flag], False
            elif flag in known:
                setting = known[flag]
                value = from_text(setting, tokens, flag)
            elif flag:
                raise InputError(f"unknown flag {given}{nearest(flag, [*known, *off])}")
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
    return with_preset(values), config_file
