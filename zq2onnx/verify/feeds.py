"""Makes up a small batch from the names and shapes of a model's inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

BATCH, SEQUENCE, PAST, CHANNELS, PIXELS = 1, 8, 0, 3, 32

_SEED = 21
_ATTENTION = {"GroupQueryAttention", "MultiHeadAttention"}
_HEAD_SIZE = "kv_cache_dim"
"""What onnxruntime-genai's model builder calls the width of a head in the cache's shape."""
_IMAGE = {"channel": CHANNELS, "height": PIXELS, "width": PIXELS}
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}
_INTEGERS = {TensorProto.INT64, TensorProto.INT32}


def made_up_feeds(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """A small batch for every input, always the same: ids, masks, positions, an empty cache, pixels.

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
    for word, size in _IMAGE.items():
        if word in name:
            return size
    return BATCH if "batch" in name or at == 0 else SEQUENCE


def _head_size(graph: onnx.GraphProto) -> int | None:
    """Width of one attention head, from the first attention node; None where it is not plain."""
    widths = {
        value.name: value.type.tensor_type.shape.dim[-1].dim_value
        for value in graph.value_info
        if value.type.tensor_type.shape.dim
    }
    for node in graph.node:
        width = widths.get(node.input[0]) if node.op_type in _ATTENTION else None
        sizes = {item.name: item.i for item in node.attribute}
        if width and sizes.get("num_heads"):
            is_packed = len(node.input) < 2 or not node.input[1]
            keys = 2 * sizes.get("kv_num_heads", sizes["num_heads"]) if is_packed else 0
            return width // (sizes["num_heads"] + keys)
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
