"""A whole run: from an input and an extractor to a finished output."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ast_fast_kernels.console import RunConsole, complain, show_progress
from ast_fast_kernels.corpus import cluster
from ast_fast_kernels.corpus.display import Display, clock
from ast_fast_kernels.corpus.extractor import Extractor
from ast_fast_kernels.corpus.formats.shard import DtypeName, FormatName
from ast_fast_kernels.corpus.freeze import Frozen, freeze
from ast_fast_kernels.corpus.inputs import Input, open_input
from ast_fast_kernels.corpus.jobs import Tell, make_shards
from ast_fast_kernels.corpus.output import Output, Settings, difference
from ast_fast_kernels.corpus.plan import Plan
from ast_fast_kernels.corpus.records import ShardRecord
from ast_fast_kernels.corpus.versions import LIBRARIES, LIBSNDFILE, version_of
from ast_fast_kernels.errors import InputError

VERSIONED = (LIBSNDFILE, "ast-fast-kernels", *LIBRARIES)
"""What extract.toml has the versions of, in this order."""

Make = Callable[[Plan, Sequence[int], int, Tell], Generator[ShardRecord, None, None]]
"""Makes shards, as `jobs.make_shards` does on this machine."""


@dataclass(frozen=True)
class Corpus:
    """Where audio comes from, where its features go, and how."""

    input: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="INPUT ...")]
    """A folder, searched for audio with its subfolders; a list of files, one a line; a manifest
    (JSONL, CSV or TSV: a path, perhaps a start and a duration in seconds, a key, further columns);
    tars of WebDataset; lhotse's cuts or recordings (JSONL); Kaldi's wav.scp; or audio files."""
    out: Path
    """Folder of the output: new, empty, or of a run to resume."""
    root: Path | None = None
    """Folder at which relative paths begin; that of INPUT unless it is given."""
    path_column: str | None = None
    """Column of a manifest that names the audio; unless given, path, audio_filepath, filename,
    file_name, file, audio or wav."""
    format: FormatName = "arrow"
    """Format of the shards."""
    dtype: DtypeName = "float16"
    """Type that features are stored as."""
    shard_size: int = 1000
    """Most files of a shard. A shard ends sooner once its files have 512 MiB together; the first
    ones have 32, 64 and so on, so that a small corpus keeps every process busy."""
    jobs: int = 0
    """Processes; 0 is one for each core that this process may use, or each CPU of the cluster."""
    ray: str | None = None
    """Ray cluster that makes the shards: auto (also without a value) is the one that this machine
    is part of, host:port its head, and local starts one here. Every machine must see the input and
    --out."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run in --out, if there is one."""
    skip_bad_files: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Exit with 0 although files were bad. They are left out and listed either way."""
    stop_at_bad_file: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """End the run with the first shard that has a bad file."""


def extract_corpus(corpus: Corpus, extractor: Extractor, make: Make | None = None) -> int:
    """Extract the features of a corpus; return the exit code.

    0 when the output is complete, or was; 1 when files were bad, unless --skip-bad-files is given.
    Each is in failed.jsonl, and named on standard error by the run that met it.

    Args:
        corpus: What, where to, and how.
        extractor: Makes the features.
        make: Makes the shards; None makes them on this machine, or on the cluster of `--ray`.
    Raises:
        InputError: The input, the output or the cluster cannot be used.
    """
    _check(corpus, extractor)
    if make is not None:
        return _extract(corpus, extractor, make)
    if corpus.ray is None:
        return _extract(corpus, extractor, make_shards)
    with cluster.connected(corpus.ray, corpus.jobs):
        return _extract(corpus, extractor, cluster.make_shards)


def _extract(corpus: Corpus, extractor: Extractor, make: Make) -> int:
    output = Output(Path(os.path.abspath(corpus.out)))
    given = open_input(corpus.input, root=corpus.root, path_column=corpus.path_column)
    settings = _settings(corpus, given, extractor)
    console = RunConsole()
    with output.locked():
        output.clean()
        if (before := output.finished()) is not None:
            return _say_finished(corpus, output, before, settings, console)
        frozen = _frozen(corpus, output, given, settings, console)
        plan = _plan(corpus, output, given, extractor, frozen)
        return _Run(corpus, output, plan, settings, frozen, console).extract(make)


class _Run:
    """One run of a plan, from its first unfinished shard on."""

    def __init__(
        self,
        corpus: Corpus,
        output: Output,
        plan: Plan,
        settings: Settings,
        frozen: Frozen,
        console: RunConsole,
    ) -> None:
        self._corpus, self._output, self._plan = corpus, output, plan
        self._settings, self._frozen, self._console = settings, frozen, console
        self._display = Display(console, plan.num_items)

    def extract(self, make: Make) -> int:
        """Make every shard that is not there, then the tables; return the exit code."""
        todo = self._todo()
        self._console.print(
            f"{_counted(self._plan.num_items, 'file')} in "
            f"{_counted(self._plan.num_shards, 'shard')}, {len(todo):,} to make",
            soft_wrap=True,
        )
        try:
            with (
                self._display.shown(),
                closing(make(self._plan, todo, self._corpus.jobs, self._display.note)) as records,
            ):
                for record in records:
                    self._take(record)
            self._output.settle()
        except OSError as error:
            raise _reported(error, self._output.path) from error
        finally:
            self._output.clean()
        self._output.finish(self._resolved(), self._plan)
        self._say_done()
        return 1 if self._display.bad and not self._corpus.skip_bad_files else 0

    def _todo(self) -> list[int]:
        """Return the shards that are not there; count those that are."""
        num_shards = self._plan.num_shards
        self._output.settle()
        done = set()
        for record in self._output.records(num_shards, check=True):
            done.add(record.shard)
            self._display.finish(record)
        if self._display.bad and self._corpus.stop_at_bad_file:
            self._stop()
        return [k for k in range(num_shards) if k not in done]

    def _take(self, record: ShardRecord) -> None:
        self._display.finish(record)
        if record.bad:
            for line in self._output.failed_lines(record.shard):
                complain("error", f"{line['path']} {line['reason']}")
            if self._corpus.stop_at_bad_file:
                self._stop()

    def _stop(self) -> None:
        raise InputError(
            f"--stop-at-bad-file: {_counted(self._display.bad, 'bad file')}; "
            "--resume without it goes on"
        )

    def _resolved(self) -> Settings:
        """Return what extract.toml holds."""
        frozen, display = self._frozen, self._display
        result = {"files": display.files - display.bad, "bad": display.bad}
        seconds = sum(record.seconds for record in self._output.records(self._plan.num_shards))
        return {
            **self._settings,
            "input": {
                **self._settings["input"],
                "items": frozen.num_items,
                "digest": frozen.digest,
            },
            "output": {**self._settings["output"], "columns": frozen.types},
            "result": {**result, "seconds": seconds},
        }

    def _say_done(self) -> None:
        display = self._display
        bad = f", {_counted(display.bad, 'bad file')} in failed.jsonl" if display.bad else ""
        self._console.print(
            f"{_counted(display.files - display.bad, 'file')}, {display.seconds / 3600:,.2f} h of "
            f"audio in {clock(display.elapsed)} ({display.files_per_second:,.0f} files/s, "
            f"{display.speed:,.0f} × real time){bad}",
            soft_wrap=True,
        )
        _say_how_to_read(self._console, self._output.path, self._corpus.format)


def _check(corpus: Corpus, extractor: Extractor) -> None:
    for name, value, least in (
        ("--shard-size", corpus.shard_size, 1),
        ("--jobs", corpus.jobs, 0),
    ):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")
    if corpus.format == "lhotse" and extractor.frame_shift is None:
        raise InputError("--format must be arrow, npy or parquet for vectors, got lhotse")


def _settings(corpus: Corpus, given: Input, extractor: Extractor) -> Settings:
    """Return what a run's bytes depend on, as TOML can hold it."""
    source: dict[str, Any] = {"paths": [os.path.abspath(path) for path in corpus.input]}
    source["root"] = str(given.root)
    if corpus.path_column is not None:
        source["path_column"] = corpus.path_column
    stored = {"format": corpus.format, "dtype": corpus.dtype, "shard_size": corpus.shard_size}
    stored |= {"width": extractor.width, "ragged": extractor.ragged}
    return {
        "input": source,
        "output": stored,
        "features": {"sample_rate": extractor.sample_rate, **extractor.settings()},
        "versions": {name: version_of(name) for name in VERSIONED},
    }


