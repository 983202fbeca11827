"""Makes a model of its own of one piece's nodes, with weights that may be replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from zq2onnx.calibration.linears import Linear
from zq2onnx.passes.partition import Piece
from zq2onnx.passes.trace_weights import GRAPH_TYPES
from zq2onnx.storage.mapped import tensor_bytes

LARGE_BYTES = 1_000_000
"""Float constants from this size on are fed at each run: no copy of them lives in a session."""

_FED_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class InputType:
    """What is known of an input: its element type, and its rank or None."""

    dtype: ir.DataType
    rank: int | None


class PieceGraph:
    """Those nodes of a piece that some of its values need.

    Each linear reads its weight from an input of its own, so that a weight shared with an embedding
    does not change there. Large constants are inputs too.

    Args:
        model: the model that the piece is cut from.
        piece: the piece.
        outputs: values made in it.
        linears: those of the model, by node name.
    """

    def __init__(
        self, model: ir.Model, piece: Piece, outputs: Sequence[ir.Value], linears: Mapping[str, Linear]
    ) -> None:
        self._model = model
        self.outputs = [value.name or "" for value in outputs]
        self._nodes = _needed_nodes(piece, outputs, linears)
        found = [_linear(node, linears) for node in self._nodes]
        self.linears = {_weight_input(linear.node): linear for linear in found if linear is not None}
        """By the name of the input that their weight is fed to."""
        reads = dict.fromkeys(value for node in self._nodes for value in _reads(node, linears))
        self.inputs = [value for value in piece.inputs if value in reads]
        """Those inputs of the piece that the nodes read."""
        constants = [value for value in reads if _is_constant(value, model) and value not in piece.inputs]
        self.large = {
            value.name or "": value.const_value
            for value in constants
            if value.const_value is not None and _is_large(value.const_value)
        }
        """The large constants, by name."""
        self._small = [value for value in constants if (value.name or "") not in self.large]

    def to_proto(self, types: Mapping[str, InputType]) -> onnx.ModelProto:
        """The model, without any large weight.

        Args:
            types: of `inputs`, by name.
        """
        graph = onnx.GraphProto(name="piece")
        for node in self._nodes:
            proto = ir.serde.serialize_node(node)
            if _weight_input(node) in self.linears:
                proto.input[1] = _weight_input(node)
            graph.node.append(proto)
        fed = {name: InputType(ir.DataType.FLOAT, len(of.operand)) for name, of in self.linears.items()}
        fed |= {name: InputType(of.dtype, len(of.shape)) for name, of in self.large.items()}
        fed |= {value.name or "": types[value.name or ""] for value in self.inputs}
        graph.input.extend(_declare(name, type_) for name, type_ in fed.items())
        graph.initializer.extend(map(_embedded, self._small))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.outputs)
        model = onnx.ModelProto(graph=graph, ir_version=self._model.ir_version)
        for domain, version in self._model.opset_imports.items():
            model.opset_import.add(domain=domain, version=version)
        model.functions.extend(map(ir.serde.serialize_function, self._model.functions.values()))
        return model


def _needed_nodes(piece: Piece, outputs: Sequence[ir.Value], linears: Mapping[str, Linear]) -> list[ir.Node]:
    """The nodes that `outputs` descend from, in graph order."""
    makers = {value: node for node in piece.nodes for value in node.outputs}
    needed: set[ir.Node] = set()
    open_ = list(outputs)
    while open_:
        node = makers.get(open_.pop())
        if node is not None and node not in needed:
            needed.add(node)
            open_ += _reads(node, linears)
    return [node for node in piece.nodes if node in needed]


def _reads(node: ir.Node, linears: Mapping[str, Linear]) -> Iterator[ir.Value]:
    """What a node reads and what its subgraphs do; a linear's weight is not counted."""
    weight = None if _linear(node, linears) is None else 1
    yield from (value for at, value in enumerate(node.inputs) if value is not None and at != weight)
    for attribute in node.attributes.values():
        if attribute.type in GRAPH_TYPES and not attribute.is_ref():
            graphs = attribute.as_graphs() if attribute.type is ir.AttributeType.GRAPHS else [attribute.value]
            for graph in graphs:
                for inner in graph:
                    yield from _reads(inner, {})
                yield from graph.outputs


def _linear(node: ir.Node, linears: Mapping[str, Linear]) -> Linear | None:
    linear = linears.get(node.name or "")
    return linear if linear is not None and linear.node is node else None


def _weight_input(node: ir.Node) -> str:
    return f"weight of {node.name}"


def _is_constant(value: ir.Value, model: ir.Model) -> bool:
    return model.graph.initializers.get(value.name or "") is value and value.const_value is not None


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.nbytes >= LARGE_BYTES and tensor.dtype in _FED_TYPES


def _declare(name: str, type_: InputType) -> onnx.ValueInfoProto:
    shape = None if type_.rank is None else [None] * type_.rank
    return onnx.helper.make_tensor_value_info(name, type_.dtype.value, shape)


def _embedded(value: ir.Value) -> onnx.TensorProto:
    """An initializer with its bytes inside."""
    tensor = value.const_value
    assert tensor is not None
    if isinstance(tensor, ir.ExternalTensor):
        proto = onnx.TensorProto(data_type=tensor.dtype.value, dims=tensor.shape.numpy())
        proto.raw_data = bytes(tensor_bytes(tensor))
    else:
        proto = ir.serde.serialize_tensor(tensor)
    proto.name = value.name or ""
    return proto
