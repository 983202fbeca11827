"""Bytes: literal goldens, and that unpacking inverts packing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zq2onnx.layout import packed_layout
from zq2onnx.numerics.packing import (
    pack_bits,
    pack_codes,
    pack_zero_points,
    qdq_codes,
    row_major,
    unpack_bits,
    unpack_codes,
    unpack_zero_points,
)
from zq2onnx.scheme import GROUP_SIZES, WEIGHT_BITS, PerBlock, PerChannel

granularities = st.sampled_from([PerChannel(), *map(PerBlock, GROUP_SIZES)])
ROW = np.array([[3, 1, 2, 0, 1, 3, 0, 2, 2, 2, 1, 1, 3, 0, 3, 1]], np.uint8)


def lying(codes: np.ndarray, transposed: bool) -> np.ndarray:
    return np.asfortranarray(codes) if transposed else codes


def golden(bits: int) -> list[int]:
    """A block of 16, packed by the sentences of the layout's documentation, code by code."""
    codes = [int(code) for code in ROW[0]]
    nib = lambda part: [part[2 * j] | part[2 * j + 1] << 4 for j in range(len(part) // 2)]  # noqa: E731
    if bits == 4:
        return nib(codes)
    if bits == 2:
        return [a | b << 2 for a, b in zip(nib(codes[:8]), nib(codes[8:]), strict=True)]
    if bits == 8:
        return nib([code & 15 for code in codes]) + nib([code >> 4 for code in codes])
    quarters = [codes[4 * i : 4 * i + 4] for i in range(4)]
    spare = [nib([code >> bit & 1 for code in quarters[3]]) for bit in range(3)]
    return [a | b << 3 for i in range(3) for a, b in zip(nib(quarters[i]), spare[i], strict=True)]


@pytest.mark.parametrize(
    ("bits", "want"),
    [
        (4, [0x13, 0x02, 0x31, 0x20, 0x22, 0x11, 0x03, 0x13]),
        (3, [0x1B, 0x8A, 0x39, 0x28, 0x22, 0x11]),
        (2, [0x9B, 0x46, 0x3D, 0x6C]),
        (8, [0x13, 0x02, 0x31, 0x20, 0x22, 0x11, 0x03, 0x13, 0, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_bytes_of_a_block(bits: int, want: list[int], transposed: bool) -> None:
    layout = packed_layout(16, 1, bits, PerBlock(16))
    packed = pack_codes(lying(ROW, transposed), layout)
    assert packed.shape == layout.codes_shape
    assert packed.reshape(-1).tolist() == want == golden(bits)


def test_eight_bits_are_all_low_half_bytes_then_all_high() -> None:
    codes = np.array([[0x12, 0xAB] + [0] * 14, [0xFF, 0x80] + [0] * 14], np.uint8)
    packed = pack_codes(codes, packed_layout(16, 2, 8, PerBlock(16)))
    assert packed.shape == (4, 1, 8)
    assert packed[:, 0, 0].tolist() == [0xB2, 0x0F, 0xA1, 0x8F]


def test_quarters_of_large_blocks() -> None:
    codes = (np.arange(128, dtype=np.uint8) % 8)[None]
    packed = pack_codes(codes, packed_layout(128, 1, 3, PerBlock(128)))
    # Codes 2j and 2j+1 are in the byte of quarter 0; codes 96 + 2j and 97 + 2j lend it their lowest bits.
    assert packed.shape == (1, 1, 48)
    assert packed[0, 0, :4].tolist() == [0x90, 0xB2, 0xD4, 0xF6]


@pytest.mark.parametrize("bits", WEIGHT_BITS)
def test_blocks_are_filled_up_with_zeros(bits: int) -> None:
    layout = packed_layout(17, 2, bits, PerBlock(16))
    packed = pack_codes(np.full((2, 17), (1 << bits) - 1, np.uint8), layout)
    assert packed.shape[1] == 2
    restored = unpack_codes(packed, packed_layout(32, 2, bits, PerBlock(16)))
    assert restored[:, :17].min() == (1 << bits) - 1
    assert not restored[:, 17:].any()


@given(st.integers(1, 70), st.integers(1, 600), st.sampled_from(WEIGHT_BITS), granularities, st.booleans())
def test_unpacking_codes_inverts_packing(n, k, bits, granularity, transposed) -> None:
    layout = packed_layout(k, n, bits, granularity)
    codes = np.random.default_rng(k).integers(0, 1 << bits, (n, k), dtype=np.uint8)
    packed = pack_codes(lying(codes, transposed), layout)
    assert packed.shape == layout.codes_shape
    np.testing.assert_array_equal(unpack_codes(packed, layout), codes)


def test_pieces_of_long_rows_and_many_rows() -> None:
    for n, k in ((300, 5000), (5000, 300), (2, 300_000)):
        layout = packed_layout(k, n, 3, PerBlock(64))
        codes = np.random.default_rng(0).integers(0, 8, (n, k), dtype=np.uint8)
        packed = pack_codes(codes, layout)
        np.testing.assert_array_equal(packed, pack_codes(np.asfortranarray(codes), layout))
        np.testing.assert_array_equal(unpack_codes(packed, layout), codes)


@given(st.integers(1, 9), st.integers(1, 3000), st.sampled_from(WEIGHT_BITS), granularities)
def test_unpacking_zero_points_inverts_packing(n, k, bits, granularity) -> None:
    layout = packed_layout(k, n, bits, granularity)
    shape = n, granularity.groups(k)
    zero_points = np.random.default_rng(k).integers(0, 1 << bits, shape, dtype=np.uint8)
    packed = pack_zero_points(zero_points, layout)
    assert packed.shape == layout.zero_points_shape
    np.testing.assert_array_equal(unpack_zero_points(packed, layout), zero_points)


@pytest.mark.parametrize(
    ("k", "bits", "granularity", "zero_points", "want"),
    [
        (100, 4, PerBlock(32), [1, 2, 3, 4], [0x21, 0x43]),
        (96, 2, PerBlock(32), [1, 2, 3], [0x21, 0x03]),
        (2048, 4, PerBlock(1024), [9, 10], [0x99, 0xAA]),
        (4096, 3, PerChannel(), [5], [0x55]),
        (256, 4, PerChannel(), [5], [0x05]),
        (96, 8, PerBlock(32), [0x12, 0xAB, 0x7F], [0xB2, 0x0F, 0xA1, 0x07]),
        (4096, 8, PerChannel(), [0x7C], [0xCC, 0x77]),
    ],
)
def test_bytes_of_zero_points(k, bits, granularity, zero_points, want) -> None:
    layout = packed_layout(k, 1, bits, granularity)
    packed = pack_zero_points(np.array([zero_points], np.uint8), layout)
    assert packed.shape == layout.zero_points_shape
    assert packed.reshape(-1).tolist() == want


def test_bytes_of_onnx_tensors() -> None:
    assert pack_bits(np.array([[1, 2], [3, 15], [7, 0]], np.uint8), 4).tolist() == [0x21, 0xF3, 0x07]
    assert pack_bits(np.array([1, 2, 3], np.uint8), 4).tolist() == [0x21, 0x03]
    assert pack_bits(np.array([-8, 7, -1], np.int8), 4).tolist() == [0x78, 0x0F]
    assert pack_bits(np.array([1, 2, 3, 0, 3], np.uint8), 2).tolist() == [0b00111001, 0b11]
    assert pack_bits(np.array([-2, -1, 0, 1], np.int8), 2).tolist() == [0b01001110]
    assert pack_bits(np.array([], np.uint8), 4).size == 0


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([4, 2]), st.booleans())
def test_unpacking_onnx_tensors_inverts_packing(rows, columns, bits, transposed) -> None:
    values = np.random.default_rng(rows).integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    packed = pack_bits(lying(values, transposed), bits)
    np.testing.assert_array_equal(unpack_bits(packed, bits, values.size).reshape(values.shape), values)


def test_onnx_packs_the_same() -> None:
    helper = pytest.importorskip("onnx.helper")
    numpy_helper = pytest.importorskip("onnx.numpy_helper")
    onnx = pytest.importorskip("onnx")
    values = np.random.default_rng(0).integers(0, 16, (700, 601), dtype=np.uint8)
    raw = pack_bits(np.asfortranarray(values), 4).tobytes()
    tensor = helper.make_tensor("x", onnx.TensorProto.UINT4, values.shape, raw, raw=True)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.uint8), values)


def test_transposing_in_tiles() -> None:
    values = np.random.default_rng(0).integers(0, 255, (1030, 70), dtype=np.uint8)
    for array in (values, values.T, values[::2], values.T[:, 3:]):
        copy = row_major(array)
        assert copy.flags.c_contiguous
        np.testing.assert_array_equal(copy, array)


@pytest.mark.parametrize("transposed", [False, True])
def test_raw_data_of_a_qdq_weight(transposed: bool) -> None:
    codes = lying(np.array([[1, 2, 3], [4, 5, 6]], np.uint8), transposed)  # [N, K]: the tensor is [K, N]
    assert qdq_codes(codes, 4) == bytes([0x41, 0x52, 0x63])
    assert qdq_codes(codes, 8) == bytes([1, 4, 2, 5, 3, 6])
    assert qdq_codes(codes, 4, midpoint=8) == bytes([0xC9, 0xDA, 0xEB])
    assert qdq_codes(codes, 8, midpoint=128) == bytes([0x81, 0x84, 0x82, 0x85, 0x83, 0x86])


@given(st.integers(1, 600), st.integers(1, 4), granularities, st.booleans(), st.integers(0, 2**32 - 1))
def test_whole_bytes_are_the_codes_themselves(
    k: int, n: int, granularity: PerChannel | PerBlock, transposed: bool, seed: int
) -> None:
    layout = packed_layout(k, n, 8, granularity, whole_bytes=True)
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (n, k), np.uint8)
    packed = pack_codes(lying(codes, transposed), layout)
    assert packed.shape == layout.codes_shape == (n, layout.k_blocks, layout.block_size)
    flat = packed.reshape(n, -1)
    np.testing.assert_array_equal(flat[:, :k], codes)
    assert not flat[:, k:].any()
    np.testing.assert_array_equal(unpack_codes(packed, layout), codes)
    zero_points = rng.integers(0, 256, layout.scales_shape, np.uint8)
    stored = pack_zero_points(zero_points, layout)
    assert stored.shape == layout.zero_points_shape
    np.testing.assert_array_equal(unpack_zero_points(stored, layout), zero_points)
