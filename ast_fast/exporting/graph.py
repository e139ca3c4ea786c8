"""The graph of a classifier in ONNX, from the waveform to the logits."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ast_fast import __version__
from ast_fast.classifier import Classifier
from ast_fast.data.cache import decode_settings
from ast_fast.features import model_input
from ast_fast.inference import check_plain
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast_kernels import use_backend
from ast_fast_kernels.compat.onnx import translations
from ast_fast_kernels.errors import InputError

OPSET = 20
INPUT = "waveform"
OUTPUT = "logits"

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

MOST_BYTES = 2**31 - 2**20
"""Weights that one file holds: protobuf ends at 2 GiB, and the graph needs some of it."""

Graph = Any
"""A model of onnx_ir, which onnxscript brings."""


class WaveformModel(nn.Module):
    """A classifier as one module: waveforms in, logits out, divided by its temperature."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.model = classifier.model
        self.settings = classifier.config, classifier.statistics
        self.temperature = classifier.temperature

    def forward(self, waveform: Tensor) -> Tensor:
        """Return the logits, (batch, num_classes), of waveforms, (batch, num_samples)."""
        logits: Tensor = self.model(model_input(waveform, *self.settings))
        return logits if self.temperature is None else logits / self.temperature


def check_packages() -> None:
    """Raise if a package that an export needs is not installed.

    Raises:
        InputError: One is not.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"an export needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            "not installed: pip install 'ast-fast[onnx]'"
        )


def check_model(model: nn.Module) -> None:
    """Raise if a model cannot be exported.

    Raises:
        ValueError: It is another model, or not as `check_plain` wants it.
        InputError: Its weights do not fit into one file.
    """
    if not isinstance(model, AudioSpectrogramTransformer):
        kind = type(model).__name__
        raise ValueError(f"model must be an AudioSpectrogramTransformer to be exported, got {kind}")
    check_plain(model)
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    if size > MOST_BYTES:
        raise InputError(
            f"the model's weights must be below 2 GiB to be one ONNX file, got {size / 2**30:.1f}"
        )


def build_graph(classifier: Classifier) -> Graph:
    """Return the graph of a classifier in float32, with what a server needs to know beside it.

    Args:
        classifier: As `check_model` wants its model.
    """
    num_samples = decode_settings(classifier.config).num_samples
    table = translations()
    table[torch.ops.aten.scaled_dot_product_attention.default] = _attention
    with torch.no_grad(), _silence(), use_backend("reference", attention="sdpa"):
        program = torch.onnx.export(
            WaveformModel(classifier).eval(),
            (torch.zeros(2, num_samples),),
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=table,
            dynamic_shapes=({0: "batch"},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    assert program is not None
    graph = program.model
    _strip(graph)
    graph.producer_name, graph.producer_version = "ast-fast", __version__
    graph.metadata_props.update(described(classifier))
    return graph


def described(classifier: Classifier) -> dict[str, str]:
    """Return what the file says of itself, as text by name."""
    settings = decode_settings(classifier.config)
    temperature = classifier.temperature
    return {
        "class_names": json.dumps(classifier.class_names, ensure_ascii=False),
        "sample_rate": str(settings.sample_rate),
        "num_samples": str(settings.num_samples),
        "multi_label": json.dumps(classifier.multi_label),
        "ast_fast_version": __version__,
    } | ({} if temperature is None else {"temperature": str(temperature)})


def _attention(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Build attention of q, k, v, (batch, heads, tokens, head_dim), scaled once.

    torch's own translation multiplies queries and keys by a root of the scale; runtimes fold one
    factor into the product.
    """
    from onnxscript import ir, opset20

    assert attn_mask is None
    assert scale is not None
    op: Any = opset20
    factor = op.Constant(value=ir.tensor(np.float32(scale)))
    scores = op.MatMul(op.Mul(q, factor), op.Transpose(k, perm=[0, 1, 3, 2]))
    return op.MatMul(op.Softmax(scores, axis=-1), v)


def _strip(graph: Graph) -> None:
    """Remove the traces of the export, which name files of this machine."""
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.initializers.values()):
        value.metadata_props.clear()
    graph.graph.metadata_props.clear()
    graph.metadata_props.clear()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what torch's exporter warns of, none of which concerns this model, from the screen."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