def _frozen(
    corpus: Corpus, output: Output, given: Input, settings: Settings, console: RunConsole
) -> Frozen:
    """Return the list of the input: of the run to resume, or of a new one."""
    there = output.unfinished()
    if there is None:
        with show_progress(console, "reading the input", None) as advance:
            return output.begin(
                settings, lambda path: freeze(given, path, corpus.shard_size, advance)
            )
    before, frozen = there
    if not corpus.resume:
        raise InputError(
            f"--out {output.path} holds a run that is not finished; --resume goes on with it"
        )
    changed = difference(before, settings)
    if changed is not None:
        raise InputError(f"--resume must keep the settings of the run: {changed}")
    return frozen


def _plan(
    corpus: Corpus, output: Output, given: Input, extractor: Extractor, frozen: Frozen
) -> Plan:
    shift = {} if extractor.frame_shift is None else {"frame_shift": extractor.frame_shift}
    return Plan(
        output.path,
        given.root,
        extractor,
        corpus.format,
        corpus.dtype,
        frozen.types,
        frozen.has_keys,
        frozen.offsets,
        frozen.num_items,
        {"sample_rate": extractor.sample_rate, **shift},
    )


def _say_finished(
    corpus: Corpus,
    output: Output,
    before: Mapping[str, Any],
    settings: Settings,
    console: RunConsole,
) -> int:
    """Say that an output is complete already; return the exit code.

    Raises:
        InputError: It has other settings, or files of it are gone.
    """
    output.remove_run()
    changed = difference(before, settings)
    if changed is not None:
        raise InputError(f"--out {output.path} holds a finished run of other settings: {changed}")
    if lost := output.lost():
        raise InputError(
            f"--out {output.path} holds a finished run that has lost {_counted(len(lost), 'file')},"
            f" {lost[0]} first; restore it, or remove all to begin anew"
        )
    files, bad = before["result"]["files"], before["result"]["bad"]
    console.print(
        f"nothing to do: {output.path} is complete ({_counted(files, 'file')}, {bad:,} bad)",
        soft_wrap=True,
    )
    _say_how_to_read(console, output.path, corpus.format)
    return 1 if bad and not corpus.skip_bad_files else 0


def _say_how_to_read(console: RunConsole, path: Path, form: FormatName) -> None:
    """Print what reads an output back."""
    if form == "parquet":
        lines = [
            "import pandas",
            f"table = pandas.read_parquet({str(path / 'shard-000000.parquet')!r})",
        ]
    else:
        lines = [
            "from ast_fast_kernels import FeatureStore",
            f"features = FeatureStore({str(path)!r})[0]",
        ]
    console.print("to read them back:", *lines, sep="\n  ", soft_wrap=True)


def _reported(error: OSError, path: Path) -> InputError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"--out {path}: {reason}; free some, and --resume goes on")
    return InputError(f"--out {path} cannot be written: {reason}; --resume goes on")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
