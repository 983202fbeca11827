"""Follow a MatMul's operand back to the constant it comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from zq2onnx.passes.planned import WeightView

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FLOAT_NAMES = ", ".join(dtype.name for dtype in FLOAT_TYPES)
BOTH_ACTIVATIONS = "both operands are activations"
COMPUTED_NODES = 32
"""What takes this many nodes to compute is taken for an activation."""
GRAPH_TYPES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
TENSOR_TYPES = (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS)
STEP_OPS = ("Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")


def is_standard(node: ir.Node, *op_types: str) -> bool:
    """Whether the node is one of these operators of the ONNX domain."""
    return node.domain in ("", "ai.onnx") and node.op_type in op_types


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the main graph and of its control-flow subgraphs."""
    return iter(ir.traversal.RecursiveGraphIterator(model.graph))


def tensor_attributes(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Attr]]:
    """Every attribute of a node that holds tensors, in subgraphs and functions too; no references."""
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in body.all_nodes():
            for attribute in list(node.attributes.values()):
                if attribute.type in TENSOR_TYPES and not attribute.is_ref():
                    yield node, attribute


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or a Constant node; None for anything computed or fed.

    An initializer that is a graph input too is a default that whoever runs the model may replace.
    """
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is not None and is_standard(node, "Constant"):
        return _attribute_tensor(node)
    return None


def _attribute_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node; None for strings and sparse tensors."""
    for name, attribute in node.attributes.items():
        match name:
            case "value":
                return attribute.as_tensor()
            case "value_int" | "value_ints":
                return ir.tensor(np.array(attribute.value, np.int64))
            case "value_float" | "value_floats":
                return ir.tensor(np.array(attribute.value, np.float32))
    return None


