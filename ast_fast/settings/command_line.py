"""The command line of a run: defaults, then a TOML file, then flags, each setting checked by name.

One table of settings, made from the dataclasses of `settings.config`, reads both TOML and flags, so
errors in either have the same words. tyro prints `--help` from the same dataclasses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import tyro

from ast_fast.settings.config import Config, Paths
from ast_fast.settings.stored import is_store, stored_defaults
from ast_fast.settings.toml import build_config, over, read_toml, recorded_values
from ast_fast.settings.values import (
    CONFIG_FILE,
    PRESET,
    from_text,
    nearest,
    settings,
    shown,
    strip_optional,
)
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.presets import PresetName
from ast_fast_kernels.files.text import one_name

PROGRAM = "python -m ast_fast.cv"

DEMO_DEFAULTS: dict[str, object] = {
    "training.epochs": 8,
    "training.batch_size": 16,
    "training.learning_rate": 2e-3,
    "training.warmup_epochs": 2.0,
    "training.ema_decay": 0.95,
    "augment.mix_probability": 0.0,
    "augment.patch_drop": 0.6,
}
"""Defaults of a run on the synthesised data set, whose few clips need fewer and smaller steps."""

SEEDS, MERGE = "--seeds", "--merge"
"""Flags that make several runs, or merge several into one. They are not settings."""

DESCRIPTION = """Train and test a minimal Audio Spectrogram Transformer on every fold of a data set.

Settings come from the defaults, then the TOML file of --config, then these flags. --fbank.preset
replaces all earlier settings of the filterbank; those given with it are applied on top. Without
--data, a quick run trains on a small synthesised data set. If --data is the output of python -m
ast_fast_kernels.extract, the settings of its filterbank are the defaults, and the augmentation of
waveforms is off. With --model.pretrained, that model is fine-tuned: sizes and features are its own,
and the recipe is that of the original AST on ESC-50, unless settings say otherwise."""


@dataclass(frozen=True)
class Arguments:
    """Command-line arguments, without the program's name, grouped by flag."""

    tokens: tuple[str, ...]

    @cached_property
    def groups(self) -> list[tuple[str, list[str]]]:
        """Each flag with its values; values before the first flag have the flag ''."""
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
    def asks_for_help(self) -> bool:
        """Whether `--help` or `-h` is given."""
        return not {"--help", "-h"}.isdisjoint(self.tokens)

    def of(self, flag: str) -> list[list[str]]:
        """Return the values of a flag, one list for each time it is given."""
        return [values for name, values in self.groups if name == flag]

    def without(self, *flags: str) -> Arguments:
        """Return all arguments except these flags and their values."""
        kept = [(flag, values) for flag, values in self.groups if flag not in flags]
        return Arguments(
            tuple(t for flag, values in kept for t in ([flag] if flag else []) + values)
        )


@dataclass(frozen=True)
class SeedsJob:
    """One run for each of several seeds."""

    seeds: tuple[int, ...]
    arguments: Arguments
    """Arguments of every run, without `--seeds`."""


@dataclass(frozen=True)
class MergeJob:
    """Several runs to merge into one."""

    runs: tuple[Path, ...]
    out: Path


def read_job(arguments: Arguments) -> SeedsJob | MergeJob | None:
    """Return what `--seeds` or `--merge` asks for; None if the arguments describe one run.

    Raises:
        InputError: The arguments cannot be used together; the message says why.
    """
    if arguments.asks_for_help:
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
            raise InputError(f"{SEEDS} must be distinct integers from 0 up, got {token}")
        seeds.append(int(token))
    return SeedsJob(tuple(seeds), arguments.without(SEEDS))


