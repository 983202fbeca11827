"""GPTQ against a textbook in float64, the choice of ranges, and rounding that looks at both sides."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from tests.numerics.layers import damped, loss, losses, second, slack, values, weights
from zq2onnx.numerics import gptq
from zq2onnx.numerics.feedback import DAMPING, OUTPUT_DAMPING, feedback
from zq2onnx.numerics.gptq import quantize_gptq
from zq2onnx.numerics.grid import Quantized
from zq2onnx.numerics.rtn import quantize_rtn
from zq2onnx.scheme import Clip, Granularity, PerBlock, PerChannel, Scheme


def scheme_of(
    bits: int = 4, granularity: Granularity = PerChannel(), symmetric: bool = False, **more
) -> Scheme:
    return Scheme(bits=bits, granularity=granularity, symmetric=symmetric, **more)


def textbook_grids(weight: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of every weight, `[N, K]`, from its group's least and greatest weight."""
    n, k = weight.shape
    size = getattr(scheme.granularity, "size", k)
    scales, zeros = np.empty((n, k)), np.empty((n, k))
    for first in range(0, k, size):
        group = np.s_[:, first : first + size]
        low = np.minimum(weight[group].min(axis=1), 0).astype(np.float32)
        high = np.maximum(weight[group].max(axis=1), 0).astype(np.float32)
        if scheme.symmetric:
            scale = np.maximum(-low, high) / np.float32(2 ** (scheme.bits - 1) - 1)
            zero = np.full(n, 2 ** (scheme.bits - 1))
        else:
            scale = (high - low) / np.float32(2**scheme.bits - 1)
            zero = np.rint(-low / scale)
        scales[group], zeros[group] = scale[:, None], zero[:, None]
    return scales, zeros


def textbook(
    weight: np.ndarray, moment: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int, ordered: bool
) -> np.ndarray:
    """GPTQ's codes: column by column, by the Cholesky factor of the inverse of the damped Hessian."""
    rest = weight.astype(np.float64).copy()
    order = np.argsort(-np.diagonal(moment).astype(np.float64), kind="stable")
    order = order if ordered else np.arange(len(moment))
    hessian = damped(moment, DAMPING)[np.ix_(order, order)]
    inverse = np.linalg.cholesky(np.linalg.inv(hessian)).T
    codes = np.empty(weight.shape, np.uint8)
    for step, column in enumerate(order):
        scale, zero = scales[:, column], zeros[:, column]
        code = np.clip(np.rint(rest[:, column] / scale) + zero, 0, 2**bits - 1)
        codes[:, column] = code
        error = (rest[:, column] - (code - zero) * scale) / inverse[step, step]
        rest[:, order[step + 1 :]] -= np.outer(error, inverse[step, step + 1 :])
    return codes


def with_dead_channels(moment: np.ndarray, dead: list[int]) -> np.ndarray:
    moment = moment.copy()
    moment[dead], moment[:, dead] = 0, 0
    return moment


GRANULARITIES = (PerBlock(16), PerBlock(64), PerChannel())
CASES = [
    *itertools.product((2, 3, 4, 8), (True, False), GRANULARITIES, (True, False), (150,)),
    (4, False, PerBlock(32), True, 300),
    (3, True, PerChannel(), True, 1),
    (4, False, PerBlock(128), True, 128),
    (4, False, PerBlock(128), False, 129),
]


@pytest.mark.parametrize(("bits", "symmetric", "granularity", "ordered", "k"), CASES)
def test_codes_are_the_textbooks(
    bits: int, symmetric: bool, granularity: Granularity, ordered: bool, k: int
) -> None:
    scheme = scheme_of(bits, granularity, symmetric)
    weight = weights(20, k).astype(np.float64)
    moment = with_dead_channels(second(k), [3, 77, 140] if k > 140 else [])
    inputs = feedback(moment, ordered=ordered, dtype=np.float64)
    assert inputs is not None
    found = quantize_gptq(weight, scheme, np.float32, inputs)
    scales, zeros = textbook_grids(weight, scheme)
    np.testing.assert_array_equal(found.codes, textbook(weight, moment, scales, zeros, bits, ordered))
    firsts = np.arange(0, k, getattr(granularity, "size", k))
    np.testing.assert_array_equal(found.scales, scales[:, firsts])
    np.testing.assert_array_equal(found.zero_points, zeros[:, firsts])


def test_codes_are_not_those_nearest_to_the_weights() -> None:
    scheme = scheme_of(3)
    inputs = feedback(second(64))
    assert inputs is not None
    found = quantize_gptq(weights(16, 64), scheme, np.float32, inputs)
    nearest = quantize_rtn(weights(16, 64), scheme, np.float32)
    assert (found.codes != nearest.codes).mean() > 0.2
    np.testing.assert_array_equal(found.scales, nearest.scales)


