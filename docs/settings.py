"""Write docs/reference/settings.md: every flag of the seven command lines, from their dataclasses.

python docs/settings.py

Names, defaults and words are the program's own: those that `--help` shows and TOML files take.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from pathlib import Path
from typing import Any

from ast_fast import compare, export, extract, predict, select
from ast_fast.settings import command_line
from ast_fast.settings.config import Config
from ast_fast.settings.values import settings
from ast_fast_kernels import extract as kernels_extract
from ast_fast_kernels.corpus.run import Corpus

PAGE = Path(__file__).parent / "reference" / "settings.md"
TABLES = {
    "": "A run",
    "audio": "Audio",
    "features": "Features",
    "fbank": "The filterbank",
    "model": "The model",
    "augment": "Augmentation",
    "training": "Training",
}
"""Tables of settings in their order, and what the page calls them."""


def words_of(cls: type) -> dict[str, str]:
    """Return the docstring of each field of a dataclass, those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        body = definition.body
        for field, after in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                assert isinstance(field.target, ast.Name)
                found[field.target.id] = " ".join(ast.literal_eval(after.value).split())
    return found


def row(*cells: str) -> str:
    """Return one line of a table; what Markdown or HTML would take for its own is escaped."""
    escaped = (cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def shown(value: Any) -> str:
    """Return a default as one would type it, or nothing where there is none."""
    match value:
        case None | () | "":
            return ""
        case bool():
            return "on" if value else "off"
        case tuple():
            return f"`{' '.join(map(str, value))}`"
        case str() if len(value) > 40:
            return "ESC-50's"
    return f"`{value}`"


def settings_tables() -> str:
    """Return the tables of every setting of a run, one for each of its dataclasses."""
    rows: dict[str, list[str]] = {table: [] for table in TABLES}
    for setting in settings().values():
        *parents, name = setting.fields
        owner: Any = Config()
        for parent in parents:
            owner = getattr(owner, parent)
        flag, default = setting.flag, getattr(owner, name)
        if default is True:
            flag = setting.off_flag
        table = setting.key.rpartition(".")[0]
        rows[table].append(row(f"`{flag}`", shown(default), words_of(type(owner))[name]))
    parts = []
    for table, title in TABLES.items():
        head = row("flag", "default", "") + "\n|---|---|---|"
        parts.append("\n".join([f"### {title}\n", head, *rows[table]]))
    return "\n\n".join(parts)


def extra_flags() -> str:
    """Return the table of flags that are no settings of one run."""
    words = words_of(command_line.CommandLine)
    rows = [row(f"`--{name}`", words[name]) for name in ("config", "seeds", "merge")]
    rows.append(row("`--fbank.preset`", words_of(command_line.FbankFlags)["named"]))
    return "\n".join([row("flag", ""), "|---|---|", *rows])


def options_table(options: type) -> str:
    """Return the arguments and flags of one of the smaller programs."""
    words, hints = words_of(options), _annotations(options)
    rows = [row("argument", "default", ""), "|---|---|---|"]
    fields = dataclasses.fields(options)
    for field in sorted(fields, key=lambda field: "Positional" not in str(hints[field.name])):
        name = field.name.replace("_", "-")
        positional = "Positional" in str(hints[field.name])
        default = "" if field.default is dataclasses.MISSING else shown(field.default)
        flag = f"`{name.upper()}`" if positional else f"`--{name}`"
        rows.append(row(flag, default, words[field.name]))
    return "\n".join(rows)


def _annotations(options: type) -> dict[str, Any]:
    """Return the annotation of each field, those of its bases included."""
    found: dict[str, Any] = {}
    for base in reversed(options.__mro__):
        found |= inspect.get_annotations(base)
    return found


def about(options: type) -> str:
    """Return what a program does, by the docstring of its options."""
    return inspect.cleandoc(options.__doc__ or "")


def page() -> str:
    """Return the page."""
    return f"""# Command lines and settings

<!-- python docs/settings.py -->

Seven programs, each run as `python -m`: [`ast_fast.cv`](#ast_fastcv) trains and tests,
[`ast_fast.predict`](#ast_fastpredict) classifies files, [`ast_fast.extract`](#ast_fastextract)
extracts what a model makes of a corpus, [`ast_fast_kernels.extract`](#ast_fast_kernelsextract) its
features, [`ast_fast.export`](#ast_fastexport) writes a model as ONNX,
[`ast_fast.compare`](#ast_fastcompare) sets runs side by side, and
[`ast_fast.select`](#ast_fastselect) chooses settings. `--help` says the same as this page, which
`python docs/settings.py` makes from the program; a test makes it again and compares.

## ast_fast.cv

{command_line.DESCRIPTION}

In a TOML file, a setting is named like its flag, with underscores: `--training.batch-size 16` is
`batch_size = 16` under `[training]`. A flag of the form `--augment.no-roll` switches off what is on
by default; in TOML that is `roll = false`. `none` empties a list (`--folds none`).

The exit code is 0 when the report is written; 2 when something given cannot be used or a resource
is exhausted, after one line for each problem; 130 when interrupted and 143 when terminated.

{extra_flags()}

{settings_tables()}

## ast_fast.predict

{about(predict.Options)}

{options_table(predict.Options)}

## ast_fast.extract

{about(extract.Options)}

{options_table(extract.Options)}

## ast_fast.export

{about(export.Options)}

{options_table(export.Options)}

## ast_fast.compare

{about(compare.Options)}

{options_table(compare.Options)}

## ast_fast.select

{about(select.Options)}

{options_table(select.Options)}

## ast_fast_kernels.extract

{about(kernels_extract.Options)}

{options_table(Corpus)}

`--preset` names a convention, `ast` unless given, and each field of
[`FbankConfig`](filterbank.md) is a flag that changes it, such as `--num-mel-bins`.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
