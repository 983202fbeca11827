"""What a group computes, in NumPy: the operator's oracle, or the standard nodes one by one.

Weights are dequantized by ourselves here, in float32 as ONNX defines it, and multiplied in float64
a slice at a time, so that the memory needed stays near that of the float32 weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from zq2onnx.errors import CheckFailed
from zq2onnx.opset import DOMAIN, OPERATORS, Operator
from zq2onnx.runtime import reference
from zq2onnx.verify.groups import Group

Array = NDArray[Any]

_SLICE_WEIGHTS = 1 << 22
_ROWS = 3
_RESULTS = 64
"""A single result may cancel out; the greatest of this many does not."""


def random_activation(group: Group, rng: np.random.Generator) -> Array:
    """Something to feed a group: random rows in its float type, or ids of its table.

    bfloat16 groups get float32, which is what they are checked in.
    """
    if group.is_embedding:
        return rng.integers(0, group.weight_shape[0], (1, 8), np.int64)
    dtype = np.float16 if group.element_type == TensorProto.FLOAT16 else np.float32
    k, n = group.weight_shape
    rows = rng.standard_normal((max(_ROWS, -(-_RESULTS // n)), k)).astype(dtype)
    transposed = any(node.op_type == "Transpose" and group.activation in node.input for node in group.nodes)
    return np.ascontiguousarray(rows.T) if transposed else rows


def expected_output(group: Group, constants: Mapping[str, TensorProto], activation: Array) -> Array:
    """What the group must answer, in float64.

    Raises:
        CheckFailed: the group holds an operator that no pass writes.
    """
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in constants.items()}
    arrays[group.activation] = activation
    for node in group.nodes:
        inputs = [arrays.get(name) for name in node.input]
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if node.domain == DOMAIN:
            result = _operator(node, inputs, attributes)
        elif node.op_type in _STANDARD:
            result = _STANDARD[node.op_type](inputs, attributes)
        else:
            raise CheckFailed(f"node {group.name!r}: unexpected operator {node.op_type} in its group")
        arrays[node.output[0]] = result
    return arrays[group.output].astype(np.float64)


def _slices(k: int, n: int) -> Iterator[slice]:
    step = max(1, _SLICE_WEIGHTS // max(k, 1))
    return (slice(start, start + step) for start in range(0, n, step))


def _operator(node: onnx.NodeProto, inputs: list[Any], attributes: Mapping[str, Any]) -> Array:
    operator = OPERATORS[node.op_type]
    named = {name: value for name, value in zip(operator.inputs, inputs, strict=False) if value is not None}
    own = {name: attributes[name] for name in operator.attributes}
    parts = []
    for rows in _slices(own["K"], own["N"]):
        part = named | {name: _rows(named[name], operator, rows) for name in ("B", "zero_points")}
        part |= {name: named[name][rows] for name in ("scales", "bias") if name in named}
        part |= {name: named[name][:, rows] for name in ("V",) if name in named}
        sizes = {"N": len(part["scales"]), "stored_rows": len(part["B"])}
        mine = own | {name: size for name, size in sizes.items() if name in own}
        parts.append(reference.matmul(operator, mine, part))
    return np.concatenate(parts, axis=-1)


def _rows(values: Array, operator: Operator, rows: slice) -> Array:
    """Some rows; with 8 bits of both half bytes."""
    if operator.bits != 8:
        return values[rows]
    low, high = np.split(values, 2)
    return np.concatenate([low[rows], high[rows]])


def _dequantize(inputs: list[Any], attributes: Mapping[str, Any]) -> Array:
    codes, scales, zeros = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    axis, block = attributes.get("axis", 1) % max(codes.ndim, 1), attributes.get("block_size", 0)

    def each(values: Array) -> Array:
        if values.ndim == 0:
            return values.astype(np.float32)
        if block:
            wide = np.repeat(values, block, axis).take(range(codes.shape[axis]), axis)
        else:
            wide = values.reshape([-1 if at == axis else 1 for at in range(codes.ndim)])
        return wide.astype(np.float32)

    numbers = codes.astype(np.float32)
    return (numbers if zeros is None else numbers - each(zeros)) * each(scales)


def _gather_block_quantized(inputs: list[Any], attributes: Mapping[str, Any]) -> Array:
    data, ids, scales = inputs[:3]
    zeros = inputs[3] if len(inputs) > 3 else None
    if zeros is None and data.dtype == np.uint8:  # as the operator defines it; 4-bit types have zero
        zeros = np.full(scales.shape, 128, np.uint8)
    rows = [data[ids], scales[ids], None if zeros is None else zeros[ids]]
    return _dequantize(rows, {"axis": -1, "block_size": attributes["block_size"]})


def _product(inputs: list[Any], attributes: Mapping[str, Any]) -> Array:
    a, weight = inputs[0].astype(np.float64), inputs[1]
    parts = [a @ weight[:, part].astype(np.float64) for part in _slices(*weight.shape)]
    return np.concatenate(parts, axis=-1)


_STANDARD: dict[str, Callable[[list[Any], Mapping[str, Any]], Array]] = {
    "DequantizeLinear": _dequantize,
    "Gather": lambda inputs, attributes: inputs[0].take(inputs[1], attributes.get("axis", 0)),
    "GatherBlockQuantized": _gather_block_quantized,
    "MatMul": _product,
    "Cast": lambda inputs, _: inputs[0].astype(np.float64),
    "Mul": lambda inputs, _: inputs[0].astype(np.float64) * inputs[1].astype(np.float64),
    "Transpose": lambda inputs, attributes: inputs[0].transpose(attributes["perm"]),
    "Add": lambda inputs, _: inputs[0].astype(np.float64) + inputs[1].astype(np.float64),
    # two 4-bit codes of a table in a byte
    "BitwiseAnd": lambda inputs, _: inputs[0] & inputs[1],
    "BitShift": lambda inputs, _: inputs[0] >> inputs[1],
    "Concat": lambda inputs, attributes: np.concatenate(inputs, attributes["axis"]),
    "Slice": lambda inputs, _: inputs[0][..., int(inputs[1][0]) : int(inputs[2][0])],
}
