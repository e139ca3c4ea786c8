"""Classify audio files with a trained model: `python -m ast_fast.predict CHECKPOINT AUDIO …`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ast_fast.classifier import Classifier, batches_of_one_length, load_any_classifier
from ast_fast.data.audio import read_windows
from ast_fast.data.cache import decode_settings
from ast_fast.embeddings import check_embeddings_out, write_embeddings
from ast_fast.explain import attention_rollout, save_explanation
from ast_fast.machine.device import is_out_of_memory, resolve_device
from ast_fast.machine.malloc import keep_freed_memory
from ast_fast.pretrained.located import Checkpoint
from ast_fast.settings.rules import clips_that_fit
from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.find import find_audio
from ast_fast_kernels.audio.flaws import FLAWS, Survey
from ast_fast_kernels.console import (
    RunConsole,
    check_paths,
    complain,
    fail,
    parse_options,
    send_nowhere,
    show_progress,
)
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import remove_leftovers
from ast_fast_kernels.files.text import is_visible, one_line, one_name

PROGRAM = "python -m ast_fast.predict"

MOST_NAME_BYTES = 200
"""Of a picture's name, without its number and suffix; file systems take 255."""


@dataclass(frozen=True)
class Options(Checkpoint):
    """Classify audio files with a trained model.

    A file of any length is cut into clips of the model's length, and their probabilities are
    averaged. A file that cannot be used is named on standard error and skipped; the exit code is
    then 1.
    """

    audio: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="AUDIO ...")]
    """Audio files, or folders to search for them, subfolders included."""
    top: int = 5
    """Number of most probable classes to print."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one line of JSON for each file, with every class."""
    explain: Path | None = None
    """Folder for a PNG of each file: its spectrogram, and the model's attention over it."""
    embeddings: Path | None = None
    """File (.npy) for a row of each classified file, in the order printed: the mean over its clips
    of what the model's head classifies. Their names go to a .jsonl beside it, a line for a row."""
    batch_size: int = 32
    """Clips classified at once; fewer if this machine's memory would not hold them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to run on; auto takes CUDA if available."""


@dataclass
class ClassifiedFile:
    """An audio file, and the results of its clips so far."""

    path: Path
    total: NDArray[np.float64] | None = None
    embedding: NDArray[np.float64] | None = None
    """Sum over its clips, like `total`."""
    count: int = 0
    best: float = -1.0
    clearest: NDArray[np.int16] | None = None
    error: str | None = None
    flaws: tuple[str, ...] = ()
    """Kinds of flaws in the audio."""
    pending: int = 0
    """Clips read but not yet classified."""

    def add(
        self,
        probabilities: NDArray[np.float64],
        embedding: NDArray[np.float64],
        window: NDArray[np.int16],
    ) -> None:
        """Add the results of one clip; keep the clip with the highest probability."""
        self.total = probabilities if self.total is None else self.total + probabilities
        self.embedding = embedding if self.embedding is None else self.embedding + embedding
        self.count += 1
        self.pending -= 1
        if probabilities.max() > self.best:
            self.best, self.clearest = float(probabilities.max()), window

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Mean over its clips."""
        assert self.total is not None
        return self.total / self.count


def classify(
    classifier: Classifier, paths: Sequence[Path], batch_size: int
) -> Iterator[ClassifiedFile]:
    """Yield each file in order, with its probabilities or its error.

    Batches span files, so many short files take no longer than one long file.
    """
    settings = decode_settings(classifier.config)
    batch_size = min(batch_size, clips_that_fit(classifier.config, settings.num_samples))
    waiting: deque[ClassifiedFile] = deque()
    pending: list[tuple[ClassifiedFile, NDArray[np.int16]]] = []
    for path in paths:
        file = ClassifiedFile(path)
        waiting.append(file)
        survey = Survey()
        try:
            for window in read_windows(
                path,
                sample_rate=settings.sample_rate,
                num_samples=settings.num_samples,
                resample_quality=settings.resample_quality,
                survey=survey,
                shortest=classifier.shortest,
            ):
                pending.append((file, window))
                file.pending += 1
                if len(pending) == batch_size:
                    _classify_batch(classifier, pending)
        except BadAudioError as error:
            file.error = str(error)
        file.flaws = survey.flaws
        while waiting and not waiting[0].pending:
            yield waiting.popleft()
    _classify_batch(classifier, pending)
    yield from waiting


def _classify_batch(
    classifier: Classifier, pending: list[tuple[ClassifiedFile, NDArray[np.int16]]]
) -> None:
    if not pending:
        return
    try:
        results, embeddings = _outputs(classifier, [window for _, window in pending])
    except ValueError as error:
        raise InputError(f"CHECKPOINT's settings give no features of a clip: {error}") from error
    for (file, window), probabilities, embedding in zip(pending, results, embeddings, strict=True):
        file.add(probabilities, embedding, window)
        if not np.isfinite(probabilities).all():
            file.error = "cannot be classified: the model's probabilities are not finite"
    pending.clear()


def _outputs(
    classifier: Classifier, windows: Sequence[NDArray[np.int16]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return clips' probabilities and embeddings, a row for each; each length is a batch."""
    results = np.empty((len(windows), len(classifier.class_names)))
    embeddings = np.empty((len(windows), classifier.config.model.pooled_width))
    for rows, batch in batches_of_one_length(windows):
        embeddings[rows], results[rows] = (part.numpy() for part in classifier.outputs(batch))
    return results, embeddings


