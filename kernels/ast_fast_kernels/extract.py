"""Features of a corpus of audio files: `python -m ast_fast_kernels.extract INPUT --out DIR`."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass
from typing import Annotated, Any, get_type_hints

import tyro

from ast_fast_kernels.corpus.command import run_command
from ast_fast_kernels.corpus.extractor import FbankExtractor
from ast_fast_kernels.corpus.run import Corpus
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.presets import PresetName

PROGRAM = "python -m ast_fast_kernels.extract"


def _field_docs(kind: type) -> dict[str, str]:
    """Return the docstring of each field of a dataclass, on one line."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
            text = ast.literal_eval(after.value)
            docs[ast.unparse(node.target)] = " ".join(text.split())
    return docs


def _options() -> Any:
    """Return the options: those of every extraction, a preset, and every field of its config."""
    hints, docs = get_type_hints(FbankConfig), _field_docs(FbankConfig)
    preset = "Convention of the features; the flags below change it."
    flags: list[Any] = [
        ("preset", Annotated[PresetName, tyro.conf.arg(help=preset)], field(default="ast"))
    ]
    for entry in fields(FbankConfig):
        shown = tyro.conf.arg(help=docs[entry.name], help_behavior_hint="(default: the preset's)")
        flags.append((entry.name, _annotated(hints[entry.name] | None, shown), field(default=None)))
    return make_dataclass("Options", flags, bases=(Corpus,), frozen=True)


def _annotated(kind: Any, *notes: Any) -> Any:
    return Annotated[(kind, *notes)]


Options = _options()
Options.__doc__ = """Extract log-mel features of audio files, of any number, into shards.

Bad files are named on standard error, listed in failed.jsonl and left out; the exit code is then 1.
A run that was interrupted or killed goes on with --resume, to the same bytes.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Extract the features that the arguments ask for; return the exit code, as `run_command`."""
    return run_command(Options, PROGRAM, argv, _extractor)


def _extractor(options: Any) -> FbankExtractor:
    return FbankExtractor(_config(options), options.preset)


def _config(options: Any) -> FbankConfig:
    given = {entry.name: getattr(options, entry.name) for entry in fields(FbankConfig)}
    changes = {name: value for name, value in given.items() if value is not None}
    try:
        return FbankConfig.preset(options.preset, **changes)
    except ValueError as error:
        name, space, rule = str(error).partition(" ")
        raise InputError(f"--{name.replace('_', '-')}{space}{rule}") from error


if __name__ == "__main__":
    sys.exit(main())
