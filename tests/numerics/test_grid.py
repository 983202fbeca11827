"""Grids and rounding to nearest."""

from __future__ import annotations

import dataclasses

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq2onnx.numerics import chunks
from zq2onnx.numerics.grid import dequantize
from zq2onnx.numerics.rtn import quantize_rtn, round_to_nearest
from zq2onnx.scheme import GROUP_SIZES, WEIGHT_BITS, Clip, PerBlock, PerChannel, Scheme

SCALE_DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

granularities = st.sampled_from([PerChannel(), *map(PerBlock, GROUP_SIZES)])
schemes = st.builds(
    Scheme, bits=st.sampled_from(WEIGHT_BITS), granularity=granularities, symmetric=st.booleans()
)
EXTREME = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 300))


def weights(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, k), dtype=np.float32)


def per_weight(values: np.ndarray, scheme: Scheme, k: int) -> np.ndarray:
    """Values of groups, `[N, G]`, repeated along the weights of each: `[N, K]`."""
    size = getattr(scheme.granularity, "size", k)
    return np.repeat(values.astype(np.float64), size, axis=1)[:, :k]


def assert_within_half_a_step(weight: np.ndarray, scheme: Scheme, dtype: np.dtype) -> None:
    quantized = quantize_rtn(weight, scheme, dtype)
    step = per_weight(quantized.scales, scheme, weight.shape[1])
    error = np.abs(weight.astype(np.float64) - dequantize(quantized, scheme.granularity))
    # Beside rounding to the grid there is float32's rounding of quotient, product and difference.
    allowed = step * (0.5 + 1e-4)
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert error[worst] <= allowed[worst], f"{worst}: off by {error[worst]}, step {step[worst]}"


@given(
    schemes, st.sampled_from(SCALE_DTYPES), shapes, st.integers(-30, 12), st.booleans(), st.integers(0, 9)
)  # fmt: skip
def test_no_weight_is_further_than_half_a_step(scheme, dtype, shape, exponent, transposed, seed) -> None:
    weight = weights(*shape, seed) * np.float32(2.0**exponent)
    assert_within_half_a_step(np.asfortranarray(weight) if transposed else weight, scheme, dtype)


@given(schemes, hnp.arrays(np.float32, shapes, elements=EXTREME))
def test_no_adversarial_weight_is_further_than_half_a_step(scheme, weight) -> None:
    assert_within_half_a_step(weight, scheme, np.dtype(np.float32))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_grid_is_the_pinned_one(bits: int, symmetric: bool) -> None:
    scheme = Scheme(bits=bits, granularity=PerBlock(32), symmetric=symmetric)
    weight = weights(7, 96) + np.float32(0.3)
    got = quantize_rtn(weight, scheme, np.float32)
    groups = weight.reshape(7, 3, 32)
    if symmetric:
        scale = np.abs(groups).max(axis=2) / np.float32(2 ** (bits - 1) - 1)
        zero = np.full((7, 3), 2 ** (bits - 1))
    else:
        low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
        scale = (high - low) / np.float32(2**bits - 1)
        zero = np.rint(-low / scale)
    codes = np.rint(groups / scale[..., None]) + zero[..., None]
    np.testing.assert_array_equal(got.scales, scale)
    np.testing.assert_array_equal(got.zero_points, zero)
    np.testing.assert_array_equal(got.codes, np.clip(codes, 0, 2**bits - 1).reshape(7, 96))


def test_codes_of_a_literal_row() -> None:
    row = np.array([[-1.0, -0.5, 0.0, 0.5, 1.0, 2.0]], np.float32)
    got = quantize_rtn(row, Scheme(bits=2, granularity=PerChannel()), np.float32)
    assert got.scales.tolist() == [[1.0]]
    assert got.zero_points.tolist() == [[1]]
    assert got.codes.tolist() == [[0, 1, 1, 1, 2, 3]]  # half to even, as QuantizeLinear rounds


@pytest.mark.parametrize("dtype", SCALE_DTYPES, ids=str)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.3, 1e-6, -1e-7, 60000.0, 3e38, -3e38, 1e-45])
def test_constant_rows(value: float, symmetric: bool, dtype: np.dtype) -> None:
    scheme = Scheme(bits=4, granularity=PerBlock(16), symmetric=symmetric)
    weight = np.full((3, 20), value, np.float32)
    got = quantize_rtn(weight, scheme, dtype)
    scales = got.scales.astype(np.float64)
    assert np.isfinite(scales).all() and (scales > 0).all()
    restored = dequantize(got, scheme.granularity)
    if value == 0:
        assert not restored.any()
    if abs(value) <= 60000 or dtype != np.float16:
        assert np.abs(restored - weight.astype(np.float64)).max() <= 0.51 * scales.max()


