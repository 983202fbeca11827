"""Low-rank compensation: captured energy, stored factors, and the branch's drop rule."""

from __future__ import annotations

import dataclasses
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq2onnx.layout import packed_layout
from zq2onnx.numerics import quantize
from zq2onnx.numerics.energy import frobenius_energy
from zq2onnx.numerics.grid import dequantize
from zq2onnx.numerics.krylov import leading_subspace
from zq2onnx.numerics.lowrank import Factors, low_rank, residual_energy
from zq2onnx.numerics.packing import unpack_codes, unpack_zero_points
from zq2onnx.numerics.quantize import quantize_weight
from zq2onnx.numerics.rtn import round_to_nearest
from zq2onnx.scheme import FactorType, PerBlock, PerChannel, Scheme

DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def noise(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, k), dtype=np.float32) - np.float32(0.5)


def rounding_error(n: int, k: int, scheme: Scheme) -> np.ndarray:
    weight = np.random.default_rng(1).standard_normal((n, k), dtype=np.float32)
    error = round_to_nearest(weight, scheme, np.float32, keep_error=True).error
    assert error is not None
    return error


def decaying(n: int, k: int, rate: float) -> np.ndarray:
    """A matrix whose singular values fall by `rate` each."""
    rng = np.random.default_rng(2)
    rank = min(n, k, 40)
    left, _ = np.linalg.qr(rng.standard_normal((n, rank)))
    right, _ = np.linalg.qr(rng.standard_normal((k, rank)))
    return ((left * rate ** np.arange(rank)) @ right.T).astype(np.float32)


def explicit_residual(error: np.ndarray, factors: Factors) -> float:
    u, v = (factor.astype(np.float64) for factor in factors.floats())
    return float(((error.T.astype(np.float64) - u @ v) ** 2).sum())


def captured(error: np.ndarray, factors: Factors) -> float:
    """Energy that the factors take away, as a part of what the exact SVD of that rank would."""
    wide = error.astype(np.float64)
    gram = wide @ wide.T if error.shape[0] < error.shape[1] else wide.T @ wide
    best = np.linalg.eigvalsh(gram)[::-1][: factors.rank].sum()
    return (float((wide**2).sum()) - explicit_residual(error, factors)) / best


ERRORS = {
    "uniform": lambda n, k: noise(n, k),
    "uniform, [K, N]": lambda n, k: np.asfortranarray(noise(n, k)),
    "w4 g128": lambda n, k: rounding_error(n, k, Scheme()),
    "w2 row": lambda n, k: rounding_error(n, k, Scheme(bits=2, granularity=PerChannel(), symmetric=True)),
    "fast decay": lambda n, k: decaying(n, k, 0.3),
    "slow decay": lambda n, k: decaying(n, k, 0.95) + noise(n, k) * np.float32(1e-3),
    "one outlier column": lambda n, k: (
        noise(n, k) * np.where(np.arange(k) == 5 % k, 100, 1).astype(np.float32)
    ),
    "rank 3": lambda n, k: noise(n, 3) @ noise(3, k),
    "tiny": lambda n, k: noise(n, k) * np.float32(1e-28),
    "huge": lambda n, k: noise(n, k) * np.float32(1e28),
}


@pytest.mark.parametrize("shape", [(512, 512), (256, 768), (640, 250), (60, 1000)], ids=str)
@pytest.mark.parametrize("kind", ERRORS)
def test_rank_8_captures_99_percent_of_what_exact_svd_captures(kind: str, shape: tuple[int, int]) -> None:
    error = ERRORS[kind](*shape)
    factors = low_rank(error, 8, FactorType.FLOAT, np.float32)
    assert captured(error, factors) >= 0.99
    int8 = low_rank(error, 8, FactorType.INT8, np.float32)
    assert captured(error, int8) >= 0.985


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rank_8_of_a_real_layer(seed: int) -> None:
    error = rounding_error(1024, 1024, Scheme())
    assert captured(error, low_rank(error, 8, FactorType.INT8, np.float32, seed)) >= 0.99


