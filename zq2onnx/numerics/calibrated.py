"""Quantize one weight by what calibration saw of its layer."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zq2onnx.numerics.compensate import compensate
from zq2onnx.numerics.energy import frobenius_energy
from zq2onnx.numerics.feedback import DAMPING, OUTPUT_DAMPING, Feedback, feedback
from zq2onnx.numerics.gptq import quantize_gptq
from zq2onnx.numerics.grid import Float32Array, Quantized, dequantize
from zq2onnx.numerics.lowrank import Factors, low_rank, residual_energy
from zq2onnx.numerics.moments import Moments
from zq2onnx.numerics.output_error import branch_gain, output_loss, row_losses
from zq2onnx.numerics.rtn import round_to_nearest
from zq2onnx.numerics.smooth import smoothed_moments
from zq2onnx.scheme import Clip, Compensation, Method, Scheme

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


@dataclass(frozen=True, eq=False)
class _Choice:
    """Codes of a target.

    Attributes:
        quantized: the codes.
        error: target less what the codes stand for, float32 `[N, K]`.
        losses: `e R eᵀ` of each row of the error, where they are known.
    """

    quantized: Quantized
    error: Float32Array
    losses: npt.NDArray[np.float64] | None = None


class _Layer:
    """One layer's weight, and what calibration knows of it."""

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
        self.moments = evidence.inputs
        self.gradients = evidence.gradients
        self.chosen = evidence.chosen
        self.seed = seed
        self.second = evidence.inputs.second
        self.note = ""

    @functools.cached_property
    def inputs(self) -> Feedback | None:
        """The inputs' moment factored."""
        return feedback(self.second)

    @functools.cached_property
    def outputs(self) -> Feedback | None:
        """The gradients' moment factored."""
        return None if self.gradients is None else feedback(self.gradients, OUTPUT_DAMPING)

    def quantize(self) -> Calibrated:
        """Codes, branch, and what they leave."""
        choice = self._choose(self.target)
        factors, dropped = self._branch(choice.error)
        if factors is not None and self.chosen is None:
            choice, factors = self._alternate(choice, factors)
        losses = row_losses(choice.error, self.second) if choice.losses is None else choice.losses
        loss, energy = math.fsum(losses), frobenius_energy(choice.error)
        left, residue = loss, energy
        if factors is not None:
            left = max(0.0, loss - branch_gain(choice.error, *factors.floats(), self.second))
            residue = residual_energy(choice.error, factors, energy)
        whole = output_loss(self.target, self.second)
        return Calibrated(
            choice.quantized,
            factors,
            dropped,
            frobenius_energy(self.target),
            energy,
            residue,
            _relative(left, whole),
            _relative(loss, whole),
            self._activation_scale(),
            self.note,
        )

    def _choose(self, target: Float32Array) -> _Choice:
        """The method's codes of a target."""
        if self.chosen is not None:
            return self._measured(target, self.chosen)
        rounded = round_to_nearest(target, self._scheme_of_ranges(), self.dtype).quantized
        match self.scheme.method:
            case Method.GPTQ:
                return self._gptq(target, self._measured(target, rounded))
            case Method.ZQ_LOCAL:
                from zq2onnx.numerics.distill import zq_local  # needs torch

                rounded = zq_local(target, self.second, self.scheme, self.dtype, start=rounded)
        return self._measured(target, rounded)

    def _measured(self, target: Float32Array, quantized: Quantized) -> _Choice:
        values = dequantize(quantized, self.scheme.granularity)
        return _Choice(quantized, np.subtract(target, values, out=values))

    def _scheme_of_ranges(self) -> Scheme:
        """For rounding to nearest, which knows no output error to choose a range by."""
        clip = Clip.NONE if self.scheme.clip is Clip.AUTO else self.scheme.clip
        return dataclasses.replace(self.scheme, clip=clip)

    def _gptq(self, target: Float32Array, rounded: _Choice) -> _Choice:
        """GPTQ's codes, where they are better than those of rounding to nearest."""
        if self.inputs is None:
            self.note = "rounded to nearest: the second moment of its input cannot be factored"
            return rounded
        if self.inputs.damping > DAMPING:
            self.note = f"damping of {self.inputs.damping:g}: its input's second moment is nearly singular"
        ranges = rounded.quantized if self.scheme.clip is Clip.MSE else None
        codes = quantize_gptq(target, self.scheme, self.dtype, self.inputs, self.outputs, ranges)
        fed = self._measured(target, codes)
        if self.outputs is not None:
            return fed if self._loss(fed.error) <= self._loss(rounded.error) else rounded
        return _better_rows(fed, rounded, self.second)

    def _branch(self, error: Float32Array) -> tuple[Factors | None, str]:
        """The factors, or why there are none: judged by samples that did not make them."""
        if self.scheme.lorc_rank == 0 or error.size == 0:
            return None, ""
        if not error.any():
            return None, f"the {self.scheme.bits}-bit codes hold the weight exactly"
        held_out = self.moments.held_out
        factors = trial = self._fit(error, self.second)
        if held_out is not None and self.scheme.lorc is Compensation.EXACT:
            trial = self._fit(error, self.moments.fitted)
        judge = self.second if held_out is None else held_out
        gain = branch_gain(error, *trial.floats(), judge, self.gradients)
        if gain > 0:
            return factors, ""
        before, whole = (output_loss(part, judge, self.gradients) for part in (error, self.target))
        found = f"{_relative(before, whole):.4g} without, {_relative(before - gain, whole):.4g} with"
        return None, f"a branch of rank {factors.rank} does not lower the output error: {found}"

    def _alternate(self, choice: _Choice, factors: Factors) -> tuple[_Choice, Factors]:
        """Choose codes again for what the branch leaves of the weight, and fit it again, while that helps."""
        if self.scheme.lorc_rounds == 1:
            return choice, factors
        least = self._loss(choice.error, factors)
        for _ in range(1, self.scheme.lorc_rounds):
            branch = _matrix(factors)
            again = self._choose(self.target - branch)
            error = np.add(again.error, branch, out=again.error)
            refitted = self._fit(error, self.second)
            loss = self._loss(error, refitted)
            if not loss < least:
                break
            choice, factors, least = _Choice(again.quantized, error), refitted, loss
        return choice, factors

    def _fit(self, error: Float32Array, second: Float32Array) -> Factors:
        if self.scheme.lorc is Compensation.EXACT and np.isfinite(np.diagonal(second)).all():
            return compensate(error, self.scheme, self.dtype, second, self.gradients, self.seed)
        return low_rank(error, self.scheme.lorc_rank, self.scheme.lorc_dtype, self.dtype, self.seed)

    def _loss(self, error: Float32Array, factors: Factors | None = None) -> float:
        """What the objective says of an error, less the branch."""
        loss = output_loss(error, self.second, self.gradients)
        if factors is None:
            return loss
        return loss - branch_gain(error, *factors.floats(), self.second, self.gradients)

    def _activation_scale(self) -> float | None:
        if not self.scheme.static_activations:
            return None
        return float(self.moments.peak.max(initial=0.0)) / INT8_LIMIT


def _better_rows(one: _Choice, other: _Choice, second: Float32Array) -> _Choice:
    """Of each row the choice with the lesser output error; `one` is overwritten."""
    losses, others = (row_losses(choice.error, second) for choice in (one, other))
    taken = others < losses
    one.error[taken] = other.error[taken]
    for new, old in (
        (one.quantized.codes, other.quantized.codes),
        (one.quantized.scales, other.quantized.scales),
        (one.quantized.zero_points, other.quantized.zero_points),
    ):
        new[taken] = old[taken]
    return _Choice(one.quantized, one.error, np.minimum(losses, others))


def _matrix(factors: Factors) -> Float32Array:
    """The branch as a weight, `[N, K]`."""
    u, v = factors.floats()
    return np.ascontiguousarray((u @ v).T)


def _relative(part: float, whole: float) -> float:
    return math.sqrt(max(0.0, part) / whole) if whole > 0 else 0.0
