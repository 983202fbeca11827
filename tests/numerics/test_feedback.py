"""The factor behind GPTQ: what it multiplies to, its order, its damping."""

from __future__ import annotations

import numpy as np
import pytest

from tests.numerics.layers import damped, second
from zq2onnx.numerics import feedback as module
from zq2onnx.numerics.feedback import DAMPING, Feedback, feedback


def product(found: Feedback) -> np.ndarray:
    """`U D Uᵀ`, channels as they were."""
    matrix = np.empty(found.factor.shape)
    matrix[np.ix_(found.order, found.order)] = (found.factor * found.variance) @ found.factor.T
    return matrix


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("k", "block"), [(1, 512), (60, 512), (60, 16), (64, 16), (61, 1)])
def test_the_factor_is_that_of_the_damped_moment(
    k: int, block: int, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    moment = second(k)
    found = feedback(moment, ordered=ordered, dtype=np.float64)
    assert found is not None and found.damping == DAMPING
    expected = damped(moment, DAMPING) / np.diagonal(moment).mean(dtype=np.float64)
    np.testing.assert_allclose(product(found), expected, rtol=0, atol=1e-12 * expected.max())
    np.testing.assert_array_equal(found.factor, np.triu(found.factor))
    np.testing.assert_array_equal(np.diagonal(found.factor), 1)
    assert (found.variance > 0).all()


def test_channels_of_the_greatest_variance_come_first() -> None:
    moment = second(30)
    ordered, plain = feedback(moment), feedback(moment, ordered=False)
    assert ordered is not None and plain is not None
    assert (np.diff(np.diagonal(moment)[ordered.order]) <= 0).all()
    np.testing.assert_array_equal(plain.order, np.arange(30))


def test_float32_is_good_to_its_precision() -> None:
    narrow, wide = feedback(second(50)), feedback(second(50), dtype=np.float64)
    assert narrow is not None and wide is not None
    assert narrow.factor.dtype == narrow.variance.dtype == np.float32
    np.testing.assert_array_equal(narrow.factor, wide.factor.astype(np.float32))


def test_the_widest_moments_are_factored_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = feedback(second(50))
    monkeypatch.setattr(module, "WIDEST_DOUBLE", 49)
    narrow = feedback(second(50))
    assert narrow is not None and wide is not None
    np.testing.assert_allclose(narrow.factor, wide.factor, atol=1e-3)
    assert (narrow.factor != wide.factor).any()


def test_a_dead_channel_is_apart_and_weighs_what_the_damping_adds() -> None:
    moment = second(20)
    moment[[4, 9]], moment[:, [4, 9]] = 0, 0
    found = feedback(moment, dtype=np.float64)
    assert found is not None
    dead = np.isin(found.order, (4, 9))
    np.testing.assert_array_equal(found.factor[dead][:, ~dead], 0)
    np.testing.assert_array_equal(found.factor[~dead][:, dead], 0)
    np.testing.assert_allclose(found.variance[dead], DAMPING)


def test_channels_that_are_all_dead_are_rounded_to_nearest() -> None:
    found = feedback(np.zeros((5, 5), np.float32))
    assert found is not None
    np.testing.assert_array_equal(found.factor, np.eye(5))
    assert (found.variance > 0).all()


def with_least_eigenvalue(least: float) -> np.ndarray:
    """A symmetric matrix of mean diagonal 1; all eigenvalues but one are about 1."""
    rng = np.random.default_rng(0)
    directions, _ = np.linalg.qr(rng.standard_normal((24, 24)))
    eigenvalues = np.ones(24)
    eigenvalues[0] = least
    matrix = (directions * eigenvalues) @ directions.T
    return (matrix / np.diagonal(matrix).mean()).astype(np.float32)


@pytest.mark.parametrize("block", [8, 512])
@pytest.mark.parametrize(("least", "damping"), [(0.5, 0.01), (-0.05, 0.1), (-0.5, 1.0), (-3.0, None)])
def test_more_damping_where_the_factorization_fails(
    least: float, damping: float | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    found = feedback(with_least_eigenvalue(least))
    assert (None if found is None else found.damping) == damping
    assert (feedback(with_least_eigenvalue(least), damping=0.01) is None) == (least < 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("at", [(3, 3), (3, 7)])
def test_what_is_not_finite_is_not_factored(bad: float, at: tuple[int, int]) -> None:
    moment = second(12)
    moment[at] = moment[at[::-1]] = bad
    with np.errstate(invalid="ignore"):
        assert feedback(moment) is None


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_moments_of_any_size(size: float) -> None:
    """Their factor is relative to their mean diagonal."""
    found, expected = feedback(second(16) * np.float32(size)), feedback(second(16))
    assert found is not None and expected is not None
    np.testing.assert_allclose(found.factor, expected.factor, atol=1e-5)
    np.testing.assert_allclose(found.variance, expected.variance, rtol=1e-5)


def test_it_leaves_the_moment_as_it_was() -> None:
    moment = second(10)
    before = moment.copy()
    feedback(moment)
    np.testing.assert_array_equal(moment, before)