def test_given_ranges_are_kept() -> None:
    scheme = scheme_of(3, PerBlock(16), clip=Clip.MSE)
    weight, moment = weights(12, 50).astype(np.float64), second(50)
    ranges = quantize_rtn(weight.astype(np.float32), scheme, np.float32)
    inputs = feedback(moment, dtype=np.float64)
    assert inputs is not None
    found = quantize_gptq(weight, scheme, np.float32, inputs, ranges=ranges)
    np.testing.assert_array_equal(found.scales, ranges.scales)
    np.testing.assert_array_equal(found.zero_points, ranges.zero_points)
    group = np.arange(50) // 16
    scales, zeros = (
        ranges.scales.astype(np.float64)[:, group],
        ranges.zero_points.astype(np.float64)[:, group],
    )
    np.testing.assert_array_equal(found.codes, textbook(weight, moment, scales, zeros, 3, True))


def test_dead_channels_get_the_nearest_codes() -> None:
    scheme = scheme_of(4, PerBlock(16))
    dead = [0, 5, 31, 60]
    inputs = feedback(with_dead_channels(second(64), dead))
    assert inputs is not None
    found = quantize_gptq(weights(16, 64), scheme, np.float32, inputs)
    nearest = quantize_rtn(weights(16, 64), scheme, np.float32)
    np.testing.assert_array_equal(found.codes[:, dead], nearest.codes[:, dead])


@pytest.mark.parametrize("clip", [Clip.NONE, Clip.AUTO])
def test_rows_are_rounded_in_pieces(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = scheme_of(3, PerBlock(32), clip=clip)
    inputs = feedback(second(70), dtype=np.float64)
    assert inputs is not None
    weight = weights(23, 70).astype(np.float64)
    whole = quantize_gptq(weight, scheme, np.float32, inputs)
    monkeypatch.setattr(gptq, "WORK", 70 * 5 * 4)
    pieces = quantize_gptq(weight, scheme, np.float32, inputs)
    for part in ("codes", "scales", "zero_points"):
        np.testing.assert_array_equal(getattr(pieces, part), getattr(whole, part))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_any_float_type_and_any_strides(dtype: type, transposed: bool) -> None:
    weight = weights(40, 64).astype(dtype)
    stored = np.asfortranarray(weight) if transposed else weight
    inputs = feedback(second(64))
    assert inputs is not None
    found = quantize_gptq(stored, scheme_of(), dtype, inputs)
    expected = quantize_gptq(weight.astype(np.float32), scheme_of(), dtype, inputs)
    assert found.scales.dtype == dtype
    np.testing.assert_array_equal(found.codes, expected.codes)


@pytest.mark.parametrize("exponent", [-80, -7, 9, 80])
@pytest.mark.parametrize("clip", [Clip.NONE, Clip.AUTO])
def test_a_power_of_two_changes_no_code(exponent: int, clip: Clip) -> None:
    """Neither of the weight nor of the moment: no square is lost to underflow."""
    scheme = scheme_of(3, PerBlock(16), clip=clip)
    small, ordinary = feedback(second(48) * np.float32(2.0 ** -abs(exponent))), feedback(second(48))
    assert small is not None and ordinary is not None
    found = quantize_gptq(weights(9, 48) * np.float32(2.0**exponent), scheme, np.float32, small)
    expected = quantize_gptq(weights(9, 48), scheme, np.float32, ordinary)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scales, expected.scales * np.float32(2.0**exponent))


def damped_losses(weight: np.ndarray, found: Quantized, scheme: Scheme, moment: np.ndarray) -> np.ndarray:
    return losses(weight - values(found, scheme), damped(moment, DAMPING))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", [PerChannel(), PerBlock(16), PerBlock(64)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_range_chosen_by_the_final_error_is_never_worse(
    bits: int, granularity: Granularity, symmetric: bool
) -> None:
    moment = second(96)
    weight = weights(32, 96) * np.exp(weights(32, 96, 1) / 2)
    inputs = feedback(moment)
    assert inputs is not None
    whole, auto = (scheme_of(bits, granularity, symmetric, clip=clip) for clip in (Clip.NONE, Clip.AUTO))
    before = quantize_gptq(weight, whole, np.float32, inputs)
    after = quantize_gptq(weight, auto, np.float32, inputs)
    least, found = damped_losses(weight, before, whole, moment), damped_losses(weight, after, auto, moment)
    assert (found <= least + slack(weight - values(before, whole), damped(moment, DAMPING))).all()
    if bits < 8:
        assert found.sum() < 0.99 * least.sum()


