"""The exact branch against the dense optimum in float64."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.numerics.layers import correlated, damped, loss, moments, second, weights
from zq2onnx.numerics.compensate import compensate
from zq2onnx.numerics.feedback import DAMPING, OUTPUT_DAMPING
from zq2onnx.numerics.lowrank import Factors, low_rank
from zq2onnx.numerics.rtn import round_to_nearest
from zq2onnx.scheme import FactorType, PerBlock, Scheme

FLOAT = Scheme(lorc_dtype=FactorType.FLOAT)
INT8 = Scheme(lorc_dtype=FactorType.INT8)


def rounding_error(n: int, k: int, bits: int = 3, seed: int = 0) -> np.ndarray:
    scheme = Scheme(bits=bits, granularity=PerBlock(32))
    error = round_to_nearest(weights(n, k, seed), scheme, np.float32, keep_error=True).error
    assert error is not None
    return error


def gradients_of(n: int, seed: int = 5) -> np.ndarray:
    return moments(correlated(2 * n, n, seed) + 1).second


def left_over(error: np.ndarray, factors: Factors, moment: np.ndarray, gradients: np.ndarray | None) -> float:
    u, v = (factor.astype(np.float64) for factor in factors.floats())
    return loss(
        error - (u @ v).T,
        damped(moment, DAMPING),
        None if gradients is None else damped(gradients, OUTPUT_DAMPING),
    )


def root(moment: np.ndarray) -> np.ndarray:
    values, directions = np.linalg.eigh(moment)
    return (directions * np.sqrt(values)) @ directions.T


def optimum(error: np.ndarray, rank: int, moment: np.ndarray, gradients: np.ndarray | None) -> float:
    """The least loss of any branch of a rank: the tail of the singular values of `G^½ E R^½`."""
    seen = error.astype(np.float64) @ root(damped(moment, DAMPING))
    if gradients is not None:
        seen = root(damped(gradients, OUTPUT_DAMPING)) @ seen
    return float((np.linalg.svd(seen, compute_uv=False)[rank:] ** 2).sum())


SHAPES = [(40, 64), (64, 40), (30, 30), (200, 24), (24, 200)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 8, 20])
@pytest.mark.parametrize("both_sides", [False, True])
def test_float_factors_reach_the_optimum(shape: tuple[int, int], rank: int, both_sides: bool) -> None:
    error, moment = rounding_error(*shape), second(shape[1])
    gradients = gradients_of(shape[0]) if both_sides else None
    scheme = dataclasses.replace(FLOAT, lorc_rank=rank)
    factors = compensate(error, scheme, np.float32, moment, gradients)
    assert factors.u.shape == (shape[1], rank) and factors.v.shape == (rank, shape[0])
    least = optimum(error, rank, moment, gradients)
    assert left_over(error, factors, moment, gradients) == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("shape", [(300, 400), (600, 200), (200, 600)])
@pytest.mark.parametrize("rank", [8, 32])
@pytest.mark.parametrize("both_sides", [False, True])
def test_a_krylov_space_holds_nearly_all_of_it(shape: tuple[int, int], rank: int, both_sides: bool) -> None:
    error, moment = rounding_error(*shape), second(shape[1])
    gradients = gradients_of(shape[0]) if both_sides else None
    factors = compensate(error, dataclasses.replace(FLOAT, lorc_rank=rank), np.float32, moment, gradients)
    wide = None if gradients is None else damped(gradients, OUTPUT_DAMPING)
    before = loss(error, damped(moment, DAMPING), wide)
    least, found = optimum(error, rank, moment, gradients), left_over(error, factors, moment, gradients)
    assert before - found >= 0.99 * (before - least)
    assert found <= 1.005 * least


@pytest.mark.parametrize("shape", [(40, 64), (300, 200)])
@pytest.mark.parametrize("both_sides", [False, True])
def test_white_inputs_leave_the_plain_optimum(shape: tuple[int, int], both_sides: bool) -> None:
    """With moments of one, what is left is the tail of the error's own singular values."""
    error = rounding_error(*shape)
    gradients = np.eye(shape[0], dtype=np.float32) if both_sides else None
    factors = compensate(error, FLOAT, np.float32, np.eye(shape[1], dtype=np.float32), gradients)
    u, v = factors.floats()
    least = float((np.linalg.svd(error, compute_uv=False)[8:].astype(np.float64) ** 2).sum())
    assert float(((error - (u @ v).T).astype(np.float64) ** 2).sum()) == pytest.approx(least, rel=2e-3)


@pytest.mark.parametrize("shape", [(64, 96), (300, 200)])
@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize(
    ("scheme", "dtype", "cost"),
    [
        (INT8, np.float32, 0.02),
        (INT8, np.float16, 0.02),
        (INT8, ml_dtypes.bfloat16, 0.02),
        (FLOAT, np.float16, 0.01),
        (FLOAT, ml_dtypes.bfloat16, 0.01),
    ],
)
def test_storing_the_factors_costs_little(
    shape: tuple[int, int], both_sides: bool, scheme: Scheme, dtype: type, cost: float
) -> None:
    error, moment = rounding_error(*shape), second(shape[1])
    gradients = gradients_of(shape[0]) if both_sides else None
    wide = None if gradients is None else damped(gradients, OUTPUT_DAMPING)
    before = loss(error, damped(moment, DAMPING), wide)
    exact = left_over(error, compensate(error, FLOAT, np.float32, moment, gradients), moment, gradients)
    factors = compensate(error, scheme, dtype, moment, gradients)
    assert factors.u.dtype == factors.v.dtype == (np.int8 if scheme is INT8 else dtype)
    assert factors.u_scales.dtype == factors.v_scales.dtype == dtype
    found = left_over(error, factors, moment, gradients)
    assert found <= exact + cost * (before - exact)


