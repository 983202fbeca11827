"""Runs the whole model once, on a small batch made from the names and shapes of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from zq2onnx.errors import CheckFailed
from zq2onnx.opset import DOMAIN, GROUP_KEY
from zq2onnx.verify.optimized import (
    FLOAT_ACTIVATIONS,
    Violation,
    findings,
    naming_failures,
    optimizing_session,
)

BATCH, SEQUENCE, PAST = 1, 8, 0

_SEED = 21
_ATTENTION = {"GroupQueryAttention", "MultiHeadAttention"}
_HEAD_SIZE = "kv_cache_dim"
"""What onnxruntime-genai's model builder calls the width of a head in the cache's shape."""
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
_INTEGERS = {TensorProto.INT64, TensorProto.INT32}


def run_whole_model(model_path: Path, model: onnx.ModelProto) -> list[str]:
    """Run a model and read its optimized graph.

    Args:
        model_path: the file.
        model: the same, loaded without external data.

    Returns:
        Notes: what was not run and why, and what a qdq model leaves unfused.

    Raises:
        CheckFailed: a result is not finite, or the optimized graph breaks a rule.
    """
    if any(item.data_type == TensorProto.BFLOAT16 for item in model.graph.initializer):
        return ["whole model not run: bfloat16 needs a GPU provider"]
    is_portable = any(node.domain == DOMAIN for node in _all_nodes(model.graph))
    with naming_failures("whole model"):
        session, optimized = optimizing_session(model_path, None if is_portable else FLOAT_ACTIVATIONS)
    notes = _judge_graph(model, optimized, is_portable)
    try:
        feeds = made_up_feeds(model.graph)
    except LookupError as error:
        return [*notes, f"whole model not run: input {error.args[0]!r} is not one that can be made up"]
    with naming_failures("whole model, on inputs made up from their names"):
        results = session.run(None, feeds)
    for output, result in zip(model.graph.output, results, strict=True):
        if np.issubdtype(result.dtype, np.floating) and not np.isfinite(result).all():
            bad = int((~np.isfinite(result)).sum())
            raise CheckFailed(
                f"output {output.name!r} of the whole model: {bad} of {result.size} values not finite"
            )
    return notes


def _judge_graph(model: onnx.ModelProto, optimized: onnx.ModelProto, is_portable: bool) -> list[str]:
    """What was quantized before us keeps its name, carries no group and is not ours to judge."""
    foreign = {
        node.name
        for node in _all_nodes(model.graph)
        if all(item.key != GROUP_KEY for item in node.metadata_props)
    }
    ours = [finding for finding in findings(optimized) if finding.node not in foreign]
    unfused = [finding for finding in ours if finding.violation is Violation.DEQUANTIZED and not is_portable]
    for finding in ours:
        if finding not in unfused:
            raise CheckFailed(f"in ONNX Runtime's optimized graph of the whole model, {finding}")
    return [f"{len(unfused)} DequantizeLinear nodes stay unfused in the whole model"] if unfused else []


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(subgraph)


def made_up_feeds(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """A small batch for every input of a transformer, always the same: ids, masks, positions, an empty cache.

    Raises:
        LookupError: with the name of an input whose contents its name does not tell.
    """
    constants = {tensor.name for tensor in graph.initializer}
    feeds = {}
    for value in graph.input:
        if value.name not in constants:
            feed = _feed(value, graph)
            if feed is None:
                raise LookupError(value.name)
            feeds[value.name] = feed
    return feeds


def _feed(value: onnx.ValueInfoProto, graph: onnx.GraphProto) -> NDArray[Any] | None:
    tensor = value.type.tensor_type
    sizes = [_size(dim, at, graph) for at, dim in enumerate(tensor.shape.dim)]
    shape = [size for size in sizes if size is not None]
    if len(shape) < len(sizes):
        return None
    rng = np.random.default_rng(_SEED)
    if tensor.elem_type in _FLOATS:
        return rng.standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if tensor.elem_type not in _INTEGERS:
        return None
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    name = value.name
    if "mask" in name:
        return np.ones(shape, dtype)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    if "token_type" in name:
        return np.zeros(shape, dtype)
    if "ids" in name:
        return rng.integers(0, _rows(name, graph), shape).astype(dtype)
    return None


def _size(dim: onnx.TensorShapeProto.Dimension, at: int, graph: onnx.GraphProto) -> int | None:
    """What a dimension is in the made-up batch; None where its name does not tell."""
    if dim.HasField("dim_value"):
        return dim.dim_value
    name = dim.dim_param.lower()
    if name == _HEAD_SIZE:
        return _head_size(graph)
    if "past" in name and "seq" in name and ("+" in name or "total" in name):
        return PAST + SEQUENCE
    if "past" in name:
        return PAST
    return BATCH if "batch" in name or at == 0 else SEQUENCE


def _head_size(graph: onnx.GraphProto) -> int | None:
    """Width of one attention head, from the first attention node; None where it is not plain."""
    widths = {
        value.name: value.type.tensor_type.shape.dim[-1].dim_value
        for value in graph.value_info
        if value.type.tensor_type.shape.dim
    }
    for node in graph.node:
        if node.op_type in _ATTENTION and widths.get(node.input[0]):
            heads = {item.name: item.i for item in node.attribute}
            is_packed = not node.input[1]
            keys = 2 * heads.get("kv_num_heads", heads["num_heads"]) if is_packed else 0
            return widths[node.input[0]] // (heads["num_heads"] + keys)
    return None


def _rows(ids: str, graph: onnx.GraphProto) -> int:
    """Rows of the table that an input looks up, through Casts; 2 where it is not plain."""
    sizes = {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 2}
    same = {ids}
    for node in graph.node:
        if node.op_type in {"Cast", "Identity"} and node.input[0] in same:
            same.update(node.output)
        looks_up = node.op_type in {"Gather", "GatherBlockQuantized"} and node.input[1] in same
        if looks_up and node.input[0] in sizes:
            return int(sizes[node.input[0]])
    return 2
