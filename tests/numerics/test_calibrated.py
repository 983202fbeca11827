"""A weight quantized by evidence: what is guaranteed, what is fallen back to, and the branch's gate."""

from __future__ import annotations

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.numerics.layers import correlated, loss, losses, moments, slack, values, weights
from zq2onnx.numerics import calibrated
from zq2onnx.numerics.calibrated import Calibrated, Evidence, quantize_calibrated
from zq2onnx.numerics.grid import Quantized
from zq2onnx.numerics.moments import Moments
from zq2onnx.numerics.quantize import quantize_weight
from zq2onnx.numerics.rtn import quantize_rtn
from zq2onnx.numerics.smooth import smoothed_moments
from zq2onnx.scheme import (
    WEIGHT_BITS,
    ActGranularity,
    Activation,
    Clip,
    Compensation,
    FactorType,
    Method,
    Objective,
    PerBlock,
    PerChannel,
    Scheme,
)

GPTQ = Scheme(bits=3, granularity=PerBlock(32), method=Method.GPTQ, lorc_rank=0)
EXACT = dataclasses.replace(GPTQ, lorc_rank=4, lorc=Compensation.EXACT)


def spd(n: int, seed: int = 5) -> np.ndarray:
    return moments(correlated(2 * n, n, seed) + 1).second


def nearest(weight: np.ndarray, scheme: Scheme, dtype: np.dtype | type = np.float32) -> Quantized:
    clip = Clip.NONE if scheme.clip is Clip.AUTO else scheme.clip
    return quantize_rtn(weight, dataclasses.replace(scheme, clip=clip), dtype)


def effective(found: Calibrated, scheme: Scheme) -> np.ndarray:
    """What the layer multiplies with, float64."""
    matrix = values(found.quantized, scheme)
    if found.factors is not None:
        u, v = (factor.astype(np.float64) for factor in found.factors.floats())
        matrix += (u @ v).T
    return matrix


# What is guaranteed, whatever the layer.

