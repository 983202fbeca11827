"""Express int8 activations in standard ONNX."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from zq2onnx.opset import GROUP_KEY
from zq2onnx.passes.add_low_rank import quantized_weight
from zq2onnx.passes.planned import QuantizedWeight, activation_scale_part
from zq2onnx.passes.rewrite import Group
from zq2onnx.passes.trace_weights import all_nodes, is_standard
from zq2onnx.scheme import ActGranularity, Activation

STEPS = 127.0
"""Symmetric int8: the greatest magnitude's code."""


class InsertActivationQdqPass(ir.passes.InPlacePass):
    """Replaces `MatMul(A, W)` with `MatMul(DequantizeLinear(QuantizeLinear(A, s), s), W)`.

    W is a planned weight whose scheme has int8 activations. `s` is a planned scalar (tensor), or computed
    from A: `max|A| / 127` of a token, or of its channels that meet a stored block. It is computed and
    applied in float32, for float16 has no numbers for the scales of small activations. The low-rank branch
    goes on reading A. Runs after `AddLowRankPass`; needs opset 21.

    Each group has nodes and, beside a static scale, a zero point of its own: ONNX Runtime merges what several
    groups compute of one A, but makes no integer product of a QuantizeLinear that two of them share.

    What ONNX Runtime 1.32.0 fuses is kept apart by a Max of one input, which hands on what it is given
    (Identity, Expand and a Cast to the same type are optimized away, a Reshape fails at load):

    - Before the MatMul. Beside a dequantized A, ONNX Runtime takes any DequantizeLinear of W for one that it
      has an integer product for, and fails at run on 8-bit blocks, or dequantizes W on every run.
    - Where it has one, for 8 bits, one scale a row and a static scale, after the MatMul instead. ONNX Runtime
      makes a Gemm of product and bias first, and fails at load on that, or dequantizes W on every run.

    In float16 and bfloat16 the Cast back from float32 serves as well.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(all_nodes(model)):
            weight = quantized_weight(node.inputs[1]) if is_standard(node, "MatMul") else None
            if weight is None or weight.scheme.activation is not Activation.A8 or _is_rounded(node):
                continue
            _rewrite(Group(node, model), node, weight)
            modified = True
        return ir.passes.PassResult(model, modified)


def _rewrite(group: Group, node: ir.Node, weight: QuantizedWeight) -> None:
    activation, dequantized = node.inputs
    assert activation is not None
    rounded = _Rounding(group, weight).of(activation)
    if not _has_integer_product(weight):
        node.replace_input_with(0, rounded)
        return
    product = group.node("MatMul", [rounded, dequantized])
    product.name = f"{group.name}/integer_product"
    group.finish(group.node("Max", [product], suffix="product_apart"))


def _has_integer_product(weight: QuantizedWeight) -> bool:
    """Whether ONNX Runtime's CPU can multiply int8 activations with the codes as they are."""
    scheme = weight.scheme
    return (
        scheme.static_activations
        and scheme.bits == 8
        and not weight.blocked
        and weight.view.dtype is ir.DataType.FLOAT
    )


def _is_rounded(node: ir.Node) -> bool:
    """Whether a group's own DequantizeLinear made what its MatMul multiplies."""
    value, group = node.inputs[0], node.metadata_props.get(GROUP_KEY)
    while value is not None and (producer := value.producer()) is not None:
        if producer.metadata_props.get(GROUP_KEY) != group:
            return False
        if is_standard(producer, "DequantizeLinear"):
            return True
        value = producer.inputs[0]
    return False


@dataclass(frozen=True)
class _Rounding:
    """Makes the nodes that round one activation."""

    group: Group
    weight: QuantizedWeight

    def of(self, activation: ir.Value) -> ir.Value:
        """The rounded activation, in its own type."""
        dtype, float32 = self.weight.view.dtype, ir.DataType.FLOAT
        wide = activation if dtype is float32 else self._node("Cast", "A_wide", activation, to=float32.value)
        rounded = self._static(wide) if self.weight.scheme.static_activations else self._dynamic(wide)
        if dtype is not float32:
            return self._node("Cast", "A_narrow", rounded, to=dtype.value)
        return rounded if _has_integer_product(self.weight) else self._node("Max", "A_apart", rounded)

    def _static(self, wide: ir.Value) -> ir.Value:
        scale = self.group.constant(activation_scale_part(self.weight))
        zero = self._constant(f"{self.group.name}/A_zero_point", np.int8(0))
        codes = self._node("QuantizeLinear", "A_codes", wide, scale, zero)
        return self._node("DequantizeLinear", "A_dequantized", codes, scale, zero)

    def _dynamic(self, wide: ir.Value) -> ir.Value:
        size = self.weight.view.k
        if self.weight.scheme.act_granularity is ActGranularity.BLOCK:
            size = min(self.weight.layout.block_size, size)
        greatest = self._greatest(wide, size)
        step = self._node("Div", "A_step", greatest, self._constant("zq2onnx/int8_steps", np.float32(STEPS)))
        # 0 / 0 is no number: tokens of zeros have the least normal scale.
        least = self._constant("zq2onnx/least_scale", np.finfo(np.float32).tiny)
        scale = self._node("Max", "A_scale", step, least)
        how = {"axis": -1, "block_size": size}
        int8 = ir.DataType.INT8.value
        codes = self._node("QuantizeLinear", "A_codes", wide, scale, output_dtype=int8, **how)
        return self._node("DequantizeLinear", "A_dequantized", codes, scale, **how)

    def _greatest(self, wide: ir.Value, size: int) -> ir.Value:
        """`max|A|` of every `size` channels: `[.., ceil(K / size)]`."""
        k = self.weight.view.k
        last = self._constant("zq2onnx/last_axis", np.array([-1]))
        if size == k:
            return self._node("ReduceMax", "A_max", self._node("Abs", "A_abs", wide), last, keepdims=1)
        blocks = -(-k // size)
        if blocks * size != k:
            missing = blocks * size - k
            pads = self._constant(f"zq2onnx/pad_{missing}", np.array([0, missing]))
            wide = self._node("Pad", "A_padded", wide, pads, None, last)
        shape = self._node("Shape", "A_leading", wide, start=0, end=-1)
        cut = self._constant(f"zq2onnx/blocks_{blocks}_{size}", np.array([blocks, size]))
        shape = self._node("Concat", "A_shape", shape, cut, axis=0)
        apart = self._node("Reshape", "A_blocks", wide, shape)
        return self._node("ReduceMax", "A_max", self._node("Abs", "A_abs", apart), last, keepdims=0)

    def _node(self, op_type: str, suffix: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        return self.group.node(op_type, inputs, attributes, suffix=suffix)

    def _constant(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        return self.group.constant(ir.tensor(np.asarray(array), name=name))
