"""Lets an ONNX file read its weights from the safetensors file it was exported from.

Both formats keep tensors as plain little-endian bytes, and ONNX external data is a file name, an
offset and a length. So a folder can serve transformers and ONNX Runtime with one copy of weights.
"""

from __future__ import annotations

import json
import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.models.naming import NAME_SCOPES

_DTYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "I64": ir.DataType.INT64,
    "I32": ir.DataType.INT32,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file; `offset` counts from the file's start."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    offset: int
    length: int


def read_header(path: Path) -> list[StoredTensor]:
    """Tensors of a safetensors file whose types ONNX has.

    The file is a little-endian uint64 length, a JSON header of that length, and the bytes.

    Raises:
        UserError: the file is no safetensors file.
    """
    with path.open("rb") as file:
        try:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(size, path.stat().st_size)))
        except (struct.error, ValueError) as error:
            raise UserError(f"{path} is not a safetensors file") from error
    header.pop("__metadata__", None)
    return [
        StoredTensor(
            name,
            _DTYPES[entry["dtype"]],
            tuple(entry["shape"]),
            8 + size + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if entry["dtype"] in _DTYPES
    ]


def link(model_path: Path, weights_path: Path) -> int:
    """Point an ONNX file's initializers into a safetensors file of the same folder, in place.

    An initializer that equals a stored tensor, bit for bit, becomes external data. One that equals
    the transpose of a stored matrix becomes a `Transpose` node on it, which ONNX Runtime folds at
    load. All others are kept in the model file; its own data file, no longer read, is removed.

    Returns:
        Bytes of weights that stayed in the model file.

    Raises:
        UserError: the files are in different folders, or the second is no safetensors file.
    """
    if model_path.parent.resolve() != weights_path.parent.resolve():
        raise UserError(
            f"{weights_path} is not in the folder of {model_path}", "external data beside its model"
        )
    model = ir.load(model_path)
    stored = _index(weights_path)
    kept = 0
    for value in list(model.graph.initializers.values()):
        assert value.const_value is not None
        array = value.const_value.numpy()
        if (tensor := stored.get(_key(value.dtype, array))) is not None:
            value.const_value = _external(tensor, weights_path)
        elif array.ndim == 2 and (tensor := stored.get(_key(value.dtype, array.T))) is not None:
            _transpose(model.graph, value, tensor, weights_path)
        else:
            kept += value.const_value.nbytes
    _save(model, model_path)
    return kept


_Key = tuple[ir.DataType | None, tuple[int, ...], bytes]


def _key(dtype: ir.DataType | None, array: np.ndarray) -> _Key:
    return dtype, array.shape, array.tobytes()


def _index(path: Path) -> dict[_Key, StoredTensor]:
    data = np.memmap(path, mode="r")
    return {
        (tensor.dtype, tensor.shape, data[tensor.offset : tensor.offset + tensor.length].tobytes()): tensor
        for tensor in read_header(path)
    }


def _external(tensor: StoredTensor, path: Path) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        path.name,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape),
        name=tensor.name,
        base_dir=path.parent,
    )


def _transpose(graph: ir.Graph, value: ir.Value, tensor: StoredTensor, path: Path) -> None:
    """Feed `value`'s consumers from a Transpose of the stored tensor, which takes over its name."""
    consumer = next(node for node in graph if value in node.inputs)
    graph.initializers.pop(value.name or "")
    source = ir.Value(
        name=value.name,
        type=value.type,
        shape=ir.Shape(tensor.shape),
        const_value=_external(tensor, path),
    )
    node = ir.node("Transpose", [source], {"perm": [1, 0]}, name=f"{consumer.name}.Transpose")
    node.metadata_props[NAME_SCOPES] = consumer.metadata_props.get(NAME_SCOPES, "['']")
    output = node.outputs[0]
    output.name, output.type, output.shape = f"{value.name}.T", value.type, value.shape
    value.replace_all_uses_with(output)
    graph.register_initializer(source)
    graph.insert_before(consumer, node)


def _save(model: ir.Model, path: Path) -> None:
    own_data = path.with_name(path.name + ".data")
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.location == own_data.name:
            value.const_value = ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=value.name)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        ir.save(model, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    own_data.unlink(missing_ok=True)
