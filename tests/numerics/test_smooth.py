"""SmoothQuant's scales against its formula, at the edges, and what they are for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq2onnx.numerics.moments import MomentSum
from zq2onnx.numerics.smooth import BOUND, smoothed_moments, smoothing_scales

PEAKS = np.array([0.5, 90.0, 2.0, 0.01, 7.0], np.float32)
WEIGHTS = np.array([0.1, 0.04, 0.3, 0.2, 1.5], np.float32)


def relative(values: np.ndarray) -> np.ndarray:
    return values / values[0]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_scales_are_those_of_the_paper_up_to_a_common_factor(alpha: float) -> None:
    expected = [float(x) ** alpha / float(w) ** (1 - alpha) for x, w in zip(PEAKS, WEIGHTS, strict=True)]
    scales = smoothing_scales(PEAKS, WEIGHTS, alpha)
    assert scales.dtype == np.float32
    np.testing.assert_allclose(relative(scales), relative(np.array(expected)), rtol=1e-5)
    assert np.median(scales) == pytest.approx(1.0)


def test_the_ends_of_alpha_even_out_one_side_and_the_middle_shares() -> None:
    everything = PEAKS / smoothing_scales(PEAKS, WEIGHTS, 1.0)
    np.testing.assert_allclose(everything, everything[0], rtol=1e-5)
    nothing = WEIGHTS * smoothing_scales(PEAKS, WEIGHTS, 0.0)
    np.testing.assert_allclose(nothing, nothing[0], rtol=1e-5)
    half = smoothing_scales(PEAKS, WEIGHTS)
    np.testing.assert_allclose(relative(PEAKS / half), relative(WEIGHTS * half), rtol=1e-5)


def test_planted_outliers_are_taken_back_whatever_alpha() -> None:
    factors = np.array([1, 30, 1, 1, 1], np.float32)
    for alpha in (0.3, 0.5, 0.7):
        plain = smoothing_scales(PEAKS, WEIGHTS, alpha)
        planted = smoothing_scales(PEAKS * factors, WEIGHTS / factors, alpha)
        np.testing.assert_allclose(relative(planted), relative(plain * factors), rtol=1e-5)


def test_channels_without_a_peak_keep_their_scale() -> None:
    x = np.array([0.0, 3.0, np.inf, 4.0, np.nan, 0.0, 5.0], np.float32)
    w = np.array([1.0, 0.0, 1.0, 2.0, 1.0, 0.0, 0.5], np.float32)
    scales = smoothing_scales(x, w)
    assert scales[[0, 1, 2, 4, 5]].tolist() == [1.0] * 5
    assert scales[6] > 1 > scales[3]
    assert smoothing_scales(np.zeros(3, np.float32), w[:3]).tolist() == [1.0] * 3


def test_scales_stay_in_bounds() -> None:
    x = np.array([1e-38, 1.0, 1.0, 1.0, 3e38], np.float32)
    w = np.array([3e38, 1.0, 1.0, 1.0, 1e-38], np.float32)
    assert smoothing_scales(x, w).tolist() == [1 / BOUND, 1.0, 1.0, 1.0, BOUND]


PEAK = st.floats(0, width=32) | st.just(float("nan"))


@given(st.lists(st.tuples(PEAK, PEAK), min_size=1, max_size=8), st.floats(0, 1))
def test_scales_are_usable_whatever_the_peaks(pairs: list[tuple[float, float]], alpha: float) -> None:
    x, w = np.array(pairs, np.float32).T
    scales = smoothing_scales(x, w, alpha)
    assert scales.shape == x.shape
    assert np.isfinite(scales).all()
    assert (scales >= 1 / BOUND).all() and (scales <= BOUND).all()


def test_peaks_must_fit_and_alpha_be_a_share() -> None:
    with pytest.raises(ValueError, match=r"\(5,\) and \(4,\)"):
        smoothing_scales(PEAKS, WEIGHTS[:4])
    with pytest.raises(ValueError, match="alpha 1.5"):
        smoothing_scales(PEAKS, WEIGHTS, 1.5)


@pytest.mark.parametrize("held_out", [False, True])
def test_smoothed_moments_are_those_of_the_smoothed_input(held_out: bool) -> None:
    x = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    scales = np.array([0.5, 30.0, 1.0, 7.0, 0.1], np.float32)
    before, after = MomentSum(5), MomentSum(5)
    for number, rows in enumerate(np.split(x, 4)):
        aside = held_out and number == 3
        before.add(rows, held_out=aside)
        after.add(rows / scales, held_out=aside)
    got, expected = smoothed_moments(before.result(), scales), after.result()
    np.testing.assert_allclose(got.second, expected.second, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(got.peak, expected.peak, rtol=1e-6)
    assert got.tokens == expected.tokens
    assert (got.held_out is None) == (not held_out)


def per_token(x: np.ndarray) -> np.ndarray:
    """Symmetric int8, one scale a row."""
    scales = np.abs(x).max(axis=1, keepdims=True) / 127
    return np.rint(x / scales) * scales


def test_smoothing_saves_int8_tokens_from_outliers() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 64)).astype(np.float32)
    weight = rng.standard_normal((32, 64)).astype(np.float32)
    x[:, 7] *= 100
    weight[:, 7] /= 100
    scales = smoothing_scales(np.abs(x).max(axis=0), np.abs(weight).max(axis=0))
    exact = x @ weight.T
    plain = np.linalg.norm(per_token(x) @ weight.T - exact)
    smooth = np.linalg.norm(per_token(x / scales) @ (weight * scales).T - exact)
    assert smooth < 0.1 * plain
