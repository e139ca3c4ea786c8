"""The command line of a run: defaults, then a TOML file, then flags, each setting checked by name.

One table of settings, made from the dataclasses of `settings.config`, reads TOML and flags alike,
so that both name a wrong setting in the same words; tyro prints `--help` from the same dataclasses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
from ast_fast_kernels.fbank.config import FbankConfig, PresetName

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

DESCRIPTION = """Train and test a minimal Audio Spectrogram Transformer on every fold of a data set.

Settings come from the defaults, then the TOML file of --config, then these flags. A preset of the
filterbank replaces all of its settings from before; those given beside it hold on top of it.
Without --data a small data set is synthesised, and a quick run over it is made."""


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