def test_blocks_choose_their_ranges_by_themselves() -> None:
    scheme = scheme_of(3, PerBlock(16), clip=Clip.AUTO)
    weight, moment = weights(32, 96), second(96)
    inputs = feedback(moment)
    assert inputs is not None
    found = quantize_gptq(weight, scheme, np.float32, inputs)
    whole = quantize_gptq(weight, scheme_of(3, PerBlock(16)), np.float32, inputs)
    shrunk = np.round(found.scales / whole.scales * 10)
    assert set(np.unique(shrunk)) == {10, 9, 8, 7, 6}
    assert any(len(set(row)) > 1 for row in shrunk)


def spd(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((n, n)) * np.exp(rng.standard_normal(n)) + 2 * rng.standard_normal((n, 1))
    return (root @ root.T / n).astype(np.float32)


def unit_upper(moment: np.ndarray) -> np.ndarray:
    """`U` of `G = U D Uᵀ`, by way of the inverse's factor."""
    lower = np.linalg.cholesky(np.linalg.inv(moment))
    return np.linalg.inv(lower / np.diagonal(lower)).T


@pytest.mark.parametrize("granularity", [PerChannel(), PerBlock(16)])
@pytest.mark.parametrize("clip", [Clip.NONE, Clip.MSE])
def test_rows_one_by_one_are_the_textbooks(
    granularity: Granularity, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row i is GPTQ's of `W_i + Σ_{j before i} U_ji (W_j - Ŵ_j)`, on the grids of `W_i`."""
    monkeypatch.setattr(gptq, "OUTPUT_ROWS", 1)
    scheme = scheme_of(3, granularity, clip=clip)
    weight, moment, gradients = weights(14, 40).astype(np.float64), second(40), spd(14)
    ranges = quantize_rtn(weight.astype(np.float32), scheme, np.float32)
    inputs = feedback(moment, dtype=np.float64)
    outputs = feedback(gradients, OUTPUT_DAMPING, dtype=np.float64)
    assert inputs is not None and outputs is not None
    found = quantize_gptq(weight, scheme, np.float32, inputs, outputs, ranges)
    group = np.arange(40) // getattr(granularity, "size", 40)
    scales, zeros = (
        ranges.scales.astype(np.float64)[:, group],
        ranges.zero_points.astype(np.float64)[:, group],
    )
    order = np.argsort(-np.diagonal(gradients).astype(np.float64), kind="stable")
    upper = unit_upper(damped(gradients, OUTPUT_DAMPING)[np.ix_(order, order)])
    codes, errors = np.empty(weight.shape, np.uint8), np.zeros((14, 40))
    for place, row in enumerate(order):
        moved = weight[row] + upper[:place, place] @ errors[:place]
        codes[row] = textbook(moved[None], moment, scales[row : row + 1], zeros[row : row + 1], 3, True)
        errors[place] = weight[row] - (codes[row] - zeros[row]) * scales[row]
    np.testing.assert_array_equal(found.codes, codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("clip", [Clip.NONE, Clip.AUTO])
@pytest.mark.parametrize("rows", [1, 8, 64])
def test_looking_at_both_sides_lowers_the_loss_of_both(
    bits: int, clip: Clip, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, "OUTPUT_ROWS", rows)
    scheme = scheme_of(bits, PerBlock(32), clip=clip)
    weight, moment, gradients = weights(96, 64), second(64), spd(96)
    inputs, outputs = feedback(moment), feedback(gradients, OUTPUT_DAMPING)
    assert inputs is not None and outputs is not None
    one, both = (quantize_gptq(weight, scheme, np.float32, inputs, known) for known in (None, outputs))
    before, after = (loss(weight - values(found, scheme), moment, gradients) for found in (one, both))
    assert after < 0.9 * before


@pytest.mark.parametrize("clip", [Clip.NONE, Clip.AUTO])
def test_outputs_that_do_not_mix_change_nothing(clip: Clip) -> None:
    """A diagonal G moves no row: only the order in which rows are taken is another."""
    scheme = scheme_of(3, PerBlock(32), clip=clip)
    inputs = feedback(second(80), dtype=np.float64)
    diagonal = np.diag(np.random.default_rng(0).uniform(0.1, 9, 150)).astype(np.float32)
    outputs = feedback(diagonal, OUTPUT_DAMPING, dtype=np.float64)
    assert inputs is not None and outputs is not None
    weight = weights(150, 80).astype(np.float64)
    one, both = (quantize_gptq(weight, scheme, np.float32, inputs, known) for known in (None, outputs))
    np.testing.assert_array_equal(one.codes, both.codes)
    np.testing.assert_array_equal(one.scales, both.scales)
