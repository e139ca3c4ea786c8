"""Write a trained model as ONNX: `python -m ast_fast.export CHECKPOINT OUT.onnx`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ast_fast.classifier import Classifier, load_any_classifier
from ast_fast.data.cache import decode_settings
from ast_fast.exporting.compared import (
    Difference,
    difference,
    logits_of_file,
    logits_of_model,
    sounds,
)
from ast_fast.exporting.graph import OPSET, Graph, build_graph, check_model, check_packages
from ast_fast.exporting.int8 import quantise
from ast_fast.machine.device import is_out_of_memory
from ast_fast.pretrained.located import Checkpoint
from ast_fast_kernels.console import check_paths, fail, parse_options
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_write, check_out_file
from ast_fast_kernels.files.text import one_line

PROGRAM = "python -m ast_fast.export"

WITHIN = 1e-5
"""Largest difference of logits in float32 that a file may have, as a share of the largest logit."""


@dataclass(frozen=True)
class Options(Checkpoint):
    """Write a trained model as one ONNX file, from the waveform to the logits.

    Its input is `waveform`, float32 in [-1, 1], shape (batch, num_samples); its output is `logits`,
    shape (batch, num_classes), divided by the model's temperature if it has one. The file has the
    class names, the sample rate and the number of samples as metadata. It is read back by
    onnxruntime and compared with the model before it gets its name.
    """

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """File to write, .onnx; an earlier one is replaced."""
    int8: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Round weights to int8: about a quarter of the size; the largest difference of its logits is
    printed."""


@dataclass(frozen=True)
class Exported:
    """An exported file, and how far it is from the model."""

    path: Path
    num_bytes: int
    sample_rate: int
    num_samples: int
    class_names: list[str]
    multi_label: bool
    float32: Difference
    """Of the graph in float32, which int8 is made from."""
    int8: Difference | None
    """Of the file, if its weights are in int8."""


def export_model(classifier: Classifier, path: Path, *, int8: bool = False) -> Exported:
    """Write a classifier as one ONNX file: waveforms in, logits out, for any batch.

    The file is whole or absent: it is checked, read back by onnxruntime and compared with the model
    on batches of 1, 2 and 3 clips before it gets its name.

    Args:
        classifier: Its model must be on the CPU, in float32 and in eval mode.
        path: The file, which ends in .onnx.
        int8: Whether to round weights to int8. How far that takes the logits is reported, whatever
            it is.
    Returns:
        Facts of the file.
    Raises:
        InputError: A package is missing, the file cannot be written, or what was written differs
            from the model.
        ValueError: The model is of another kind, device, precision or mode.
    """
    check_packages()
    check_out_file(path, "OUT", ".onnx")
    check_model(classifier.model)
    settings = decode_settings(classifier.config)
    clips = sounds(settings.sample_rate, settings.num_samples)
    wanted = logits_of_model(classifier, clips)
    graph = build_graph(classifier)
    in_int8: Difference | None = None
    try:
        with atomic_write(path) as temporary:
            _write(graph, temporary)
            in_float32 = difference(logits_of_file(temporary, clips), wanted)
            _check_difference(in_float32)
            if int8:
                quantise(graph)
                _write(graph, temporary)
                in_int8 = difference(logits_of_file(temporary, clips), wanted)
        num_bytes = path.stat().st_size
    except OSError as error:
        raise InputError(f"OUT {path} cannot be written: {error.strerror or error}") from error
    return Exported(
        path,
        num_bytes,
        settings.sample_rate,
        settings.num_samples,
        classifier.class_names,
        classifier.multi_label,
        in_float32,
        in_int8,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Export the model that the arguments name; return the exit code.

    0 when the file is written; 2, after one line on standard error, when it is not; 130 when
    interrupted.

    Args:
        argv: The arguments; None takes the command line's.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parse_options(Options, PROGRAM, arguments)
    try:
        check_paths(arguments)
        check_packages()
        check_out_file(options.out, "OUT", ".onnx")
        classifier = load_any_classifier(
            options.located(), torch.device("cpu"), seconds=options.seconds
        )
        _print(export_model(classifier, options.out, int8=options.int8))
    except InputError as error:
        return fail(*error.problems)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return fail("out of memory: the model and its file need about four times its weights")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


def _write(graph: Graph, path: Path) -> None:
    """Write a graph, and check that it is one of ONNX."""
    import onnx
    from onnxscript import ir

    ir.save(graph, path)
    onnx.checker.check_model(path)


def _check_difference(found: Difference) -> None:
    if not found.relative <= WITHIN:  # nor if it is NaN
        raise InputError(
            f"logits of the exported file must be within {WITHIN:g} of the largest one, got "
            f"{found.relative:.1e}; nothing was written"
        )


def _print(exported: Exported) -> None:
    seconds = exported.num_samples / exported.sample_rate
    print(
        f"{one_line(str(exported.path))}: {exported.num_bytes / 1e6:.1f} MB, opset {OPSET}\n"
        f"waveform: float32 (batch, {exported.num_samples}), {seconds:g} s at "
        f"{exported.sample_rate} Hz\n"
        f"logits: float32 (batch, {len(exported.class_names)}), for a "
        f"{'sigmoid' if exported.multi_label else 'softmax'}"
    )
    for name, found in (("float32", exported.float32), ("int8", exported.int8)):
        if found is not None:
            print(
                f"{name}: logits differ from the model's by {found.absolute:.2g} at most "
                f"({found.relative:.1e} of the largest), same top class in {found.same_class} of "
                f"{found.clips} clips"
            )


if __name__ == "__main__":
    sys.exit(main())
