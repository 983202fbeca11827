"""Moments of an input against NumPy in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq2onnx.numerics import moments as module
from zq2onnx.numerics.moments import MomentSum


def inputs(tokens: int, k: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((tokens, k)) + 0.5).astype(np.float32)


def moment(x: np.ndarray) -> np.ndarray:
    wide = x.reshape(-1, x.shape[-1]).astype(np.float64)
    return wide.T @ wide / len(wide)


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=8), st.integers(1, 20))
def test_means_of_fitted_and_held_out_samples(batches: list[tuple[int, bool]], k: int) -> None:
    gathered, kinds = MomentSum(k), ([np.empty((0, k))], [np.empty((0, k))])
    for seed, (tokens, held_out) in enumerate(batches):
        x = inputs(tokens, k, seed)
        gathered.add(x, held_out)
        kinds[held_out].append(x)
    fitted, held_out = (np.concatenate(kind) for kind in kinds)
    both = np.concatenate([fitted, held_out])
    if not len(both):
        with pytest.raises(ValueError, match="no input"):
            gathered.result()
        return
    found = gathered.result()
    np.testing.assert_allclose(found.second, moment(both), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.peak, np.abs(both).max(axis=0))
    assert found.finite
    if not len(fitted):
        fitted, held_out = held_out, fitted  # held-out samples alone are fitted
    assert found.tokens == (len(fitted), len(held_out))
    np.testing.assert_allclose(found.fitted, moment(fitted), rtol=1e-5, atol=1e-6)
    if len(held_out):
        np.testing.assert_allclose(found.held_out, moment(held_out), rtol=1e-5, atol=1e-6)
    else:
        assert found.held_out is None


@pytest.mark.parametrize("widest", [5, 6])
@pytest.mark.parametrize("piece", [1, 13, 1 << 22])
def test_wide_inputs_are_summed_in_float32_and_long_ones_in_pieces(
    widest: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WIDEST_DOUBLE", widest)
    monkeypatch.setattr(module, "PIECE", piece)
    x = inputs(70, 6)
    gathered = MomentSum(6)
    gathered.add(x[:50].reshape(5, 2, 5, 6))
    gathered.add(x[50:], held_out=True)
    found = gathered.result()
    np.testing.assert_allclose(found.fitted, moment(x[:50]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.held_out, moment(x[50:]), rtol=1e-5, atol=1e-6)
    assert found.fitted.dtype == found.second.dtype == np.float32


def test_many_small_batches_lose_nothing_to_float32() -> None:
    """A sum in float32 would stop growing: 2^24 + 1 is 2^24 there."""
    gathered = MomentSum(1)
    gathered.add(np.full((1, 1), 2.0**12, np.float32))
    for _ in range(64):
        gathered.add(np.ones((1, 1), np.float32))
    assert gathered.result().fitted[0, 0] == np.float32((2.0**24 + 64) / 65)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_products_of_narrow_inputs_are_wider(dtype: type) -> None:
    x = (inputs(40, 8) * 300).astype(dtype)  # the squares are beyond float16
    gathered = MomentSum(8)
    gathered.add(x)
    found = gathered.result()
    np.testing.assert_allclose(found.fitted, moment(x), rtol=1e-5)
    np.testing.assert_array_equal(found.peak, np.abs(x.astype(np.float32)).max(axis=0))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::2],
        lambda x: x[::-1],
        lambda x: np.asfortranarray(x),
        lambda x: x.reshape(10, 4, 12).transpose(1, 0, 2),
        lambda x: np.broadcast_to(x[:1], (7, 12)),
    ],
)
def test_inputs_of_any_strides(view) -> None:
    x = view(inputs(40, 12))
    before = x.copy()
    gathered = MomentSum(x.shape[-1])
    gathered.add(x)
    np.testing.assert_allclose(gathered.result().fitted, moment(before), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(x, before)


def test_moments_are_symmetric_to_the_bit() -> None:
    gathered = MomentSum(33)
    for seed in range(3):
        gathered.add(inputs(50, 33, seed), held_out=seed == 2)
    found = gathered.result()
    for matrix in (found.fitted, found.held_out, found.second):
        np.testing.assert_array_equal(matrix, matrix.T)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("held_out", [False, True])
def test_what_is_not_finite_is_noticed(bad: float, held_out: bool) -> None:
    """A square may overflow where the input itself does not."""
    x = inputs(10, 4)
    gathered = MomentSum(4)
    gathered.add(x)
    x[3, 2] = bad
    with np.errstate(all="ignore"):
        gathered.add(x, held_out)
        assert not gathered.result().finite


def test_nothing_added_has_no_moments() -> None:
    with pytest.raises(ValueError, match="no input was added"):
        MomentSum(3).result()
    empty = MomentSum(3)
    empty.add(np.empty((2, 0, 3), np.float32))
    with pytest.raises(ValueError, match="no input was added"):
        empty.result()


def test_a_result_is_given_once() -> None:
    gathered = MomentSum(3)
    gathered.add(inputs(4, 3))
    gathered.result()
    with pytest.raises(ValueError, match="no input was added"):
        gathered.result()
