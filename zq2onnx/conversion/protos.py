"""Look at what a parsed file holds that the graph made of it would not show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx.helper
import onnx_ir as ir

from zq2onnx.errors import UserError

_PER_ENTRY = {4: 2, 2: 4}
"""Values in an entry of `int32_data`, by their bits, where that is not one."""
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


def check_protos(path: Path, proto: onnx.ModelProto) -> None:
    """Make sure that there are no sparse initializers and that tensors in the file are whole.

    Raises:
        UserError: otherwise; names the tensor.
    """
    for graph in graphs(proto):
        for sparse in graph.sparse_initializer:
            raise UserError(
                f"{path}: the initializer {sparse.values.name!r} is sparse",
                "dense initializers",
                "export the model without sparse weights",
            )
        for tensor in graph.initializer:
            _check_tensor(path, tensor, tensor.name)
    for node in _nodes(proto):
        for attribute in node.attribute:
            for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])):
                _check_tensor(path, tensor, f"{node.name or node.op_type}.{attribute.name}")


def check_length(path: Path, name: str | None, found: int, required: int, unit: str = "bytes") -> None:
    """Make sure that a tensor in the model file is whole.

    Raises:
        UserError: it is not.
    """
    if found != required:
        raise UserError(
            f"{path}: the tensor {name!r} holds {found} {unit}",
            f"{required}, by its shape and type",
            "export the model again",
        )


def _check_tensor(path: Path, tensor: onnx.TensorProto, name: str) -> None:
    """Compare what a tensor holds with its shape and type, where the type is one that is known."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type not in _KNOWN:
        return
    size = 1
    for dim in tensor.dims:
        size *= dim
    bits = _KNOWN[tensor.data_type]
    if tensor.HasField("raw_data"):
        check_length(path, name, len(tensor.raw_data), -(-size * bits // 8))
        return
    required = -(-size // _PER_ENTRY.get(bits, 1)) * (2 if tensor.data_type in _COMPLEX else 1)
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    check_length(path, name, len(getattr(tensor, field)), required, "values")


def _bits() -> dict[int, int]:
    """Bits of a value, by type; a text counts as one of 8."""
    known = {kind.value: kind.bitwidth for kind in ir.DataType if kind.name not in ("UNDEFINED", "STRING")}
    return {kind: bits for kind, bits in known.items() if bits % 8 == 0 or bits in _PER_ENTRY} | {
        onnx.TensorProto.STRING: 8
    }


_KNOWN = _bits()


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the model, of its subgraphs and of its functions."""
    yield from _below(proto.graph.node)
    for function in proto.functions:
        yield from _below(function.node)


def _below(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in _subgraphs(node):
            yield from _below(graph.node)


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every subgraph."""
    yield proto.graph
    for node in _nodes(proto):
        yield from _subgraphs(node)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g
