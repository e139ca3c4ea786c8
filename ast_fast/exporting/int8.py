"""Projections of a graph in int8: weights rounded once, tokens as they come.

Each output of a projection has a scale for its weights, each token one for its values, so that a
clip's logits do not depend on its batch. Operators are those of ONNX alone, which onnxruntime runs
by its integer products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ast_fast.exporting.graph import Graph
from ast_fast_kernels.errors import InputError

LEAST_WIDTH = 64
"""A projection with fewer inputs or outputs stays in float32."""

LARGEST = 127
"""Largest weight, and largest sum of two, in steps.

CPUs without VNNI add two products of a weight and a byte in 16 bits, which saturate: 255 * 127 fits
and no more does.
"""

GELU_LEAST = 0.17
"""No value of GELU is below its negative."""

GELU_ZERO = 43
"""The byte that stands for 0 after GELU: 212 steps remain for what is above it."""


def quantise(graph: Graph) -> int:
    """Replace a graph's large projections after the first norm; return how many.

    What comes before it (the filterbank, the projection of patches) costs little time and has the
    widest range of values. Products of attention have no weights, and stay.

    Raises:
        InputError: The model has no such projection.
    """
    values: dict[str, Any] = {}
    after_norm, count = False, 0
    for node in list(graph.graph):
        after_norm = after_norm or node.op_type == "LayerNormalization"
        if after_norm and node.op_type == "MatMul" and _is_large(node.inputs[1]):
            _replace(graph, node, values)
            count += 1
    if not count:
        raise InputError(
            f"int8 needs projections at least {LEAST_WIDTH} wide (model.embed_dim); this model has "
            "none"
        )
    return count


def rounded(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return weights in steps, and the step of each output.

    Args:
        weight: Shape (width, out).
    Returns:
        Shapes (width, out) and (out,). Of two weights that are multiplied and added at once, the
        sum is at most `LARGEST`, so nothing saturates.
    """
    even = weight if len(weight) % 2 == 0 else np.concatenate((weight, np.zeros_like(weight[:1])))
    pairs = even.reshape(-1, 2, weight.shape[1])
    sums = [np.maximum(sign * pairs, 0).sum(axis=1).max(axis=0) for sign in (1, -1)]
    # Both of a pair may be rounded up by half a step.
    step = np.maximum(*sums) / (LARGEST - 1)
    step = np.where(step > 0, step, 1).astype(np.float32)
    return np.rint(weight / step).astype(np.int8), step


def _is_large(weight: Any) -> bool:
    const = weight.const_value
    return const is not None and len(const.shape) == 2 and min(const.shape) >= LEAST_WIDTH


def _replace(graph: Graph, node: Any, values: dict[str, Any]) -> None:
    """Replace the product of tokens, (..., width), and a weight, (width, out)."""
    from onnxscript import ir

    def constant(name: str, array: Any) -> Any:
        if name not in values:
            values[name] = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            graph.graph.register_initializer(values[name])
        return values[name]

    def add(operator: str, *inputs: Any, **attributes: Any) -> Any:
        new = ir.node(operator, list(inputs), attributes)
        graph.graph.insert_before(node, new)
        return new.outputs[0]

    tokens, weight = node.inputs
    after_gelu = tokens.producer().op_type == "Gelu"
    zero = GELU_ZERO if after_gelu else 128
    levels = 255 - zero
    # GELU's range below 0 is known, so bytes below `zero` are enough for it from this scale on.
    least = GELU_LEAST * levels / zero if after_gelu else np.finfo(np.float32).tiny
    largest = tokens if after_gelu else add("Abs", tokens)
    last = constant("int8.last", np.array([-1]))
    scale = add("ReduceMax", largest, last, keepdims=1)  # (..., 1)
    scale = add("Max", scale, constant(f"int8.least.{zero}", np.float32(least)))
    step = constant(f"int8.step.{zero}", np.float32(1 / levels))
    in_bytes = constant(f"int8.zero.{zero}", np.uint8(zero))
    quantised = add("QuantizeLinear", add("Div", tokens, scale), step, in_bytes)
    steps, unit = rounded(weight.const_value.numpy())
    product = add(
        "MatMulInteger",
        quantised,
        constant(f"{weight.name}.int8", steps),
        in_bytes,
        constant("int8.zero", np.int8(0)),
    )
    product = add("Cast", product, to=ir.DataType.FLOAT)
    product = add("Mul", product, constant(f"{weight.name}.step", unit / np.float32(levels)))
    result = add("Mul", product, scale)
    ir.convenience.replace_all_uses_with(node.outputs[0], result)
    graph.graph.remove(node, safe=True)
    if not weight.uses():
        graph.graph.initializers.pop(weight.name)
