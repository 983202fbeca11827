"""Finds what the passes wrote in a saved model, and cuts one rewritten node out of it.

A *group* is the nodes that replace one original node: a single `ai.zq2onnx` node in portable
form, a handful of standard nodes in qdq form. All carry `GROUP_KEY`. Nothing but the constants of
the group asked for is ever read from the model's external data.
"""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from zq2onnx.errors import CheckFailed
from zq2onnx.opset import DOMAIN, GROUP_KEY, OPERATORS, Operator
from zq2onnx.verify.walk import subgraphs

_EMBEDDINGS = {"Gather", "GatherBlockQuantized"}
_QUANTIZED = _EMBEDDINGS | {"DequantizeLinear"}
_READERS = {"MatMul", "Transpose", "QuantizeLinear", "Abs", "Cast", "Pad", "Shape"}
"""The first that a group does with its activation."""

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Group:
    """The nodes that replace one original node.

    Attributes:
        name: the original node's name.
        nodes: in the graph's order.
        constants: the initializers that they read, by name; external ones are not loaded.
        activation: the one value that they read besides.
        output: the one value that they hand on.
        computed_bias: whether an Add of another computed value follows, which is left out.
    """

    name: str
    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, TensorProto]
    activation: str
    output: str
    computed_bias: bool = False

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for groups that differ in names and numbers alone: operators, attributes, shapes, types."""
        return tuple(
            (
                node.domain,
                node.op_type,
                tuple(sorted(item.SerializeToString(deterministic=True) for item in node.attribute)),
                tuple(self._describe(name) for name in node.input),
            )
            for node in self.nodes
        )

    def _describe(self, name: str) -> object:
        tensor = self.constants.get(name)
        return bool(name) if tensor is None else (tensor.data_type, *tensor.dims)

    @property
    def element_type(self) -> int:
        """`TensorProto` type of the activations."""
        return _element_type(self.constants)

    @property
    def is_portable(self) -> bool:
        """Whether it is a node of our domain."""
        return any(node.domain == DOMAIN for node in self.nodes)

    @property
    def operator(self) -> Operator | None:
        """Which of our domain it is; None of standard nodes, or of one we do not know."""
        return next((OPERATORS.get(node.op_type) for node in self.nodes if node.domain == DOMAIN), None)

    @property
    def may_multiply_int8(self) -> bool:
        """Whether ONNX Runtime may multiply int8 activations for it.

        An operator whose tokens have a scale each rounds them itself, and then multiplies floats; standard
        nodes that round their activation may run as any product that computes the same.
        """
        operator = self.operator
        if operator is not None:
            return operator.int8_product
        return any(node.op_type == "QuantizeLinear" for node in self.nodes)

    @property
    def activation_scale(self) -> str | None:
        """Name of the constant scale of its int8 activations."""
        scales = (node.input[1] for node in self.nodes if node.op_type == "QuantizeLinear")
        return next((name for name in scales if name in self.constants), None)

    @property
    def is_embedding(self) -> bool:
        """Whether its activation is indices into a table."""
        return any(node.op_type in _EMBEDDINGS for node in self.nodes)

    @property
    def weight_shape(self) -> tuple[int, int]:
        """`[K, N]` of a product, `[rows, width]` of a table as stored."""
        for node in self.nodes:
            if node.domain == DOMAIN:
                sizes = {item.name: item.i for item in node.attribute}
                return sizes["K"], sizes["N"]
            if node.op_type in _QUANTIZED and node.input[0] in self.constants:
                rows, width = self.constants[node.input[0]].dims
                return rows, width
        raise CheckFailed(f"node {self.name!r}: its group holds no quantized weight")


def find_groups(model: onnx.ModelProto) -> dict[str, Group]:
    """Every group of a model by the original node's name, subgraphs included.

    Raises:
        CheckFailed: a group has no activation, or not exactly one output.
    """
    return dict(_graph_groups(model.graph, ChainMap()))


def _graph_groups(graph: onnx.GraphProto, outer: ChainMap[str, TensorProto]) -> Iterator[tuple[str, Group]]:
    constants = outer.new_child({tensor.name: tensor for tensor in graph.initializer})
    members: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
        for subgraph in subgraphs(node):
            yield from _graph_groups(subgraph, constants)
        for item in node.metadata_props:
            if item.key == GROUP_KEY:
                members[item.value].append(node)
    for name, nodes in members.items():
        yield name, _group(name, nodes, constants)


def _group(name: str, nodes: list[onnx.NodeProto], constants: Mapping[str, TensorProto]) -> Group:
    made = {value for node in nodes for value in node.output}
    own_values = made.union(constants)
    activation = next(filter(None, (_activation(node, own_values) for node in nodes)), None)
    known = {activation, ""}
    kept = []
    for node in nodes:
        if node.op_type != "Constant" and all(value in known or value in constants for value in node.input):
            known |= set(node.output)
            kept.append(node)
    read = {value for node in kept for value in node.input if value}
    outputs = sorted({value for node in kept for value in node.output if value} - read)
    if activation is None or len(outputs) != 1:
        raise CheckFailed(
            f"node {name!r}: its group reads {activation!r} and writes {outputs}, not one value"
        )
    own = {value: constants[value] for value in sorted(read) if value in constants}
    return Group(name, tuple(kept), own, activation, outputs[0], len(kept) < len(nodes))


def _activation(node: onnx.NodeProto, own: set[str]) -> str | None:
    """The value that a node multiplies, rounds or looks up and that is not among the group's own."""
    if node.op_type in _EMBEDDINGS:
        return node.input[1]
    is_reader = node.domain == DOMAIN or node.op_type in _READERS
    return node.input[0] if is_reader and node.input[0] not in own else None


