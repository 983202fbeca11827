"""Quantize one weight by what calibration saw of its layer."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zq2onnx.numerics.compensate import compensate
from zq2onnx.numerics.energy import frobenius_energy
from zq2onnx.numerics.feedback import DAMPING, Feedback, feedback
from zq2onnx.numerics.gptq import quantize_gptq
from zq2onnx.numerics.grid import Float32Array, Quantized, dequantize
from zq2onnx.numerics.lowrank import Factors, low_rank
from zq2onnx.numerics.moments import Moments
from zq2onnx.numerics.output_error import output_loss, row_losses
from zq2onnx.numerics.rtn import round_to_nearest
from zq2onnx.numerics.smooth import smoothed_moments
from zq2onnx.scheme import ActGranularity, Activation, Clip, Compensation, Method, Scheme

OUTPUT_DAMPING = 0.05
"""Of the gradients' second moment: fewer tokens than directions stand behind it."""

INT8_LIMIT = 127


@dataclass(frozen=True, eq=False)
class Evidence:
    """What calibration knows of one linear layer.

    Attributes:
        inputs: moments of its input.
        gradients: `G = E[g gᵀ]` of the gradient at its output, float32 `[N, N]`; None where not gathered.
        smoothing: `s [K]` by which its input was divided before; None where it was not (SmoothQuant).
        chosen: codes that were chosen already, together with other layers'.
    """

    inputs: Moments
    gradients: Float32Array | None = None
    smoothing: Float32Array | None = None
    chosen: Quantized | None = None


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A weight quantized by evidence.

    Attributes:
        quantized, factors, dropped: as `QuantizedWeight` has them.
        weight_energy, error_energy, residual_energy: `‖W‖_F²`, `‖W - Ŵ‖_F²`, `‖W - Ŵ - UV‖_F²`.
        output_error, output_error_without_lorc: `(tr(E R Eᵀ) / tr(W R Wᵀ))^½` of what is stored.
        activation_scale: the one scale of its int8 activations, where the scheme has one.
        note: why another method than the scheme's was used; "" where it was not.
    """

    quantized: Quantized
    factors: Factors | None
    dropped: str
    weight_energy: float
    error_energy: float
    residual_energy: float
    output_error: float
    output_error_without_lorc: float
    activation_scale: float | None
    note: str


def quantize_calibrated(
    weight: npt.NDArray[np.generic],
    scheme: Scheme,
    float_dtype: npt.DTypeLike,
    evidence: Evidence,
    seed: int = 0,
) -> Calibrated:
    """Choose codes and branch for the least output error on calibration data.

    Args:
        weight: `[N, K]` of any float type and strides, finite.
        scheme: everything that decides the bytes.
        float_dtype: the activations' type, in which scales and float factors are stored.
        evidence: of this layer.
        seed: of the low-rank method's random start.
    """
    target = np.array(weight, np.float32, order="C")
    if evidence.smoothing is not None:
        target *= evidence.smoothing
        inputs = smoothed_moments(evidence.inputs, evidence.smoothing)
        evidence = dataclasses.replace(evidence, inputs=inputs, smoothing=None)
    return _Layer(target, scheme, float_dtype, evidence, seed).quantize()


class _Layer:
    """One layer's weight and evidence, and the factors of its moments."""

    def __init__(
        self,
        target: Float32Array,
        scheme: Scheme,
        dtype: npt.DTypeLike,
        evidence: Evidence,
        seed: int,
    ) -> None:
        self.target = target
        self.scheme = scheme
        self.dtype = dtype
        self.evidence = evidence
        self.seed = seed
        self.second = evidence.inputs.second
        self.inputs = feedback(self.second)
        gradients = evidence.gradients
        self.outputs = None if gradients is None else feedback(gradients, OUTPUT_DAMPING)
        self.note = ""

    def quantize(self) -> Calibrated:
        """Codes, branch, and what they leave."""
        quantized = self._codes(self.target)
        error = self._residue(quantized)
        factors, dropped = self._branch(error)
        for _ in range(1, self.scheme.lorc_rounds if factors is not None else 1):
            assert factors is not None
            again = self._codes(self.target - _matrix(factors))
            other = self._residue(again)
            refitted = self._fit(other, self.inputs)
            if self._loss(other - _matrix(refitted)) >= self._loss(error - _matrix(factors)):
                break
            quantized, error, factors = again, other, refitted
        residue = error if factors is None else error - _matrix(factors)
        return Calibrated(
            quantized,
            factors,
            dropped,
            frobenius_energy(self.target),
            frobenius_energy(error),
            frobenius_energy(residue),
            self._relative(residue),
            self._relative(error),
            self._activation_scale(),
            self.note,
        )

    def _codes(self, target: Float32Array) -> Quantized:
        if self.evidence.chosen is not None:
            return self.evidence.chosen
        rounded = round_to_nearest(target, self._scheme_of_ranges(), self.dtype).quantized
        match self.scheme.method:
            case Method.GPTQ:
                return self._gptq(target, rounded)
            case Method.ZQ_LOCAL:
                from zq2onnx.numerics.distill import zq_local  # needs torch

                return zq_local(target, self.second, self.scheme, self.dtype, start=rounded)
        return rounded

    def _scheme_of_ranges(self) -> Scheme:
        """For rounding to nearest, which knows no output error to choose a range by."""
        clip = Clip.NONE if self.scheme.clip is Clip.AUTO else self.scheme.clip
        return dataclasses.replace(self.scheme, clip=clip)

    def _gptq(self, target: Float32Array, rounded: Quantized) -> Quantized:
        """GPTQ's codes; a row that rounding to nearest serves better keeps that."""
        if self.inputs is None:
            self.note = "rounded to nearest: the second moment of its input cannot be factored"
            return rounded
        if self.inputs.damping > DAMPING:
            self.note = f"damping of {self.inputs.damping:g}: its input's second moment is nearly singular"
        ranges = rounded if self.scheme.clip is Clip.MSE else None
        fed = quantize_gptq(target, self.scheme, self.dtype, self.inputs, self.outputs, ranges)
        if self.outputs is not None:
            return fed
        granularity = self.scheme.granularity
        before, after = (
            row_losses(target - dequantize(codes, granularity), self.second) for codes in (rounded, fed)
        )
        worse = after > before
        for old, new in (
            (rounded.codes, fed.codes),
            (rounded.scales, fed.scales),
            (rounded.zero_points, fed.zero_points),
        ):
            new[worse] = old[worse]
        return fed

    def _residue(self, quantized: Quantized) -> Float32Array:
        values = dequantize(quantized, self.scheme.granularity)
        residue: Float32Array = np.subtract(self.target, values, out=values)
        return residue

    def _branch(self, error: Float32Array) -> tuple[Factors | None, str]:
        """The factors, or why there are none: judged by samples that did not make them."""
        if self.scheme.lorc_rank == 0 or error.size == 0:
            return None, ""
        if not error.any():
            return None, f"the {self.scheme.bits}-bit codes hold the weight exactly"
        held_out = self.evidence.inputs.held_out
        factors = self._fit(error, self.inputs)
        trial = factors
        if held_out is not None and self.scheme.lorc is Compensation.EXACT:
            trial = self._fit(error, feedback(self.evidence.inputs.fitted))
        judge = self.second if held_out is None else held_out
        before, after = (
            output_loss(part, judge, self.evidence.gradients) for part in (error, error - _matrix(trial))
        )
        if after < before:
            return factors, ""
        whole = output_loss(self.target, judge, self.evidence.gradients)
        with_out, with_in = (math.sqrt(part / whole) if whole > 0 else 0.0 for part in (before, after))
        found = f"{with_out:.4g} without, {with_in:.4g} with"
        return None, f"a branch of rank {factors.rank} does not lower the output error: {found}"

    def _fit(self, error: Float32Array, inputs: Feedback | None) -> Factors:
        if self.scheme.lorc is Compensation.EXACT and inputs is not None:
            return compensate(error, self.scheme, self.dtype, inputs, self.outputs, self.seed)
        return low_rank(error, self.scheme.lorc_rank, self.scheme.lorc_dtype, self.dtype, self.seed)

    def _loss(self, error: Float32Array) -> float:
        return output_loss(error, self.second, self.evidence.gradients)

    def _relative(self, error: Float32Array) -> float:
        whole = output_loss(self.target, self.second)
        return math.sqrt(output_loss(error, self.second) / whole) if whole > 0 else 0.0

    def _activation_scale(self) -> float | None:
        static = self.scheme.act_granularity is ActGranularity.TENSOR
        if self.scheme.activation is not Activation.A8 or not static:
            return None
        return float(self.evidence.inputs.peak.max(initial=0.0)) / INT8_LIMIT


def _matrix(factors: Factors) -> Float32Array:
    """The branch as a weight, `[N, K]`."""
    u, v = factors.floats()
    return np.ascontiguousarray((u @ v).T)