@pytest.mark.parametrize("shape", [(6000, 400), (400, 6000), (1000, 1000)], ids=str)
def test_the_shorter_factor_is_orthonormal(shape: tuple[int, int]) -> None:
    error = noise(*shape)
    left, right = leading_subspace(error, 8, unit=0.3)
    short = right if shape[0] >= shape[1] else left
    np.testing.assert_allclose(short.T @ short, np.eye(8), atol=2e-6)
    # So the longer one is the matrix's own projection, and no energy is counted twice.
    np.testing.assert_allclose(error @ right if short is right else error.T @ left,
                               left if short is right else right, atol=1e-4)  # fmt: skip
    assert captured(error, low_rank(error, 8, FactorType.FLOAT, np.float32)) >= 0.99


@pytest.mark.parametrize("rank", [1, 4, 16, 32])
def test_other_ranks(rank: int) -> None:
    error = noise(700, 600)
    assert captured(error, low_rank(error, rank, FactorType.FLOAT, np.float32)) >= 0.97


@given(
    st.integers(1, 200), st.integers(1, 200), st.integers(1, 12), st.sampled_from(FactorType),
    st.sampled_from(DTYPES), st.booleans(),
)  # fmt: skip
def test_shapes_types_and_residual(n, k, rank, factor_type, dtype, transposed) -> None:
    error = noise(n, k, n)
    factors = low_rank(np.asfortranarray(error) if transposed else error, rank, factor_type, dtype)
    r = min(rank, n, k)
    assert (factors.u.shape, factors.v.shape) == ((k, r), (r, n))
    assert (factors.u_scales.shape, factors.v_scales.shape) == ((1, r), (r, 1))
    assert factors.u_scales.dtype == factors.v_scales.dtype == dtype
    assert factors.u.dtype == factors.v.dtype == (np.int8 if factor_type is FactorType.INT8 else dtype)
    if factor_type is FactorType.FLOAT:
        assert (factors.u_scales == 1).all() and (factors.v_scales == 1).all()
    energy = frobenius_energy(error)
    assert residual_energy(error, factors) == pytest.approx(
        explicit_residual(error, factors), abs=3e-6 * energy
    )
    assert residual_energy(error, factors) <= energy