@given(schemes, st.sampled_from(SCALE_DTYPES), st.integers(-140, 127), st.integers(0, 9))
def test_scales_are_always_usable_and_codes_fit_the_stored_scale(scheme, dtype, exponent, seed) -> None:
    weight = np.ldexp(np.clip(weights(3, 70, seed), -0.9, 0.9), exponent).astype(np.float32)
    got = quantize_rtn(weight, scheme, dtype)
    assert got.scales.dtype == dtype
    scale = per_weight(got.scales, scheme, 70)
    assert np.isfinite(scale).all() and (scale > 0).all()
    zero = per_weight(got.zero_points, scheme, 70)
    nearest = np.clip(np.rint(weight / scale) + zero, 0, 2**scheme.bits - 1)
    # float64 here, float32 there: they may part ways at a tie, by one code.
    off = nearest != got.codes
    fraction = np.abs((weight / scale) % 1 - 0.5)
    assert (fraction[off] < 1e-4).all()


def test_eight_bit_float16_scales_use_subnormals() -> None:
    weight = weights(16, 128) * np.float32(1e-3)
    scheme = Scheme(bits=8)
    error = dequantize(quantize_rtn(weight, scheme, np.float16), scheme.granularity) - weight
    assert np.linalg.norm(error) < 0.01 * np.linalg.norm(weight)


@pytest.mark.parametrize("bits", WEIGHT_BITS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("magnitude", [1.0, 1e-30, 1e30])
def test_clip_search_never_does_worse(bits: int, symmetric: bool, magnitude: float) -> None:
    scheme = Scheme(bits=bits, granularity=PerBlock(32), symmetric=symmetric)
    weight = weights(40, 100) * np.float32(magnitude)
    plain = dequantize(quantize_rtn(weight, scheme, np.float32), scheme.granularity)
    clipped = dataclasses.replace(scheme, clip=Clip.MSE)
    searched = dequantize(quantize_rtn(weight, clipped, np.float32), scheme.granularity)

    def losses(restored: np.ndarray) -> np.ndarray:
        squares = ((weight.astype(np.float64) - restored) / magnitude) ** 2
        return np.add.reduceat(squares, [0, 32, 64, 96], axis=1)

    assert (losses(searched) <= losses(plain) * (1 + 1e-5)).all()
    if bits < 8:  # the steps of eight bits are finer than those of the search
        assert losses(searched).sum() < losses(plain).sum() * 0.99


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_other_float_types_are_read_as_their_values(dtype, transposed: bool) -> None:
    weight = weights(64, 70).astype(dtype)
    weight = np.asfortranarray(weight) if transposed else weight
    got = quantize_rtn(weight, Scheme(), np.float32)
    want = quantize_rtn(weight.astype(np.float32), Scheme(), np.float32)
    np.testing.assert_array_equal(got.codes, want.codes)
    np.testing.assert_array_equal(got.scales, want.scales)


@pytest.mark.parametrize("granularity", [PerBlock(16), PerBlock(128), PerBlock(1024), PerChannel()])
def test_order_in_memory_and_size_of_pieces_change_nothing(granularity, monkeypatch) -> None:
    weight, scheme = weights(70, 1100), Scheme(granularity=granularity)
    wants = round_to_nearest(weight, scheme, np.float32, keep_error=True)
    for piece in (100, 5000, 1 << 17):
        monkeypatch.setattr(chunks, "CHUNK", piece)
        for lying in (weight, np.asfortranarray(weight), np.repeat(weight, 2, axis=0)[::2]):
            got = round_to_nearest(lying, scheme, np.float32, keep_error=True)
            for name in ("codes", "scales", "zero_points"):
                np.testing.assert_array_equal(getattr(got.quantized, name), getattr(wants.quantized, name))
            np.testing.assert_array_equal(got.error, wants.error)
            assert got.error_energy == pytest.approx(wants.error_energy, rel=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_seen_on_the_way(transposed: bool) -> None:
    weight = weights(50, 333)
    weight = np.asfortranarray(weight) if transposed else weight
    got = round_to_nearest(weight, Scheme(), np.float32, keep_error=True)
    restored = dequantize(got.quantized, Scheme().granularity)
    np.testing.assert_allclose(got.error, weight - restored, atol=1e-6)
    assert got.weight_energy == pytest.approx(float((weight.astype(np.float64) ** 2).sum()), rel=1e-5)
    assert got.error_energy == pytest.approx(float((got.error.astype(np.float64) ** 2).sum()), rel=1e-5)
    assert got.nonfinite == 0
    assert round_to_nearest(weight, Scheme(), np.float32).error is None


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_that_are_not_finite_are_counted(transposed: bool) -> None:
    weight = weights(50, 333)
    weight[3, 4], weight[49, 332], weight[7, 0] = np.nan, np.inf, -np.inf
    weight = np.asfortranarray(weight) if transposed else weight
    assert round_to_nearest(weight, Scheme(clip=Clip.MSE), np.float32).nonfinite == 3