@given(
    st.tuples(st.integers(2, 40), st.integers(2, 60)),
    st.integers(1, 12),
    st.sampled_from(FactorType),
    st.integers(0, 20),
)
def test_it_beats_the_plain_branch(shape: tuple[int, int], rank: int, kind: FactorType, seed: int) -> None:
    error, moment = rounding_error(*shape, seed=seed), second(shape[1], seed)
    scheme = Scheme(lorc_rank=rank, lorc_dtype=kind)
    exact = compensate(error, scheme, np.float32, moment)
    plain = low_rank(error, rank, kind, np.float32)
    before = loss(error, damped(moment, DAMPING))
    # Both are stored in int8: a difference of their rounding errors is allowed.
    allowed = 1e-3 * before if kind is FactorType.INT8 else 1e-5 * before
    assert left_over(error, exact, moment, None) <= left_over(error, plain, moment, None) + allowed


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 7), (7, 1), (1, 1)])
@pytest.mark.parametrize("both_sides", [False, True])
def test_a_rank_above_the_smaller_side_is_clipped_and_leaves_nothing(
    shape: tuple[int, int], both_sides: bool
) -> None:
    error, moment = weights(*shape), second(shape[1])
    gradients = gradients_of(shape[0]) if both_sides else None
    factors = compensate(error, dataclasses.replace(FLOAT, lorc_rank=16), np.float32, moment, gradients)
    assert factors.rank == min(shape)
    u, v = factors.floats()
    np.testing.assert_allclose((u @ v).T, error, atol=2e-5)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (300, 300)])
@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize("scheme", [FLOAT, INT8])
def test_an_error_of_zeros_has_a_branch_of_zeros(
    shape: tuple[int, int], both_sides: bool, scheme: Scheme
) -> None:
    gradients = gradients_of(shape[0]) if both_sides else None
    factors = compensate(np.zeros(shape, np.float32), scheme, np.float32, second(shape[1]), gradients)
    u, v = factors.floats()
    assert not (u @ v).any()
    assert np.isfinite(factors.u_scales).all() and np.isfinite(factors.v_scales).all()


@pytest.mark.parametrize("shape", [(40, 60), (260, 300), (300, 260)])
@pytest.mark.parametrize("both_sides", [False, True])
def test_an_error_of_a_low_rank_is_taken_away_whole(shape: tuple[int, int], both_sides: bool) -> None:
    error = (weights(shape[0], 3) @ weights(3, shape[1], 1)).astype(np.float32)
    gradients = gradients_of(shape[0]) if both_sides else None
    factors = compensate(error, FLOAT, np.float32, second(shape[1]), gradients)
    u, v = factors.floats()
    np.testing.assert_allclose((u @ v).T, error, atol=5e-4)


@pytest.mark.parametrize("size", [1e-20, 1e-9, 1e9, 1e20])
def test_errors_of_any_size(size: float) -> None:
    error, moment = rounding_error(200, 260), second(260)
    ordinary = compensate(error, FLOAT, np.float32, moment)
    scaled = compensate(error * np.float32(size), FLOAT, np.float32, moment)
    (u, v), (su, sv) = ordinary.floats(), scaled.floats()
    np.testing.assert_allclose(su @ sv / size, u @ v, atol=2e-4 * float(np.abs(u @ v).max()))


@pytest.mark.parametrize("dead", [[0], [3, 4, 50], list(range(64))])
def test_dead_channels_are_no_trouble(dead: list[int]) -> None:
    moment = second(64)
    moment[dead], moment[:, dead] = 0, 0
    error = rounding_error(40, 64)
    factors = compensate(error, FLOAT, np.float32, moment)
    if len(dead) < 64:
        least = optimum(error, 8, moment, None)
        assert left_over(error, factors, moment, None) == pytest.approx(least, rel=1e-3)
    assert np.isfinite(factors.u).all() and np.isfinite(factors.v).all()


def test_the_same_seed_gives_the_same_bytes() -> None:
    error, moment, gradients = rounding_error(300, 260), second(260), gradients_of(300)
    one, same, other = (compensate(error, INT8, np.float32, moment, gradients, seed) for seed in (3, 3, 4))
    for part in ("u", "v", "u_scales", "v_scales"):
        assert getattr(one, part).tobytes() == getattr(same, part).tobytes()
    assert one.u.tobytes() != other.u.tobytes()


@pytest.mark.parametrize("both_sides", [False, True])
def test_no_inputs_are_worse_off(both_sides: bool) -> None:
    """The branch takes away what lies in a subspace of the outputs: the error of no input grows."""
    error = rounding_error(40, 64)
    gradients = gradients_of(40) if both_sides else None
    wide = np.eye(40) if gradients is None else damped(gradients, OUTPUT_DAMPING)
    u, v = compensate(error, FLOAT, np.float32, second(64), gradients).floats()
    for x in correlated(50, 64, 9):
        before, after = (part.astype(np.float64) @ x for part in (error, error - (u @ v).T))
        assert after @ wide @ after <= before @ wide @ before * (1 + 1e-4)