INPUTS = {
    "ordinary": lambda x: x,
    "a constant channel": lambda x: np.where(np.arange(x.shape[1]) == 0, np.float32(3), x),
    "dead channels": lambda x: np.where(np.arange(x.shape[1]) % 3 == 1, np.float32(0), x),
    "all dead": lambda x: np.zeros_like(x),
    "channels twice": lambda x: x[:, np.arange(x.shape[1]) // 2],
    "one token": lambda x: x[:1],
    "one great channel": lambda x: np.where(np.arange(x.shape[1]) == x.shape[1] // 2, 1000 * x, x),
}
WEIGHTS = {
    "ordinary": lambda w: w,
    "zeros": lambda w: np.zeros_like(w),
    "a row of zeros": lambda w: np.where(np.arange(len(w))[:, None] == 0, np.float32(0), w),
    "constant": lambda w: np.full_like(w, 0.7),
    "an outlier": lambda w: np.where(np.arange(w.size).reshape(w.shape) == 0, np.float32(60), w),
    "one sign": lambda w: np.abs(w) + 1,
}
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


@st.composite
def layers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A weight of any float type, and inputs."""
    n, k, seed = draw(st.integers(1, 9)), draw(st.integers(1, 70)), draw(st.integers(0, 99))
    dtype = draw(st.sampled_from(DTYPES))
    exponent = draw(st.integers(-3, 3) if dtype == np.float16 else st.integers(-20, 20))
    weight = WEIGHTS[draw(st.sampled_from(sorted(WEIGHTS)))](weights(n, k, seed))
    x = INPUTS[draw(st.sampled_from(sorted(INPUTS)))](correlated(draw(st.integers(1, 90)), k, seed))
    x = x * np.float32(10.0 ** draw(st.integers(-6, 6)))
    return (weight * np.float32(10.0**exponent)).astype(dtype), x


schemes = st.builds(
    Scheme,
    bits=st.sampled_from(WEIGHT_BITS),
    granularity=st.sampled_from([PerChannel(), PerBlock(16), PerBlock(32)]),
    symmetric=st.booleans(),
    method=st.just(Method.GPTQ),
    clip=st.sampled_from(Clip),
    lorc_rank=st.just(0),
)


@given(layers(), schemes)
def test_no_rows_output_error_is_above_that_of_rounding_to_nearest(
    layer: tuple[np.ndarray, np.ndarray], scheme: Scheme
) -> None:
    weight, x = layer
    evidence = Evidence(moments(x))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = quantize_calibrated(weight, scheme, weight.dtype, evidence)
    assert found.note == ""
    assert found.quantized.scales.dtype == weight.dtype
    assert found.quantized.codes.max() < 2**scheme.bits
    target, moment = weight.astype(np.float64), evidence.inputs.second
    before = target - values(nearest(weight, scheme, weight.dtype), scheme)
    after = target - values(found.quantized, scheme)
    allowed = slack(before, moment) + slack(after, moment)
    assert (losses(after, moment) <= losses(before, moment) + allowed).all()
    # The same of the outputs themselves.
    outputs = (((x.astype(np.float64) @ error.T) ** 2).mean(axis=0) for error in (after, before))
    assert (next(outputs) <= next(outputs) + allowed).all()


@given(layers(), schemes, st.integers(1, 6), st.sampled_from(FactorType), st.sampled_from(Objective))
def test_numbers_reported_are_those_of_what_is_stored(
    layer: tuple[np.ndarray, np.ndarray],
    scheme: Scheme,
    rank: int,
    kind: FactorType,
    objective: Objective,
) -> None:
    weight, x = layer
    scheme = dataclasses.replace(
        scheme, lorc_rank=rank, lorc=Compensation.EXACT, lorc_dtype=kind, objective=objective
    )
    gradients = spd(len(weight)) if objective is Objective.MODEL else None
    evidence = Evidence(moments(x, x[::2] if len(x) > 3 else None), gradients)
    found = quantize_calibrated(weight, scheme, weight.dtype, evidence)
    target, moment = weight.astype(np.float64), evidence.inputs.second
    assert (found.factors is None) == (found.dropped != "")
    error = target - values(found.quantized, scheme)
    assert found.weight_energy == pytest.approx((target**2).sum(), rel=1e-5)
    assert found.error_energy == pytest.approx((error**2).sum(), rel=1e-4, abs=1e-9 * found.weight_energy)
    left = target - effective(found, scheme)
    floor = 1e-5 * max(found.error_energy, (left**2).sum()) + 1e-12 * found.weight_energy
    assert found.residual_energy == pytest.approx((left**2).sum(), rel=1e-3, abs=floor)
    whole = loss(target, moment)
    if whole <= 0:
        assert found.output_error == found.output_error_without_lorc == 0
        return
    # An error that inputs hardly see is known as well as float32 knows it.
    floor = (slack(error, moment).sum() + slack(target, moment).sum() / 100) / whole
    assert found.output_error_without_lorc**2 == pytest.approx(
        loss(error, moment) / whole, rel=1e-3, abs=floor
    )
    assert found.output_error**2 == pytest.approx(loss(left, moment) / whole, rel=1e-2, abs=4 * floor)


@given(layers(), schemes)
def test_a_zero_weight_stays_zero(layer: tuple[np.ndarray, np.ndarray], scheme: Scheme) -> None:
    weight = np.zeros_like(layer[0])
    scheme = dataclasses.replace(scheme, lorc_rank=4, lorc=Compensation.EXACT)
    found = quantize_calibrated(weight, scheme, weight.dtype, Evidence(moments(layer[1])))
    assert not effective(found, scheme).any()
    assert found.factors is None and "hold the weight exactly" in found.dropped
    assert found.output_error == 0


@pytest.mark.parametrize("bits", WEIGHT_BITS)
@pytest.mark.parametrize("clip", Clip)
def test_gptq_is_better_where_inputs_are_correlated(bits: int, clip: Clip) -> None:
    scheme = dataclasses.replace(GPTQ, bits=bits, clip=clip)
    weight, evidence = weights(40, 96), Evidence(moments(correlated(500, 96)))
    found = quantize_calibrated(weight, scheme, np.float32, evidence)
    before = loss(weight - values(nearest(weight, scheme), scheme), evidence.inputs.second)
    assert loss(weight - values(found.quantized, scheme), evidence.inputs.second) < 0.5 * before


def test_rows_that_gptq_spoils_are_rounded_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, evidence = weights(8, 64), Evidence(moments(correlated(300, 64)))
    good = quantize_calibrated(weight, GPTQ, np.float32, evidence).quantized
    spoilt = Quantized(good.codes.copy(), good.scales.copy(), good.zero_points.copy())
    spoilt.codes[[1, 6]], spoilt.scales[[1, 6]], spoilt.zero_points[[1, 6]] = 0, 9.0, 7
    monkeypatch.setattr(calibrated, "quantize_gptq", lambda *_: spoilt)
    found = quantize_calibrated(weight, GPTQ, np.float32, evidence)
    expected = nearest(weight, GPTQ)
    rest = [0, 2, 3, 4, 5, 7]
    for part in ("codes", "scales", "zero_points"):
        got = getattr(found.quantized, part)
        np.testing.assert_array_equal(got[[1, 6]], getattr(expected, part)[[1, 6]])
        np.testing.assert_array_equal(got[rest], getattr(good, part)[rest])
    error = weight - values(found.quantized, GPTQ)
    assert found.error_energy == pytest.approx((error**2).sum(), rel=1e-5)


@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_the_models_objective_is_never_above_that_of_rounding_to_nearest(bits: int) -> None:
    """Not even where moments are such that there is nothing to gain from feedback."""
    for seed in range(6):
        weight = weights(6, 12, seed)
        x = np.random.default_rng(seed).standard_normal((40, 12)).astype(np.float32)
        gradients = np.diag(np.random.default_rng(seed).uniform(1, 2, 6)).astype(np.float32)
        scheme = dataclasses.replace(GPTQ, bits=bits, objective=Objective.MODEL)
        evidence = Evidence(moments(x), gradients)
        found = quantize_calibrated(weight, scheme, np.float32, evidence)
        before, after = (
            loss(weight - values(codes, scheme), evidence.inputs.second, gradients)
            for codes in (nearest(weight, scheme), found.quantized)
        )
        assert after <= before * (1 + 1e-5)


def test_the_models_objective_is_lower_by_gradients() -> None:
    weight, inputs, gradients = weights(80, 96), moments(correlated(500, 96)), spd(80)
    without, with_them = (
        quantize_calibrated(weight, EXACT, np.float32, Evidence(inputs, known)) for known in (None, gradients)
    )
    before, after = (
        loss(weight - effective(found, EXACT), inputs.second, gradients) for found in (without, with_them)
    )
    assert after < 0.9 * before
    assert with_them.output_error > without.output_error


# What is fallen back to.


def indefinite(k: int, least: float) -> np.ndarray:
    """Symmetric, of ones on the diagonal, all eigenvalues but one alike."""
    direction = np.where(np.arange(k) % 2, -1.0, 1.0) / math.sqrt(k)
    matrix = np.eye(k) + (least - 1) * np.outer(direction, direction)
    return (matrix / matrix[0, 0]).astype(np.float32)


def moments_of(matrix: np.ndarray) -> Moments:
    return Moments(matrix, None, np.ones(len(matrix), np.float32), (9, 0))


@pytest.mark.parametrize(("least", "note"), [(0.1, ""), (-0.05, "damping of 0.1"), (-0.5, "damping of 1:")])
def test_more_damping_is_noted(least: float, note: str) -> None:
    found = quantize_weight(
        weights(8, 64), GPTQ, np.float32, evidence=Evidence(moments_of(indefinite(64, least)))
    )
    assert note in found.note and bool(note) == bool(found.note)


@pytest.mark.parametrize("matrix", [indefinite(64, -4.0), np.full((64, 64), np.inf, np.float32)])
def test_what_cannot_be_factored_is_rounded_to_nearest(matrix: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        found = quantize_weight(weights(8, 64), GPTQ, np.float32, evidence=Evidence(moments_of(matrix)))
    np.testing.assert_array_equal(found.quantized.codes, nearest(weights(8, 64), GPTQ).codes)
    assert found.note == "rounded to nearest: the second moment of its input cannot be factored"


def test_rounding_to_nearest_has_no_note() -> None:
    scheme = dataclasses.replace(EXACT, method=Method.RTN)
    evidence = Evidence(moments(correlated(300, 64)))
    found = quantize_weight(weights(8, 64), scheme, np.float32, evidence=evidence)
    np.testing.assert_array_equal(found.quantized.codes, nearest(weights(8, 64), scheme).codes)
    assert found.note == "" and found.factors is not None
    assert found.output_error < found.output_error_without_lorc


def test_a_weight_that_is_not_finite_is_counted() -> None:
    weight = weights(8, 64)
    weight[1, 2], weight[3, 3] = np.nan, np.inf
    found = quantize_weight(weight, EXACT, np.float32, evidence=Evidence(moments(correlated(300, 64))))
    assert found.nonfinite == 2 and found.factors is None and math.isnan(found.weight_error)


def test_codes_that_were_chosen_already_are_kept() -> None:
    weight, inputs = weights(20, 64), moments(correlated(300, 64))
    codes = nearest(weight * np.float32(0.9), EXACT)
    scheme = dataclasses.replace(EXACT, lorc_rounds=3)
    found = quantize_calibrated(weight, scheme, np.float32, Evidence(inputs, chosen=codes))
    assert found.quantized is codes
    assert found.factors is not None and found.output_error < found.output_error_without_lorc


# The branch's gate, and its rounds.


def parted(n: int = 24) -> tuple[np.ndarray, Moments, Moments]:
    """A weight of large and small channels, and moments: held-out samples live in the former, in the latter.

    A branch stored in int8 knows of the small channels only that they are about zero.
    """
    weight = weights(n, 64) * np.where(np.arange(64) < 32, np.float32(1), np.float32(1e-3))
    x = correlated(400, 64)
    large, small = (np.where(half, x, np.float32(0)) for half in (np.arange(64) < 32, np.arange(64) >= 32))
    return weight, moments(large + small / 100, large), moments(large + small / 100, small)


def test_a_branch_that_does_not_help_held_out_samples_is_dropped() -> None:
    weight, agreeing, disagreeing = parted()
    kept = quantize_calibrated(weight, EXACT, np.float32, Evidence(agreeing))
    assert kept.factors is not None and kept.dropped == ""
    found = quantize_calibrated(weight, EXACT, np.float32, Evidence(disagreeing))
    assert found.factors is None
    assert found.dropped.startswith("a branch of rank 4 does not lower the output error: 0.")
    without, with_it = found.dropped.removesuffix(" with").split(": ")[1].split(" without, ")
    assert 0 < float(without) <= float(with_it)
    assert found.output_error == found.output_error_without_lorc
    assert found.residual_energy == found.error_energy


def test_a_branch_is_judged_as_it_is_stored() -> None:
    """In float it knows of small channels too."""
    weight, _, disagreeing = parted()
    scheme = dataclasses.replace(EXACT, lorc_dtype=FactorType.FLOAT)
    assert quantize_calibrated(weight, scheme, np.float32, Evidence(disagreeing)).factors is not None


def test_the_branch_that_is_judged_did_not_see_what_it_is_judged_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """But the one that is stored did; and the worse one alone decides."""
    inputs = moments(correlated(400, 64), correlated(400, 64, 1))
    fit, seen = calibrated.compensate, []

    def harmful_trial(error, scheme, dtype, moment, *rest):
        seen.append(moment)
        return fit(-error if moment is inputs.fitted else error, scheme, dtype, moment, *rest)

    kept = quantize_calibrated(weights(24, 64), EXACT, np.float32, Evidence(inputs))
    monkeypatch.setattr(calibrated, "compensate", harmful_trial)
    found = quantize_calibrated(weights(24, 64), EXACT, np.float32, Evidence(inputs))
    np.testing.assert_array_equal(seen[0], inputs.second)
    assert seen[1] is inputs.fitted and len(seen) == 2
    assert found.factors is None
    without, with_it = found.dropped.removesuffix(" with").split(": ")[1].split(" without, ")
    assert float(without) < float(with_it)
    assert found.output_error == kept.output_error_without_lorc


def test_a_plain_branch_is_dropped_where_the_model_is_worse_for_it() -> None:
    """It takes the error of one output away that had made up for the error of another."""
    error = np.diag([3.0, -1.0]).astype(np.float32)
    codes = Quantized(
        np.array([[9, 2], [4, 7]], np.uint8), np.ones((2, 1), np.float32), np.full((2, 1), 5, np.uint8)
    )
    sums = np.ones((2, 2), np.float32)  # the gradient sees the sum of both outputs alone
    inputs = moments(np.array([[1, 3]], np.float32))  # for which the sum of both errors is zero
    scheme = dataclasses.replace(
        EXACT, granularity=PerChannel(), lorc=Compensation.PLAIN, lorc_rank=1, objective=Objective.MODEL
    )
    weight = (values(codes, scheme) + error).astype(np.float32)
    found = quantize_calibrated(weight, scheme, np.float32, Evidence(inputs, sums, chosen=codes))
    assert found.factors is None and "0 without" in found.dropped
    without = quantize_calibrated(weight, scheme, np.float32, Evidence(inputs, chosen=codes))
    assert without.factors is not None


@pytest.mark.parametrize("compensation", Compensation)
def test_without_held_out_samples_the_branch_is_judged_by_those_there_are(compensation: Compensation) -> None:
    scheme = dataclasses.replace(EXACT, lorc=compensation)
    evidence = Evidence(moments(correlated(400, 64)))
    found = quantize_calibrated(weights(24, 64), scheme, np.float32, evidence)
    assert found.factors is not None and found.output_error < found.output_error_without_lorc


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("method", [Method.RTN, Method.GPTQ])
@pytest.mark.parametrize("bits", [2, 4])
def test_rounds_lower_the_loss_or_change_nothing(objective: Objective, method: Method, bits: int) -> None:
    gradients = spd(40) if objective is Objective.MODEL else None
    weight, inputs = weights(40, 64), moments(correlated(400, 64))
    found = []
    for rounds in (1, 2, 4):
        scheme = dataclasses.replace(EXACT, bits=bits, method=method, lorc_rounds=rounds, clip=Clip.AUTO)
        made = quantize_calibrated(weight, scheme, np.float32, Evidence(inputs, gradients))
        found.append(loss(weight - effective(made, scheme), inputs.second, gradients))
    assert found[1] <= found[0] * (1 + 1e-6) and found[2] <= found[1] * (1 + 1e-6)
    if bits == 2 and method is Method.GPTQ:
        assert found[2] < found[0]


def test_no_rank_is_no_branch_and_no_reason() -> None:
    found = quantize_calibrated(weights(8, 32), GPTQ, np.float32, Evidence(moments(correlated(90, 32))))
    assert found.factors is None and found.dropped == ""


def test_zq_local_goes_on_from_rounding_to_nearest() -> None:
    pytest.importorskip("torch")
    scheme = dataclasses.replace(EXACT, method=Method.ZQ_LOCAL)
    weight, inputs = weights(16, 32), moments(correlated(200, 32))
    found = quantize_calibrated(weight, scheme, np.float32, Evidence(inputs))
    before = loss(weight - values(nearest(weight, scheme), scheme), inputs.second)
    assert loss(weight - values(found.quantized, scheme), inputs.second) < 0.9 * before
    assert found.factors is not None and found.output_error < found.output_error_without_lorc


# Activations.


@pytest.mark.parametrize("held_out", [False, True])
def test_smoothing_quantizes_the_smoothed_weight_by_the_smoothed_inputs(held_out: bool) -> None:
    x, more = correlated(400, 64), correlated(100, 64, 1)
    inputs = moments(x, more if held_out else None)
    x = np.concatenate([x, more]) if held_out else x
    scales = np.exp(np.random.default_rng(2).standard_normal(64)).astype(np.float32)
    scheme = dataclasses.replace(
        EXACT, clip=Clip.AUTO, activation=Activation.A8, act_granularity=ActGranularity.TENSOR
    )
    weight = weights(24, 64)
    one = quantize_calibrated(weight, scheme, np.float32, Evidence(inputs, smoothing=scales))
    other = quantize_calibrated(
        weight * scales, scheme, np.float32, Evidence(smoothed_moments(inputs, scales))
    )
    for part in ("codes", "scales", "zero_points"):
        np.testing.assert_array_equal(getattr(one.quantized, part), getattr(other.quantized, part))
    assert one.factors is not None and other.factors is not None
    assert one.factors.u.tobytes() == other.factors.u.tobytes()
    assert one.activation_scale == other.activation_scale
    # The layer as it was: the smoothed weight times the smoothed input.
    outputs = (x / scales).astype(np.float64) @ effective(one, scheme).T
    exact = x.astype(np.float64) @ weight.T
    assert np.linalg.norm(outputs - exact) == pytest.approx(
        one.output_error * np.linalg.norm(exact), rel=1e-3
    )


def test_smoothing_leaves_the_evidence_as_it_was() -> None:
    inputs = moments(correlated(90, 32))
    before, weight = inputs.fitted.copy(), weights(8, 32)
    kept = weight.copy()
    quantize_calibrated(weight, EXACT, np.float32, Evidence(inputs, smoothing=np.full(32, 2, np.float32)))
    np.testing.assert_array_equal(inputs.fitted, before)
    np.testing.assert_array_equal(weight, kept)


@pytest.mark.parametrize("granularity", ActGranularity)
@pytest.mark.parametrize("activation", Activation)
def test_only_static_activations_have_a_scale(granularity: ActGranularity, activation: Activation) -> None:
    scheme = dataclasses.replace(GPTQ, activation=activation, act_granularity=granularity)
    x = correlated(90, 32)
    found = quantize_weight(
        weights(8, 32), scheme, np.float32, evidence=Evidence(moments(x[:60], x[60:]))
    ).activation_scale
    if activation is Activation.A8 and granularity is ActGranularity.TENSOR:
        assert found == pytest.approx(np.abs(x).max() / 127)
    else:
        assert found is None
