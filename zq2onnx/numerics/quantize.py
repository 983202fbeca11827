"""Everything a conversion wants to know of one weight: the call a worker makes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zq2onnx.layout import PackedLayout
from zq2onnx.numerics import packing
from zq2onnx.numerics.calibrated import Evidence, quantize_calibrated
from zq2onnx.numerics.grid import Float32Array, Quantized, UInt8Array, dequantize
from zq2onnx.numerics.lowrank import Factors, low_rank, residual_energy
from zq2onnx.numerics.rtn import Rounded, round_to_nearest
from zq2onnx.scheme import Granularity, Scheme


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight after quantization.

    Attributes:
        quantized: codes, scales and zero points.
        factors: the low-rank branch; None where the scheme has none, or where it was dropped.
        dropped: why the branch was dropped; "" where it was not.
        weight_error: `‖W - Ŵ - UV‖_F / ‖W‖_F` of what is stored.
        weight_error_without_lorc: `‖W - Ŵ‖_F / ‖W‖_F`.
        nonfinite: how many weights are NaN or infinite; where there are any, the rest is void.
        output_error, output_error_without_lorc: `(tr(E R Eᵀ) / tr(W R Wᵀ))^½` with and without the branch,
            `R` the second moment of the input; None without calibration.
        activation_scale: the one scale of its int8 activations; None where the scheme has none such.
        note: why another method than the scheme's was used; "" where it was not.
    """

    quantized: Quantized
    factors: Factors | None
    dropped: str
    weight_error: float
    weight_error_without_lorc: float
    nonfinite: int
    output_error: float | None = None
    output_error_without_lorc: float | None = None
    activation_scale: float | None = None
    note: str = ""

    def effective(self, granularity: Granularity) -> Float32Array:
        """What the layer multiplies with, `Ŵ + (UV)ᵀ`, float32 `[N, K]`."""
        values = dequantize(self.quantized, granularity)
        if self.factors is not None:
            u, v = self.factors.floats()
            values += (u @ v).T
        return values

    def packed_codes(self, layout: PackedLayout) -> UInt8Array:
        """The codes as the operator reads them, uint8 `layout.codes_shape`."""
        return packing.pack_codes(self.quantized.codes, layout)

    def packed_zero_points(self, layout: PackedLayout) -> UInt8Array:
        """The zero points as the operator reads them, uint8 `layout.zero_points_shape`."""
        return packing.pack_zero_points(self.quantized.zero_points, layout)


def quantize_weight(
    weight: npt.NDArray[np.generic],
    scheme: Scheme,
    float_dtype: npt.DTypeLike,
    seed: int = 0,
    evidence: Evidence | None = None,
) -> QuantizedWeight:
    """Quantize one weight and, if the scheme says so, compensate for the rounding error.

    Without evidence the weight is read once; beside what it returns it holds the error, float32 `[N, K]`,
    while the branch is computed. The result is the same to the bit whatever else runs, as long as BLAS has
    one thread.

    Args:
        weight: `[N, K]`, float32, float16 or bfloat16, of any strides: often a view of a mapped file.
        scheme: everything that decides the bytes.
        float_dtype: the activations' type, in which scales and float factors are stored.
        seed: of the low-rank method's random start.
        evidence: what calibration saw of the layer; None rounds to nearest, whatever the scheme's method.
    """
    if evidence is not None:
        return _by_evidence(weight, scheme, float_dtype, seed, evidence)
    rounded = round_to_nearest(weight, scheme, float_dtype, keep_error=scheme.lorc_rank > 0)
    if rounded.nonfinite:
        return QuantizedWeight(rounded.quantized, None, "", math.nan, math.nan, rounded.nonfinite)
    plain = _relative(rounded.error_energy, rounded.weight_energy)
    factors, dropped, residual = _compensate(rounded, scheme, float_dtype, seed)
    return QuantizedWeight(
        rounded.quantized, factors, dropped, _relative(residual, rounded.weight_energy), plain, 0
    )


def _by_evidence(
    weight: npt.NDArray[np.generic], scheme: Scheme, float_dtype: npt.DTypeLike, seed: int, evidence: Evidence
) -> QuantizedWeight:
    nonfinite = weight.size - int(np.count_nonzero(np.isfinite(weight)))
    if nonfinite:
        void = Quantized(*(np.empty((0, 0), kind) for kind in (np.uint8, np.float32, np.uint8)))
        return QuantizedWeight(void, None, "", math.nan, math.nan, nonfinite)
    made = quantize_calibrated(weight, scheme, float_dtype, evidence, seed)
    return QuantizedWeight(
        made.quantized,
        made.factors,
        made.dropped,
        _relative(made.residual_energy, made.weight_energy),
        _relative(made.error_energy, made.weight_energy),
        0,
        made.output_error,
        made.output_error_without_lorc,
        made.activation_scale,
        made.note,
    )


def _compensate(
    rounded: Rounded, scheme: Scheme, float_dtype: npt.DTypeLike, seed: int
) -> tuple[Factors | None, str, float]:
    """The factors or None, why they were dropped, and the squared error that is left."""
    energy = rounded.error_energy
    if rounded.error is None or rounded.error.size == 0:
        return None, "", energy
    if energy == 0:
        return None, f"the {scheme.bits}-bit codes hold the weight exactly", energy
    factors = low_rank(rounded.error, scheme.lorc_rank, scheme.lorc_dtype, float_dtype, seed, energy)
    residual = residual_energy(rounded.error, factors, energy)
    if residual < energy:
        return factors, "", residual
    before, after = (_relative(part, rounded.weight_energy) for part in (energy, residual))
    found = f"{before:.4g} without, {after:.4g} with"
    return None, f"a branch of rank {factors.rank} does not lower the weight error: {found}", energy


def _relative(energy: float, whole: float) -> float:
    return math.sqrt(energy / whole) if whole > 0 else 0.0