def main(argv: Sequence[str] | None = None) -> int:
    """Classify the files that the arguments name; return the exit code.

    0 when every file was classified; 1 when some could not be used, each named on standard error;
    2, after one line on standard error, when nothing could be done; 130 when interrupted; 141, as
    in other programs, when standard output was closed.

    Args:
        argv: The arguments; None takes the command line's.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an encoding may lack characters of file names
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parse_options(Options, PROGRAM, arguments)
    keep_freed_memory()
    try:
        check_paths(arguments, "--explain", "--embeddings")
        return _classify_all(options)
    except InputError as error:
        return fail(*error.problems)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return fail("out of memory: lower --batch-size")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        send_nowhere(sys.stdout)
        return 141


def _classify_all(options: Options) -> int:
    for name, value in (("--top", options.top), ("--batch-size", options.batch_size)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not options.audio:
        raise InputError("AUDIO must name at least one file or folder, got none")
    if options.embeddings is not None:
        check_embeddings_out(options.embeddings)
    paths = find_audio(options.audio)
    classifier = load_any_classifier(
        options.located(), resolve_device(options.device), seconds=options.seconds
    ).ready()
    _say_if_less_precise(classifier)
    if classifier.multi_label:
        complain("note", "a clip can be of several classes: probabilities need not sum to 1")
    num_bad = 0
    drawn: set[str] = set()
    names: list[dict[str, Any]] = []
    rows: list[NDArray[np.float32]] = []
    with (
        _drawing_in(options.explain),
        show_progress(RunConsole(stderr=True), "classifying", len(paths)) as advance,
    ):
        for file in classify(classifier, paths, options.batch_size):
            advance(1)
            if file.error is not None:
                num_bad += 1
                complain("error", f"{file.path} {file.error}")
                continue
            for kind in file.flaws:
                complain("note", f"{file.path} is {FLAWS[kind]}")
            _print_result(file, classifier.class_names, options)
            if options.embeddings is not None:
                assert file.embedding is not None
                names.append({**_named(file.path), "clips": file.count})
                rows.append((file.embedding / file.count).astype(np.float32))
            if options.explain is not None:
                try:
                    _draw(file, classifier, options.explain, drawn)
                except OSError as error:
                    num_bad += 1
                    complain("error", f"{file.path} cannot be drawn: {error.strerror or error}")
    if options.embeddings is not None:
        width = classifier.config.model.pooled_width
        write_embeddings(options.embeddings, names, rows, width)
    return 1 if num_bad else 0


def _say_if_less_precise(classifier: Classifier) -> None:
    """Print a note if the device lacks the precision of training."""
    precision = str(classifier.placement.amp or torch.float32).removeprefix("torch.")
    trained_in, kind = classifier.config.training.amp, classifier.placement.device.type
    if trained_in not in ("auto", "off", precision):
        complain(
            "note",
            f"the model was trained with training.amp {trained_in}, which this {kind} does not "
            f"support; classifying in {precision}",
        )


@contextmanager
def _drawing_in(folder: Path | None) -> Iterator[None]:
    """Create the folder of `--explain`, if given, and remove what killed processes left there.

    While another process draws there, nothing is removed.
    """
    if folder is None:
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            lock.acquire(timeout=0)
            remove_leftovers(folder)
    except OSError as error:
        raise InputError(f"--explain {folder} cannot be made: {error.strerror}") from error
    try:
        yield
    finally:
        if lock.is_locked:
            lock.release()
            with suppress(OSError):
                (folder / ".lock").unlink(missing_ok=True)


def _print_result(file: ClassifiedFile, class_names: Sequence[str], options: Options) -> None:
    order = np.argsort(-file.probabilities, kind="stable")
    if options.json:
        classes = {class_names[k]: float(file.probabilities[k]) for k in order}
        result = {**_named(file.path), "clips": file.count, "probabilities": classes}
        print(_json_line(result), flush=True)
        return
    clips = "1 clip" if file.count == 1 else f"{file.count} clips"
    print(f"{one_line(str(file.path))} ({clips})")
    for k in order[: options.top]:
        name = one_name(class_names[k])
        print(f"  {100 * file.probabilities[k]:5.1f} %  {name}", flush=True)


def _named(path: Path) -> dict[str, str]:
    """Return a file's name for JSON: as text, and as bytes in hexadecimal if it is not UTF-8."""
    name = os.fsencode(path)
    try:
        return {"file": name.decode()}
    except UnicodeDecodeError:
        return {"file": name.decode(errors="replace"), "file_bytes": name.hex()}


