"""ONNX operators over torch: arithmetic, reductions, normalization and products.

One function per operator, `(node, inputs) -> output or outputs`; an input that is left out is None.
Whatever float type the model names, values are float32. Semantics are those of opset 13 and later.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir
import torch
from torch.nn import functional

Tensor: TypeAlias = torch.Tensor
Inputs: TypeAlias = Sequence[Tensor | None]
Outputs: TypeAlias = Tensor | tuple[Tensor, ...]
Operator: TypeAlias = Callable[[ir.Node, Inputs], Outputs]

_INTEGERS = {
    ir.DataType.BOOL: torch.bool,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
}


def torch_dtype(dtype: ir.DataType) -> torch.dtype:
    """The type in which values of an ONNX type are computed.

    >>> torch_dtype(ir.DataType.FLOAT16), torch_dtype(ir.DataType.BOOL)
    (torch.float32, torch.bool)

    Raises:
        ValueError: a type that transformer blocks do not compute with.
    """
    if dtype.is_floating_point():
        return torch.float32
    if dtype not in _INTEGERS:
        raise ValueError(f"no torch type for {dtype.name}")
    return _INTEGERS[dtype]


def need(value: Tensor | None) -> Tensor:
    """An input that the operator cannot do without."""
    if value is None:
        raise ValueError("a required input is missing")
    return value


def as_ints(value: Tensor | None) -> list[int] | None:
    """A tensor of integers as a list; None stays None."""
    return None if value is None else [int(number) for number in value.reshape(-1).tolist()]


def given_axes(node: ir.Node, inputs: Inputs) -> list[int] | None:
    """The axes of an operator that had them as an attribute and, later, as its second input."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    return as_ints(inputs[1]) if len(inputs) > 1 else None


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda node, inputs: function(need(inputs[0]))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda node, inputs: function(need(inputs[0]), need(inputs[1]))


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda node, inputs: functools.reduce(function, map(need, inputs))


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _mod(node: ir.Node, inputs: Inputs) -> Tensor:
    a, b = need(inputs[0]), need(inputs[1])
    return torch.fmod(a, b) if node.attributes.get_int("fmod", 0) else torch.remainder(a, b)


def _gelu(node: ir.Node, inputs: Inputs) -> Tensor:
    return functional.gelu(need(inputs[0]), approximate=node.attributes.get_string("approximate", "none"))


def _swish(node: ir.Node, inputs: Inputs) -> Tensor:
    x = need(inputs[0])
    return x * torch.sigmoid(node.attributes.get_float("alpha", 1.0) * x)


def _clip(node: ir.Node, inputs: Inputs) -> Tensor:
    low, high = (*inputs[1:], None, None)[:2]
    x = need(inputs[0])
    # The upper bound wins where the two cross.
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _cast(node: ir.Node, inputs: Inputs) -> Tensor:
    return need(inputs[0]).to(torch_dtype(ir.DataType(node.attributes["to"].as_int())))


def _softmax(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.softmax(need(inputs[0]), node.attributes.get_int("axis", -1))


def _where(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.where(need(inputs[0]), need(inputs[1]), need(inputs[2]))


def _cumulative_sum(node: ir.Node, inputs: Inputs) -> Tensor:
    x, axis = need(inputs[0]), int(need(inputs[1]))
    reverse = node.attributes.get_int("reverse", 0)
    x = x.flip(axis) if reverse else x
    total = torch.cumsum(x, axis, dtype=x.dtype)
    if node.attributes.get_int("exclusive", 0):
        total = total - x
    return total.flip(axis) if reverse else total


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def apply(node: ir.Node, inputs: Inputs) -> Tensor:
        x, axes = need(inputs[0]), given_axes(node, inputs)
        if not axes:
            if node.attributes.get_int("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, axes, bool(node.attributes.get_int("keepdims", 1)))

    return apply


def _normalized_axes(node: ir.Node, x: Tensor) -> list[int]:
    axis = node.attributes.get_int("axis", -1)
    return list(range(axis % x.ndim, x.ndim))


def _layer_normalization(node: ir.Node, inputs: Inputs) -> Outputs:
    x, scale, bias = need(inputs[0]), need(inputs[1]), (*inputs, None)[2]
    axes = _normalized_axes(node, x)
    mean = x.mean(axes, keepdim=True)
    variance = (x - mean).square().mean(axes, keepdim=True)
    inverse = torch.rsqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


def _rms_normalization(node: ir.Node, inputs: Inputs) -> Outputs:
    x, scale = need(inputs[0]), need(inputs[1])
    square = x.square().mean(_normalized_axes(node, x), keepdim=True)
    inverse = torch.rsqrt(square + node.attributes.get_float("epsilon", 1e-5))
    return x * inverse * scale, inverse


def _gemm(node: ir.Node, inputs: Inputs) -> Tensor:
    a, b = need(inputs[0]), need(inputs[1])
    b = b.T if node.attributes.get_int("transB", 0) else b
    return gemm_bias(node, gemm_left(node, a) @ b * node.attributes.get_float("alpha", 1.0), inputs)


def gemm_left(node: ir.Node, a: Tensor) -> Tensor:
    """The left operand of a Gemm as it is multiplied."""
    return a.T if node.attributes.get_int("transA", 0) else a


def gemm_bias(node: ir.Node, product: Tensor, inputs: Inputs) -> Tensor:
    """A Gemm's scaled product with its bias."""
    bias = (*inputs, None)[2]
    return product if bias is None else product + node.attributes.get_float("beta", 1.0) * bias


ARITHMETIC: dict[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Cos": _unary(torch.cos),
    "CumSum": _cumulative_sum,
    "Div": _binary(_divide),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "IsNaN": _unary(torch.isnan),
    "LayerNormalization": _layer_normalization,
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "MatMul": _binary(torch.matmul),
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    "Mod": _mod,
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "Pow": _binary(_power),
    "RMSNormalization": _rms_normalization,
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
    "Relu": _unary(torch.relu),
    "Round": _unary(torch.round),
    "Sigmoid": _unary(torch.sigmoid),
    "SimplifiedLayerNormalization": _rms_normalization,
    "Sin": _unary(torch.sin),
    "Softmax": _softmax,
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Swish": _swish,
    "Tanh": _unary(torch.tanh),
    "Where": _where,
}