@dataclass(frozen=True)
class _Axes:
    """Which stored axis each dimension is; None for unit dimensions, whose order says nothing."""

    labels: tuple[int | None, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> _Axes:
        return cls(tuple(None if size == 1 else axis for axis, size in enumerate(shape)), shape)

    def transpose(self, permutation: tuple[int, ...]) -> _Axes:
        return _Axes(
            tuple(self.labels[axis] for axis in permutation), tuple(self.sizes[axis] for axis in permutation)
        )

    def reshape(self, shape: tuple[int, ...]) -> _Axes | None:
        """None where more than unit dimensions come or go."""
        kept = [size for size in self.sizes if size != 1]
        if [size for size in shape if size != 1] != kept:
            return None
        labels = iter(label for label in self.labels if label is not None)
        return _Axes(tuple(None if size == 1 else next(labels) for size in shape), shape)


@dataclass(frozen=True)
class TracedConstant:
    """A constant, and what the nodes between it and its reader make of its axes and type.

    Attributes:
        tensor: as it is stored.
        name: of the initializer or of the Constant node's output.
        shape: as its reader sees it.
        labels: the stored axis that each dimension is; None for unit dimensions.
        dtype: as its reader sees it.
    """

    tensor: ir.TensorProtocol
    name: str
    shape: tuple[int, ...]
    labels: tuple[int | None, ...]
    dtype: ir.DataType


def _static_shape(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(dim) for dim in value.shape.numpy())


def _integers(value: ir.Value | None) -> list[int] | None:
    tensor = constant_tensor(value)
    return None if tensor is None else [int(number) for number in tensor.numpy().reshape(-1)]


def _axes_of(node: ir.Node) -> list[int] | None:
    """The axes of a Squeeze or Unsqueeze: an attribute until opset 12, an input since."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return list(attribute.as_ints())
    return _integers(node.inputs[1]) if len(node.inputs) > 1 else None


def _reshaped(node: ir.Node, sizes: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that a Reshape, Squeeze, Unsqueeze or Flatten gives; None where it is not known."""
    second = node.inputs[1] if len(node.inputs) > 1 else None
    match node.op_type:
        case "Flatten":
            cut = node.attributes.get_int("axis", 1)
            return math.prod(sizes[:cut]), math.prod(sizes[cut:])
        case "Reshape" if (wanted := _integers(second)) is not None:
            if node.attributes.get_int("allowzero", 0) == 0:
                wanted = [sizes[i] if size == 0 and i < len(sizes) else size for i, size in enumerate(wanted)]
            rest = math.prod(size for size in wanted if size != -1)
            return tuple(math.prod(sizes) // rest if size == -1 and rest else size for size in wanted)
        case "Squeeze" if (axes := _axes_of(node)) is not None:
            gone = {axis % len(sizes) for axis in axes}
            return tuple(size for axis, size in enumerate(sizes) if axis not in gone)
        case "Squeeze" if len(node.inputs) < 2:
            return tuple(size for size in sizes if size != 1)
        case "Unsqueeze" if (axes := _axes_of(node)) is not None:
            rank = len(sizes) + len(axes)
            new = {axis % rank for axis in axes}
            kept = iter(sizes)
            return tuple(1 if axis in new else next(kept) for axis in range(rank))
    return _static_shape(node.outputs[0])


def _permutation(node: ir.Node, rank: int) -> tuple[int, ...]:
    attribute = node.attributes.get("perm")
    return tuple(reversed(range(rank))) if attribute is None else tuple(attribute.as_ints())


def _forward(chain: list[ir.Node], tensor: ir.TensorProtocol) -> tuple[_Axes, ir.DataType] | str:
    """Apply the nodes between the constant and its reader to the constant's axes and type."""
    axes = _Axes.of(tuple(int(dim) for dim in tensor.shape.numpy()))
    dtype = tensor.dtype
    for node in chain:
        if node.op_type == "Cast":
            dtype = ir.DataType(node.attributes["to"].as_int())
            if dtype not in FLOAT_TYPES:
                return f"its weight is cast to {dtype.name}, which is not one of {_FLOAT_NAMES}"
        elif node.op_type == "Transpose":
            axes = axes.transpose(_permutation(node, len(axes.sizes)))
        elif node.op_type != "Identity":
            shape = _reshaped(node, axes.sizes)
            if shape is None:
                return f"its weight passes through a {node.op_type} whose shape is not known"
            reshaped = axes.reshape(shape)
            if reshaped is None:
                return f"its weight passes through a {node.op_type} that regroups its elements"
            axes = reshaped
    return axes, dtype


def _is_computed(node: ir.Node) -> bool:
    """Whether a node's result depends on constants alone, as far as `COMPUTED_NODES` nodes tell."""
    found = [node]
    for maker in found:  # grows meanwhile
        if any(attribute.type in GRAPH_TYPES for attribute in maker.attributes.values()):
            return False  # a subgraph reads what its node does not list
        for value in maker.inputs:
            if value is None or constant_tensor(value) is not None:
                continue
            producer = value.producer()
            if producer is None or len(found) == COMPUTED_NODES:
                return False
            if producer not in found:
                found.append(producer)
    return True


def trace_constant(value: ir.Value | None) -> TracedConstant | str:
    """The float constant behind a value, or the reason why there is none.

    Follows Transpose, Cast, Reshape, Squeeze, Unsqueeze, Flatten and Identity back to an
    initializer or a Constant node. No number of it is read.
    """
    chain: list[ir.Node] = []
    while value is not None and constant_tensor(value) is None:
        node = value.producer()
        if node is None:
            return BOTH_ACTIVATIONS
        if is_standard(node, "DequantizeLinear"):
            return "already quantized (DequantizeLinear)"
        if not is_standard(node, *STEP_OPS):
            return f"its weight is computed by a {node.op_type}" if _is_computed(node) else BOTH_ACTIVATIONS
        chain.append(node)
        value = node.inputs[0]
    tensor = constant_tensor(value)
    if value is None or tensor is None:
        return "its weight is missing"
    if tensor.dtype not in FLOAT_TYPES:
        return f"its weight is {tensor.dtype.name}, not one of {_FLOAT_NAMES}"
    forwarded = _forward(chain[::-1], tensor)
    if isinstance(forwarded, str):
        return forwarded
    axes, dtype = forwarded
    return TracedConstant(tensor, value.name or tensor.name or "weight", axes.sizes, axes.labels, dtype)


def trace_weight(value: ir.Value | None) -> WeightView | str:
    """The constant matrix behind a value, or the reason why there is none.

    As `trace_constant`; the matrix is what the last two dimensions span, and those before must be 1.
    """
    found = trace_constant(value)
    if isinstance(found, str):
        return found
    if len(found.shape) < 2:
        return "its weight is a vector"
    if 0 in found.shape:
        return "its weight is empty"
    if any(size != 1 for size in found.shape[:-2]):
        return f"its weight has {len(found.shape)} dimensions: {list(found.shape)} (a stack of matrices)"
    k, n = found.shape[-2:]
    row, column = found.labels[-2:]
    transposed = row is not None and column is not None and row > column
    return WeightView(found.tensor, found.name, k, n, transposed, 1.0, found.dtype)