def _json_line(result: Mapping[str, Any]) -> str:
    """Return a line of JSON that standard output can hold, without control characters."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = json.dumps(result, ensure_ascii=False, allow_nan=False)
    if all(map(is_visible, text)):
        with contextlib.suppress(UnicodeEncodeError, LookupError):
            text.encode(encoding)
            return text
    return json.dumps(result, allow_nan=False)


def _draw(file: ClassifiedFile, classifier: Classifier, folder: Path, drawn: set[str]) -> None:
    """Draw the clip with the highest probability; files of the same name get numbers."""
    assert file.clearest is not None
    window = torch.from_numpy(file.clearest)[None].to(classifier.placement.device)
    features = classifier.features(window)
    model, config = classifier.model, classifier.config
    stem = _picture_name(file.path.stem)
    name, number = stem, 1
    while name in drawn:
        number += 1
        name = f"{stem}-{number}"
    drawn.add(name)
    best = int(file.probabilities.argmax())
    (height, width), (step_freq, step_time) = config.model.patch_size, config.model.patch_stride
    grid = model.patch_embedding.grid
    save_explanation(
        folder / f"{name}.png",
        features[0],
        attention_rollout(model, features)[0],
        covered=((grid[0] - 1) * step_freq + height, (grid[1] - 1) * step_time + width),
        frame_shift=config.fbank.frame_shift,
        title=f"{one_line(file.path.name, 60)}: {one_line(classifier.class_names[best], 40)} "
        f"({100 * file.probabilities[best]:.1f} %)",
    )


def _picture_name(stem: str) -> str:
    """Return a name in UTF-8, without control characters, that every file system takes."""
    names = (one_line(stem, longest) for longest in (MOST_NAME_BYTES, 100, MOST_NAME_BYTES // 4))
    return next(name for name in names if len(name.encode()) <= MOST_NAME_BYTES)


if __name__ == "__main__":
    sys.exit(main())
