"""What a worker does with one weight: map it, quantize it, lay its parts out as bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from zq2onnx.conversion.stored import stored_array
from zq2onnx.errors import UserError
from zq2onnx.numerics import packing
from zq2onnx.numerics.calibrated import Evidence
from zq2onnx.numerics.quantize import QuantizedWeight as Numbers
from zq2onnx.numerics.quantize import quantize_weight
from zq2onnx.passes.planned import Form, Part, PlannedTensor, QuantizedWeight

NARROW_BITS = {
    ir.DataType.UINT4: 4,
    ir.DataType.INT4: 4,
    ir.DataType.UINT2: 2,
    ir.DataType.INT2: 2,
}
SIGNED = (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.INT2)


@dataclass(frozen=True)
class Facts:
    """What a conversion remembers of a weight.

    Attributes:
        weight_error, weight_error_without_lorc: relative Frobenius norms, as the report has them.
        dropped: why the low-rank branch was left out; "" where it was not.
        output_error, output_error_without_lorc: relative too, of the layer's output on calibration data;
            None without.
        note: why another method than the scheme's was used; "" where it was not.
    """

    weight_error: float
    weight_error_without_lorc: float
    dropped: str = ""
    output_error: float | None = None
    output_error_without_lorc: float | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Computed:
    """A quantized weight.

    Attributes:
        contents: the bytes of its parts, in their order; of a dropped branch empty.
        facts: what is remembered of it.
        numbers: what they were made of.
    """

    contents: list[memoryview]
    facts: Facts
    numbers: Numbers


def compute_weight(
    weight: QuantizedWeight, parts: list[PlannedTensor], node: str, evidence: Evidence | None = None
) -> Computed:
    """Quantize the weight of a node and render `parts`.

    Raises:
        UserError: the weight holds NaN or infinity.
    """
    numbers = quantize_weight(
        float_matrix(weight), weight.scheme, weight.view.dtype.numpy(), evidence=evidence
    )
    if numbers.nonfinite:
        raise not_finite(weight, node, numbers.nonfinite)
    facts = Facts(
        numbers.weight_error,
        numbers.weight_error_without_lorc,
        numbers.dropped,
        numbers.output_error,
        numbers.output_error_without_lorc,
        numbers.note,
    )
    return Computed([_as_bytes(_render(numbers, part)) for part in parts], facts, numbers)


def not_finite(weight: QuantizedWeight, node: str, count: int) -> UserError:
    """What is said of a weight with so many numbers that are none."""
    return UserError(
        f"node {node!r}: {count} of the {weight.view.k * weight.view.n} numbers of its weight"
        f" {weight.view.name!r} are NaN or infinite",
        "finite weights",
        f"mend the model, or leave the node float: --exclude '^{re.escape(node)}$'",
    )


def float_matrix(weight: QuantizedWeight) -> np.ndarray:
    """The float weight as `[N, K]`, in the values that the input's node reads.

    A weight that the conversion has in another float type is taken as it is stored, unrounded.
    """
    view = weight.view
    stored = stored_array(view.tensor)
    matrix = stored.reshape(view.n, view.k) if view.transposed else stored.reshape(view.k, view.n).T
    if view.dtype != view.tensor.dtype and view.dtype is not ir.DataType.FLOAT:
        matrix = matrix.astype(view.dtype.numpy())
    return matrix if view.scale == 1.0 else matrix.astype(np.float32) * np.float32(view.scale)


def _render(numbers: Numbers, part: PlannedTensor) -> np.ndarray:
    match part.part:
        case Part.U | Part.V | Part.U_SCALES | Part.V_SCALES:
            return _factor(numbers, part)
        case Part.CODES | Part.ZERO_POINTS:
            return _integers(numbers, part)
        case Part.ACT_SCALE:
            return _activation_scale(numbers, part)
        case Part.SCALES:
            scales = numbers.quantized.scales
            if part.form is Form.QDQ:
                return scales.T if part.weight.blocked else scales[:, 0]
            return scales


def _activation_scale(numbers: Numbers, part: PlannedTensor) -> np.ndarray:
    """The static scale; never 0, for activations that calibration saw as zeros may come to life."""
    if numbers.activation_scale is None:
        raise ValueError(f"no scale was calibrated for the activations of {part.weight.name}")
    return np.asarray(max(numbers.activation_scale, float(np.finfo(np.float32).tiny)), np.float32)


def _factor(numbers: Numbers, part: PlannedTensor) -> np.ndarray:
    if numbers.factors is None:
        return np.empty(0, np.uint8)
    factors = {
        Part.U: numbers.factors.u,
        Part.V: numbers.factors.v,
        Part.U_SCALES: numbers.factors.u_scales,
        Part.V_SCALES: numbers.factors.v_scales,
    }
    return factors[part.part]


def _integers(numbers: Numbers, part: PlannedTensor) -> np.ndarray:
    codes = part.part is Part.CODES
    if part.form is Form.PORTABLE:
        layout = part.weight.layout
        return numbers.packed_codes(layout) if codes else numbers.packed_zero_points(layout)
    values = numbers.quantized.codes if codes else numbers.quantized.zero_points
    bits = NARROW_BITS.get(part.dtype, 8)
    if part.form is Form.NIBBLES:
        return _halves(values) if codes else values
    if part.form is Form.QDQ and codes:
        midpoint = part.weight.scheme.midpoint if part.dtype in SIGNED else 0
        return np.frombuffer(packing.qdq_codes(values, bits, midpoint), np.uint8)
    if part.form is Form.QDQ:
        values = values.T if part.weight.blocked else values[:, 0]
    return values if bits == 8 else packing.pack_bits(values, bits)


def _halves(values: np.ndarray) -> np.ndarray:
    """Two 4-bit codes a byte: the row's first half low, its second half high."""
    columns = -(-values.shape[1] // 2)
    packed = np.ascontiguousarray(values[:, :columns])
    packed[:, : values.shape[1] - columns] |= values[:, columns:] << 4
    return packed


def _as_bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