def _read_merge(arguments: Arguments) -> MergeJob:
    groups = dict(arguments.groups)
    if len(groups) < len(arguments.groups):
        raise InputError(f"{MERGE} and --out must each be given once")
    if unknown := groups.keys() - {MERGE, "--out"}:
        raise InputError(f"{MERGE} takes no other flag than --out, got {min(unknown)}")
    out = groups.get("--out", [])
    if len(out) != 1:
        raise InputError(f"{MERGE} needs --out, the folder of the merged run")
    if "" in (*groups[MERGE], *out):  # Path takes it for the current folder
        raise InputError(f"{MERGE} and --out must name folders, got ''")
    runs = tuple(Path(token).expanduser() for token in groups[MERGE])
    return MergeJob(runs, Path(out[0]).expanduser())


Defaults = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Returns defaults, by key, that follow from what is given by key."""


def parse_config(
    argv: Sequence[str] | Arguments,
    more_defaults: Defaults = lambda _: {},
    located: Defaults = dict,
) -> Config:
    """Return the settings of a run: flags over the TOML file of `--config` over the defaults.

    `fbank.preset` replaces all earlier settings of the filterbank; those given with it, in the same
    file or among the same flags, are applied on top. With `--resume`, the settings recorded in the
    folder of `--out` replace the defaults. `--help` prints the help and raises SystemExit(0). This
    checks types, the filterbank's rules, and that no number is absurdly large; `settings.rules`
    checks ranges.

    Args:
        argv: The arguments, without the program's name.
        more_defaults: Those of a model that others trained, where one is given.
        located: Returns what is given with such a model on this machine, fetched if that is asked.
    Raises:
        InputError: A flag or key is unknown, or its value is of the wrong type; one line for each.
    """
    arguments = argv if isinstance(argv, Arguments) else Arguments(tuple(argv))
    if arguments.asks_for_help:
        print_help()
        raise SystemExit(0)
    flags, config_file = _read_flags(arguments)
    values = located(over(read_toml(config_file) if config_file else {}, flags))
    if values.get("resume"):
        if values.get("out") is None:
            raise InputError("--resume needs --out, the folder of the run to resume")
        base = recorded_values(values["out"])
    else:
        base = _defaults(values, more_defaults(values))
    return build_config(over(base, values))


def _defaults(values: Mapping[str, Any], of_model: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults that the data set and a pre-trained model change."""
    if values.get("download"):
        return of_model
    if values.get("data") is None:
        return DEMO_DEFAULTS | of_model
    return of_model | (stored_defaults(values["data"]) if is_store(values["data"]) else {})


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
    """From waveform to log-mel filterbank."""

    named: Annotated[PresetName, tyro.conf.arg(name="preset")] = "ast"
    """Named convention to start from; other --fbank flags change it."""


@dataclass(frozen=True)
class CommandLine(Config, Paths):
    """What `--help` lists: the paths first, then everything else of a run."""

    paths: tyro.conf.Suppress[Paths] = field(default_factory=Paths)
    fbank: FbankFlags = field(default_factory=FbankFlags)
    config: Path | None = None
    """TOML file of settings, for example the config.toml of an earlier run; flags override it."""
    seeds: tuple[int, ...] = ()
    """Seeds to run one after another, each in --out/seed-N, with a summary; none: --seed alone."""
    merge: tuple[Path, ...] = ()
    """Folders of finished runs to merge into one run with one report, in --out."""


def _help_registry() -> tyro.constructors.ConstructorRegistry:
    """Show an optional setting as its plain type, without tyro's `{None}|`."""
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
    """Return the flags' values by key, and the path of `--config`."""
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
                    raise InputError(f"{flag} takes no value, got {one_name(' '.join(tokens))}")
                setting, value = off[flag], False
            elif flag in known:
                setting = known[flag]
                value = from_text(setting, tokens, flag)
            elif flag:
                raise InputError(f"unknown flag {one_name(given)}{nearest(flag, [*known, *off])}")
            else:
                raise InputError(f"every argument must be a flag, got {shown(tokens[0])}")
            if setting.key in values:
                raise InputError(f"{setting.flag} is given twice")
            values[setting.key] = value
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(*problems)
    config_file = values.pop(CONFIG_FILE.key, None)
    return values, config_file
