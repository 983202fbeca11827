"""What a group computes, in NumPy: the operator's oracle, or the standard nodes one by one.

Weights are dequantized by ourselves here, in float32 as ONNX defines it, and multiplied in float64
a slice at a time, so that the memory needed stays near that of the float32 weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
_TYPICAL_CODE = 40.0
_RESULTS = 64
"""A single result may cancel out; the greatest of this many does not."""


@dataclass(frozen=True)
class Expected:
    """What a group must answer.

    Attributes:
        values: float64.
        slack: how far off each may be by activations that lie between two int8 steps, as
            `reference.matmul_with_slack` says.
    """

    values: Array
    slack: Array


def random_activation(
    group: Group, rng: np.random.Generator, constants: Mapping[str, TensorProto] | None = None
) -> Array:
    """Something to feed a group: random rows in its float type, or ids of its table.

    bfloat16 groups get float32, which is what they are checked in. Activations of one scale for good are of
    the size that this scale is for: all others would be the same to it.
    """
    if group.is_embedding:
        return rng.integers(0, group.weight_shape[0], (1, 8), np.int64)
    dtype = np.float16 if group.element_type == TensorProto.FLOAT16 else np.float32
    k, n = group.weight_shape
    rows = rng.standard_normal((max(_ROWS, -(-_RESULTS // n)), k)).astype(dtype)
    if constants is not None and group.activation_scale is not None:
        scale = float(numpy_helper.to_array(constants[group.activation_scale]).astype(np.float64))
        rows = (rows.astype(np.float64) * scale * _TYPICAL_CODE).astype(dtype)
    transposed = any(node.op_type == "Transpose" and group.activation in node.input for node in group.nodes)
    return np.ascontiguousarray(rows.T) if transposed else rows


def expected_output(
    group: Group, constants: Mapping[str, TensorProto], activation: Array, *, rounded: bool = True
) -> Expected:
    """What the group must answer.

    Args:
        rounded: whether an operator of our domain rounds its activations as it says.

    Raises:
        CheckFailed: the group holds an operator that no pass writes.
    """
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in constants.items()}
    arrays[group.activation] = activation
    slacks: dict[str, Array] = {}
    for node in group.nodes:
        inputs = [arrays.get(name) for name in node.input]
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if node.domain == DOMAIN:
            result, slacks[node.output[0]] = _operator(node, inputs, attributes, rounded)
        elif node.op_type in _STANDARD:
            result = _STANDARD[node.op_type](inputs, attributes)
            slack = _slack(node.op_type, inputs, attributes, [slacks.get(name) for name in node.input])
            if slack is not None:
                slacks[node.output[0]] = slack
        else:
            raise CheckFailed(f"node {group.name!r}: unexpected operator {node.op_type} in its group")
        arrays[node.output[0]] = result
    values = arrays[group.output].astype(np.float64)
    return Expected(values, slacks.get(group.output, np.zeros(())) + np.zeros_like(values))


def _slices(k: int, n: int) -> Iterator[slice]:
    step = max(1, _SLICE_WEIGHTS // max(k, 1))
    return (slice(start, start + step) for start in range(0, n, step))


def _operator(
    node: onnx.NodeProto, inputs: list[Any], attributes: Mapping[str, Any], rounded: bool
) -> tuple[Array, Array]:
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
        parts.append(reference.matmul_with_slack(operator, mine, part, rounded=rounded))
    values, slacks = zip(*parts, strict=True)
    return np.concatenate(values, axis=-1), np.concatenate(slacks, axis=-1)


def _rows(values: Array, operator: Operator, rows: slice) -> Array:
    """Some rows; of both half bytes where there are."""
    if not operator.half_bytes:
        return values[rows]
    low, high = np.split(values, 2)
    return np.concatenate([low[rows], high[rows]])


def _each(values: Array, codes: Array, attributes: Mapping[str, Any]) -> Array:
    """Scales or zero points, float32, in a shape that fits the codes they are for."""
    axis, block = attributes.get("axis", 1) % max(codes.ndim, 1), attributes.get("block_size", 0)
    if values.ndim == 0:
        return values.astype(np.float32)
    if block:
        wide = np.repeat(values, block, axis).take(range(codes.shape[axis]), axis)
    else:
        wide = values.reshape([-1 if at == axis else 1 for at in range(codes.ndim)])
    return wide.astype(np.float32)


def _dequantize(inputs: list[Any], attributes: Mapping[str, Any]) -> Array:
    codes, scales, zeros = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    numbers = codes.astype(np.float32)
    differences = numbers if zeros is None else numbers - _each(zeros, codes, attributes)
    return differences * _each(scales, codes, attributes)


def _quotients(inputs: list[Any], attributes: Mapping[str, Any]) -> Array:
    return inputs[0].astype(np.float64) / _each(inputs[1], inputs[0], attributes).astype(np.float64)


def _quantize(inputs: list[Any], attributes: Mapping[str, Any]) -> Array:
    """int8 without a zero point, as the passes write it."""
    return np.clip(np.rint(_quotients(inputs, attributes)), -128, 127).astype(np.int8)


def _slack(
    op_type: str, inputs: list[Any], attributes: Mapping[str, Any], slacks: list[Array | None]
) -> Array | None:
    """What is undecided of a result: codes near the middle of two steps, and what is made of them."""
    if op_type == "QuantizeLinear":
        quotients = _quotients(inputs, attributes)
        middle = np.abs(np.abs(quotients - np.trunc(quotients)) - 0.5) < reference.NEAR_TIE
        return np.where(middle & (np.abs(quotients) < 128), 1.0, 0.0)
    undecided = next((slack for slack in slacks if slack is not None), None)
    if undecided is None:
        return None
    match op_type:
        case "DequantizeLinear":
            return undecided * _each(inputs[1], inputs[0], attributes)
        case "MatMul":
            return _product([undecided, np.abs(inputs[1])], attributes)
        case "Cast" | "Max" | "Add":
            return undecided
        case _:
            raise CheckFailed(f"unexpected operator {op_type} after the rounding of activations")


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


def _pad(inputs: list[Any], _: Mapping[str, Any]) -> Array:
    """Zeros at the ends of the last axis."""
    before, after = (int(count) for count in inputs[1])
    return np.pad(inputs[0], [(0, 0)] * (inputs[0].ndim - 1) + [(before, after)])


_STANDARD: dict[str, Callable[[list[Any], Mapping[str, Any]], Array]] = {
    "DequantizeLinear": _dequantize,
    "Gather": lambda inputs, attributes: inputs[0].take(inputs[1], attributes.get("axis", 0)),
    "GatherBlockQuantized": _gather_block_quantized,
    "MatMul": _product,
    "Cast": lambda inputs, _: inputs[0].astype(np.float64),
    "Mul": lambda inputs, _: inputs[0].astype(np.float64) * inputs[1].astype(np.float64),
    "Transpose": lambda inputs, attributes: inputs[0].transpose(attributes["perm"]),
    "Add": lambda inputs, _: inputs[0].astype(np.float64) + inputs[1].astype(np.float64),
    # the rounding of activations
    "QuantizeLinear": _quantize,
    "Abs": lambda inputs, _: np.abs(inputs[0]),
    "ReduceMax": lambda inputs, attributes: inputs[0].max(-1, keepdims=bool(attributes["keepdims"])),
    "Div": lambda inputs, _: inputs[0].astype(np.float64) / inputs[1].astype(np.float64),
    "Max": lambda inputs, _: functools.reduce(np.maximum, inputs),
    "Pad": _pad,
    "Shape": lambda inputs, attributes: np.array(inputs[0].shape[: attributes["end"]]),
    "Reshape": lambda inputs, _: inputs[0].reshape(inputs[1]),
    # two 4-bit codes of a table in a byte
    "BitwiseAnd": lambda inputs, _: inputs[0] & inputs[1],
    "BitShift": lambda inputs, _: inputs[0] >> inputs[1],
    "Concat": lambda inputs, attributes: np.concatenate(inputs, attributes["axis"]),
    "Slice": lambda inputs, _: inputs[0][..., int(inputs[1][0]) : int(inputs[2][0])],
}