def test_singular_values_are_split_evenly() -> None:
    error = noise(300, 200)
    u, v = low_rank(error, 8, FactorType.FLOAT, np.float32).floats()
    np.testing.assert_allclose(np.linalg.norm(u, axis=0), np.linalg.norm(v, axis=1), rtol=1e-4)
    sizes = np.linalg.norm(u, axis=0) ** 2
    np.testing.assert_allclose(sizes, np.linalg.svd(error, compute_uv=False)[:8], rtol=5e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int8_factors_are_close_to_float_ones(dtype: np.dtype) -> None:
    error = rounding_error(400, 300, Scheme(bits=3)) * np.float32(1e-2)
    exact = low_rank(error, 8, FactorType.FLOAT, np.float32)
    int8 = low_rank(error, 8, FactorType.INT8, dtype)
    for want, got in zip(exact.floats(), int8.floats(), strict=True):
        assert np.linalg.norm(want - got) < 0.015 * np.linalg.norm(want)
    assert np.abs(int8.u).max() <= 127


@pytest.mark.parametrize("shape", [(50, 40), (300, 400), (1, 1)])
def test_nothing_to_compensate(shape: tuple[int, int]) -> None:
    for factor_type in FactorType:
        factors = low_rank(np.zeros(shape, np.float32), 8, factor_type, np.float16)
        assert not factors.u.any() and not factors.v.any()
        assert (factors.u_scales == 1).all() and (factors.v_scales == 1).all()
        assert residual_energy(np.zeros(shape, np.float32), factors) == 0


def test_residual_is_never_negative() -> None:
    error = noise(60, 2) @ noise(2, 50)
    residual = residual_energy(error, low_rank(error, 2, FactorType.FLOAT, np.float32))
    assert 0 <= residual < 1e-5 * frobenius_energy(error)


def test_same_seed_same_bytes() -> None:
    error = noise(400, 300)
    first, again, other = (low_rank(error, 8, FactorType.INT8, np.float32, seed) for seed in (0, 0, 1))
    assert first.u.tobytes() == again.u.tobytes() and first.v.tobytes() == again.v.tobytes()
    assert first.u.tobytes() != other.u.tobytes()


def test_threads_beside_each_other_change_nothing() -> None:
    limits = pytest.importorskip("threadpoolctl").threadpool_limits
    weights = [np.random.default_rng(seed).standard_normal((300, 400), dtype=np.float32) for seed in range(4)]

    def digest(weight: np.ndarray) -> bytes:
        got = quantize_weight(weight, Scheme(), np.float32)
        assert got.factors is not None
        return got.quantized.codes.tobytes() + got.factors.u.tobytes() + got.factors.v.tobytes()

    with limits(1):
        alone = [digest(weight) for weight in weights]
        beside: list[bytes] = [b""] * 4

        def work(index: int) -> None:
            beside[index] = digest(weights[index])

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert alone == beside


def test_the_same_code_runs_on_torch() -> None:
    torch = pytest.importorskip("torch")
    error = noise(300, 400)
    left, right = leading_subspace(torch.from_numpy(error), 8, unit=0.3)
    want_left, want_right = leading_subspace(error, 8, unit=0.3)
    np.testing.assert_allclose((left @ right.T).numpy(), want_left @ want_right.T, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_whole_weight(dtype: np.dtype, transposed: bool) -> None:
    scheme = Scheme(bits=3, granularity=PerBlock(32))
    weight = np.random.default_rng(0).standard_normal((200, 250), dtype=np.float32).astype(dtype)
    weight = np.asfortranarray(weight) if transposed else weight
    got = quantize_weight(weight, scheme, dtype)
    assert got.factors is not None and got.dropped == "" and got.nonfinite == 0
    assert got.quantized.scales.dtype == dtype
    exact = weight.astype(np.float64)
    restored = dequantize(got.quantized, scheme.granularity).astype(np.float64)
    u, v = got.factors.floats()
    norm = np.linalg.norm(exact)
    assert got.weight_error_without_lorc == pytest.approx(np.linalg.norm(exact - restored) / norm, rel=1e-4)
    assert got.weight_error == pytest.approx(np.linalg.norm(exact - restored - (u @ v).T) / norm, rel=1e-4)
    assert got.weight_error < got.weight_error_without_lorc
    layout = packed_layout(250, 200, 3, scheme.granularity)
    np.testing.assert_array_equal(unpack_codes(got.packed_codes(layout), layout), got.quantized.codes)
    zero_points = unpack_zero_points(got.packed_zero_points(layout), layout)
    np.testing.assert_array_equal(zero_points, got.quantized.zero_points)


def test_no_branch_asked_for() -> None:
    got = quantize_weight(noise(20, 30), Scheme(lorc_rank=0), np.float32)
    assert got.factors is None and got.dropped == ""
    assert got.weight_error == got.weight_error_without_lorc > 0


def test_a_branch_for_exact_codes_is_dropped() -> None:
    got = quantize_weight(np.zeros((20, 30), np.float32), Scheme(), np.float32)
    assert got.factors is None and got.dropped == "the 4-bit codes hold the weight exactly"
    assert got.weight_error == got.weight_error_without_lorc == 0


def test_a_branch_that_does_not_pay_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def useless(error: np.ndarray, *_: object) -> Factors:
        ones = np.ones((1, 1), np.float32)
        return Factors(
            np.ones((error.shape[1], 1), np.int8), np.ones((1, error.shape[0]), np.int8), ones, ones
        )

    monkeypatch.setattr(quantize, "low_rank", useless)
    scheme = dataclasses.replace(Scheme(), lorc_rank=1)
    got = quantize_weight(noise(40, 30), scheme, np.float32)
    assert got.factors is None
    assert got.dropped.startswith("a branch of rank 1 does not lower the weight error: 0.0")
    assert got.weight_error == got.weight_error_without_lorc


def test_a_weight_that_is_not_finite_is_counted_and_left() -> None:
    weight = noise(40, 30)
    weight[1, 2] = np.nan
    got = quantize_weight(weight, Scheme(), np.float32)
    assert got.nonfinite == 1 and got.factors is None and np.isnan(got.weight_error)
