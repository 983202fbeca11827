"""Follow a MatMul's operand back to the constant it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from zq2onnx.passes.planned import WeightView

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
STEP_OPS = ("Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")


def is_standard(node: ir.Node, *op_types: str) -> bool:
    """Whether the node is one of these operators of the ONNX domain."""
    return node.domain in ("", "ai.onnx") and node.op_type in op_types


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or a Constant node; None for anything computed or fed."""
    if value is None:
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is not None and is_standard(node, "Constant"):
        attribute = node.attributes.get("value")
        return None if attribute is None else attribute.as_tensor()
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


def _static_shape(value: ir.Value) -> tuple[int, ...] | None:
    if value.shape is None or not value.shape.is_static():
        return None
    return tuple(int(dim) for dim in value.shape.numpy())


def _reshaped(node: ir.Node, axes: _Axes) -> tuple[int, ...] | None:
    """The shape that a Reshape, Squeeze, Unsqueeze or Flatten gives, from its constants."""
    total = math.prod(axes.sizes)
    if node.op_type == "Flatten":
        cut = node.attributes.get_int("axis", 1)
        return math.prod(axes.sizes[:cut]), math.prod(axes.sizes[cut:])
    second = constant_tensor(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.op_type == "Reshape" and second is not None:
        wanted = [int(size) for size in second.numpy().reshape(-1)]
        if node.attributes.get_int("allowzero", 0) == 0:
            wanted = [axes.sizes[i] if size == 0 else size for i, size in enumerate(wanted)]
        rest = math.prod(size for size in wanted if size != -1)
        return tuple(total // rest if size == -1 and rest else size for size in wanted)
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
                return f"its weight is cast to {dtype.name}"
        elif node.op_type == "Transpose":
            axes = axes.transpose(_permutation(node, len(axes.sizes)))
        elif node.op_type != "Identity":
            shape = _reshaped(node, axes)
            reshaped = None if shape is None else axes.reshape(shape)
            if reshaped is None:
                return f"its weight passes through a {node.op_type} that regroups its elements"
            axes = reshaped
    return axes, dtype


def trace_weight(value: ir.Value | None) -> WeightView | str:
    """The constant matrix behind a value, or the reason why there is none.

    Follows Transpose, Cast, Reshape, Squeeze, Unsqueeze, Flatten and Identity back to an
    initializer or a Constant node. Leading dimensions must be 1. No weight is read.
    """
    chain: list[ir.Node] = []
    while value is not None and constant_tensor(value) is None:
        node = value.producer()
        if node is None:
            return "both operands are activations"
        if is_standard(node, "DequantizeLinear"):
            return "already quantized (DequantizeLinear)"
        if not is_standard(node, *STEP_OPS):
            return "both operands are activations"
        chain.append(node)
        value = node.inputs[0]
    tensor = constant_tensor(value)
    if value is None or tensor is None:
        return "its weight is missing"
    if tensor.dtype not in FLOAT_TYPES:
        return f"its weight is {tensor.dtype.name}, not a float type"
    forwarded = _forward(chain[::-1], tensor)
    if isinstance(forwarded, str):
        return forwarded
    axes, dtype = forwarded
    if len(axes.sizes) < 2:
        return "its weight is a vector"
    if 0 in axes.sizes:
        return "its weight is empty"
    if any(size != 1 for size in axes.sizes[:-2]):
        return f"its weight has {len(axes.sizes)} dimensions: {list(axes.sizes)} (a stack of matrices)"
    row, column = axes.labels[-2:]
    transposed = row is not None and column is not None and row > column
    name = value.name or tensor.name or "weight"
    return WeightView(tensor, name, axes.sizes[-2], axes.sizes[-1], transposed, 1.0, dtype)
