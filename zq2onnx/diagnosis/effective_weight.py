"""Reads off a layer, whatever its operators, the matrix that it multiplies with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from zq2onnx.diagnosis.running import Alone, Array
from zq2onnx.diagnosis.site import Site
from zq2onnx.errors import UserError
from zq2onnx.passes.trace_weights import constant_tensor, is_standard

_ROWS = 512
"""Rows of the identity matrix that are run at a time."""

_ROUND_OUTPUT = ("QLinearMatMul", "QGemm")

_CODE = 64
"""A code far from both ends of int8."""


@dataclass(frozen=True)
class StaticRange:
    """What a constant scale lets through of a layer's input.

    Attributes:
        step: the scale.
        least: the smallest number that has a code.
        greatest: the largest.
    """

    step: float
    least: float
    greatest: float


@dataclass(frozen=True, eq=False)
class EffectiveWeight:
    """`y = x @ matrix + bias`.

    Attributes:
        matrix: float32 `[K, N]`.
        bias: float32 `[N]`.
    """

    matrix: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


def static_range(site: Site) -> StaticRange | None:
    """The range of the layer's int8 activations, where one constant scale serves all of them."""
    for node in site.nodes:
        if is_standard(node, "QuantizeLinear") and _reads(node, site):
            scale = constant_tensor(node.inputs[1])
            step = float(scale.numpy().reshape(-1)[0]) if scale is not None and scale.size == 1 else 0.0
            if step > 0:
                return _range(node, step)
    return None


def _range(node: ir.Node, step: float) -> StaticRange:
    zero = constant_tensor(node.inputs[2]) if len(node.inputs) > 2 else None
    dtype = np.dtype(np.uint8) if zero is None else zero.dtype.numpy()
    middle = 0 if zero is None else int(zero.numpy().reshape(-1)[0])
    # 4-bit types are unknown to np.iinfo, and nobody has activations of them.
    limits = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.iinfo(np.int8)
    return StaticRange(step, (int(limits.min) - middle) * step, (int(limits.max) - middle) * step)


def effective_weight(alone: Alone, site: Site, k: int, like: Array) -> EffectiveWeight | None:
    """Run the identity matrix through a layer.

    int8 activations are no obstacle: a row with a single number in it has a code at that number, and where
    the scale is constant the number is chosen so.

    Args:
        alone: the layer.
        site: the same.
        k: channels of its input.
        like: an input of it, for its type and rank.

    Returns:
        None where the layer does not take rows one by one, or rounds more than its input.
    """
    limits = static_range(site)
    if _hides_weight(site, limits):
        return None
    height = _height(limits)
    lead = (1,) * (like.ndim - 2)
    try:
        zero = alone.run(np.zeros((*lead, 1, k), like.dtype)).astype(np.float32).reshape(-1)
        rows = []
        for start in range(0, k, _ROWS):
            eye = np.eye(min(_ROWS, k - start), k, start, dtype=np.float32) * np.float32(height)
            result = alone.run(eye.astype(like.dtype).reshape(*lead, *eye.shape))
            rows.append(result.astype(np.float32).reshape(len(eye), -1))
    except UserError:
        return None
    if any(part.shape[1] != zero.size for part in rows):
        return None
    matrix = (np.concatenate(rows) - zero) / np.float32(height)
    return EffectiveWeight(matrix, zero)


def _hides_weight(site: Site, limits: StaticRange | None) -> bool:
    """Whether more is rounded, by a constant scale, than what comes in."""
    for node in site.nodes:
        if node.op_type in _ROUND_OUTPUT:
            return True
        constant = is_standard(node, "QuantizeLinear") and constant_tensor(node.inputs[1]) is not None
        if constant and constant_tensor(node.inputs[0]) is None and not (limits and _reads(node, site)):
            return True
    return False


def _reads(node: ir.Node, site: Site) -> bool:
    """Whether a node reads the layer's input, but for casts."""
    value = node.inputs[0]
    while value is not site.input and value is not None:
        maker = value.producer()
        if maker is None or not is_standard(maker, "Cast"):
            return False
        value = maker.inputs[0]
    return value is site.input


def _height(limits: StaticRange | None) -> float:
    """The number to feed: one, or what has a code."""
    if limits is None:
        return 1.0
    above, below = round(limits.greatest / limits.step), round(-limits.least / limits.step)
    code = min(_CODE, above) if above > 0 else -min(_CODE, below)
    return code * limits.step
