"""The part of a graph that computes one layer's output from its input and from constants alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from zq2onnx.opset import DOMAIN, MICROSOFT
from zq2onnx.passes.trace_weights import GRAPH_TYPES, is_standard

FED = "x"
"""The input of the model that `Site.to_proto` makes."""

_LARGEST_SITE = 64
"""More nodes than this between a layer's input and output are more than one layer."""

_ROUNDED = ("DequantizeLinear", "MatMulInteger", "QLinearMatMul")


@dataclass(frozen=True, eq=False)
class Site:
    """One layer in one model.

    Attributes:
        input: the activation it reads; of an embedding the ids.
        output: what it makes.
        nodes: all that `output` is computed by from `input` and constants, in an order that runs.
    """

    input: ir.Value
    output: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def operator(self) -> str:
        """What multiplies or looks up: an operator's name, with `QDQ` before it where its weight is codes."""
        for node in self.nodes:
            if node.domain in (DOMAIN, MICROSOFT):
                return node.op_type
        names = [node.op_type for node in self.nodes]
        product = next((name for name in names if name in ("MatMul", "Gemm", "Gather")), None)
        if product is None:
            return next((name for name in names if name in _ROUNDED), names[-1])
        return f"QDQ {product}" if "DequantizeLinear" in names else product

    @property
    def quantized(self) -> bool:
        """Whether its weight is stored as codes."""
        return any(node.domain in (DOMAIN, MICROSOFT) or is_standard(node, *_ROUNDED) for node in self.nodes)

    def to_proto(self, model: ir.Model, dtype: ir.DataType, rank: int) -> onnx.ModelProto:
        """A model of this layer alone, external data left outside.

        Args:
            model: what it is part of, for opsets and functions.
            dtype: of the input, which is called `FED`.
            rank: of the input.
        """
        graph = onnx.GraphProto(name="layer")
        constants: dict[str, ir.TensorProtocol] = {}
        for node in self.nodes:
            proto = ir.serde.serialize_node(node)
            for index, value in enumerate(node.inputs):
                if value is self.input:
                    proto.input[index] = FED
                elif value is not None and value.is_initializer() and value.const_value is not None:
                    constants[value.name or ""] = value.const_value
            graph.node.append(proto)
        for name, tensor in constants.items():
            initializer = ir.serde.serialize_tensor(tensor)
            initializer.name = name
            graph.initializer.append(initializer)
        graph.input.append(onnx.helper.make_tensor_value_info(FED, dtype.value, [None] * rank))
        graph.output.append(onnx.ValueInfoProto(name=self.output.name or ""))
        proto_model = onnx.ModelProto(graph=graph, ir_version=model.ir_version)
        for domain, version in model.opset_imports.items():
            proto_model.opset_import.add(domain=domain, version=version)
        proto_model.functions.extend(map(ir.serde.serialize_function, model.functions.values()))
        return proto_model


def find_site(output: ir.Value, inputs: Mapping[str, ir.Value], name: str) -> Site | str:
    """Find what lies between a layer's input and output.

    Args:
        output: what the layer makes.
        inputs: the values of the same graph, by name.
        name: of the value that the layer reads.

    Returns:
        The site, or why there is none that could run by itself.
    """
    if name not in inputs:
        return f"its input {name} has no counterpart"
    start = inputs[name]
    nodes: dict[ir.Node, None] = {}
    reached = False
    open_: list[ir.Value] = [output]
    while open_:
        value = open_.pop()
        if value is start:
            reached = True
            continue
        node = value.producer()
        if node is None:
            if not value.is_initializer() or value.is_graph_input():
                return f"it reads {value.name} beside its input"
            continue
        if any(attribute.type in GRAPH_TYPES for attribute in node.attributes.values()):
            return f"it is computed by a {node.op_type}"
        if node not in nodes:
            nodes[node] = None
            if len(nodes) > _LARGEST_SITE:
                return f"it is not computed from {name} alone"
            open_ += [read for read in node.inputs if read is not None]
    if not reached:
        return f"it is not computed from {name}"
    return Site(start, output, _in_order(nodes))


def _in_order(nodes: Mapping[ir.Node, None]) -> tuple[ir.Node, ...]:
    """Makers before readers."""
    done: dict[ir.Node, None] = {}

    def visit(node: ir.Node) -> None:
        if node not in done:
            for value in node.inputs:
                maker = None if value is None else value.producer()
                if maker in nodes and maker is not None:
                    visit(maker)
            done[node] = None

    for node in nodes:
        visit(node)
    return tuple(done)