def _element_type(constants: Mapping[str, TensorProto]) -> int:
    """The one float type, or the narrower of two: activations are rounded in float32."""
    types = {tensor.data_type for tensor in constants.values() if tensor.data_type in _FLOATS}
    return next(iter(types - {TensorProto.FLOAT}), TensorProto.FLOAT)


def load_constants(group: Group, folder: Path, *, widen_bfloat16: bool) -> dict[str, TensorProto]:
    """Read a group's constants, and these alone.

    Args:
        folder: where the model's external data lies.
        widen_bfloat16: make them float32, for a provider without bfloat16.
    """
    loaded = {}
    for name, source in group.constants.items():
        tensor = TensorProto()
        tensor.CopyFrom(source)
        tensor.name = name  # a Constant node's tensor has none
        if external_data_helper.uses_external_data(tensor):
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
        if widen_bfloat16 and tensor.data_type == TensorProto.BFLOAT16:
            tensor = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), name)
        loaded[name] = tensor
    return loaded


def group_model(
    group: Group, constants: Mapping[str, TensorProto], model: onnx.ModelProto, activation: np.ndarray
) -> onnx.ModelProto:
    """A model that holds one group alone.

    Args:
        constants: what `load_constants` read; their float type decides the model's.
        model: the whole model, for its opsets and functions.
        activation: what it will be fed, for the type and rank of the input.
    """
    element = _element_type(constants)
    nodes = [_with_element_type(node, element) for node in group.nodes]
    graph = helper.make_graph(
        nodes,
        "one_node",
        [
            helper.make_tensor_value_info(
                group.activation,
                helper.np_dtype_to_tensor_dtype(activation.dtype),
                [None] * activation.ndim,
            )
        ],
        [helper.make_tensor_value_info(group.output, element, None)],
        list(constants.values()),
    )
    used = {(node.domain, node.op_type) for node in nodes}
    functions = [item for item in model.functions if (item.domain, item.name) in used]
    return helper.make_model(
        graph, ir_version=model.ir_version, opset_imports=list(model.opset_import), functions=functions
    )


def _with_element_type(node: onnx.NodeProto, element: int) -> onnx.NodeProto:
    """The node with a Cast to bfloat16 turned to the type that its group's constants now have."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if copy.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
            attribute.i = element
    return copy
