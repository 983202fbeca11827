"""The oracle against literal bytes, and against a packer written code by code from the layout's words."""

from __future__ import annotations

import numpy as np
import pytest

from tests.operator_model import operator_layout, random_constants
from zq2onnx.layout import packed_layout
from zq2onnx.opset import OPERATORS, Operator, node_attributes
from zq2onnx.runtime import reference
from zq2onnx.scheme import ActGranularity, Activation, parse_granularity


def pack_code_by_code(bits: int, block: list[int]) -> list[int]:
    """The bytes of one block, one code at a time: slow, and nothing in it is shared with the oracle."""
    size = len(block)
    packed = [0] * (size * bits // 8)

    def put(byte: int, nibble: int, value: int) -> None:
        packed[byte] |= value << (4 * nibble)

    for at, code in enumerate(block):
        if bits == 4:
            put(at // 2, at % 2, code)
        elif bits == 2:
            half, inside = divmod(at, size // 2)
            put(inside // 2, inside % 2, code << (2 * half))
        elif bits == 8:
            put(at // 2, at % 2, code & 15)
            put(size // 2 + at // 2, at % 2, code >> 4)
        else:
            quarter, inside = divmod(at, size // 4)
            plane_bytes = size // 8
            if quarter < 3:
                put(quarter * plane_bytes + inside // 2, inside % 2, code)
            else:
                for plane in range(3):
                    bit = code >> plane & 1
                    put(plane * plane_bytes + inside // 2, inside % 2, bit << 3)
    return packed


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 256])
def test_codes_are_those_packed_one_by_one(bits: int, block_size: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 2, block_size), np.uint8)
    packed = np.array([[pack_code_by_code(bits, block) for block in row] for row in codes.tolist()], np.uint8)
    if bits == 8:  # the block's two halves are rows of their own
        packed = np.concatenate(np.split(packed, 2, axis=-1))
    np.testing.assert_array_equal(reference.unpack_codes(bits, packed), codes.reshape(3, -1))


GOLDEN_CODES = {
    4: ("10325476 98badcfe", list(range(16))),
    8: ("10325476 98badcfe 00000000 00000000", list(range(16))),
    2: ("e1b40000", [1, 2, 0, 3, 0, 0, 0, 0, 0, 3, 1, 2, 0, 0, 0, 0]),
    3: ("18ff 2080 4700", [0, 1, 7, 7, 0, 2, 0, 0, 7, 4, 0, 0, 1, 0, 1, 3]),
}


@pytest.mark.parametrize("bits", GOLDEN_CODES)
def test_literal_bytes(bits: int) -> None:
    text, codes = GOLDEN_CODES[bits]
    packed = np.frombuffer(bytes.fromhex(text), np.uint8).reshape(2 if bits == 8 else 1, 1, -1)
    assert reference.unpack_codes(bits, packed).tolist() == [codes]
    assert pack_code_by_code(bits, codes) == packed.reshape(-1).tolist()


@pytest.mark.parametrize(
    ("bits", "repeat", "groups", "text", "zero_points"),
    [
        (4, 1, 3, "210f", [1, 2, 15]),
        (2, 1, 2, "31", [1, 3]),
        (4, 4, 2, "5599", [5, 9]),
        (4, 16, 1, "77", [7]),
        (8, 1, 3, "210f 4305", [0x31, 0x42, 0x5F]),
        (8, 2, 2, "1122 8899", [0x81, 0x92]),
    ],
)
def test_literal_zero_points(bits: int, repeat: int, groups: int, text: str, zero_points: list[int]) -> None:
    packed = np.frombuffer(bytes.fromhex(text), np.uint8).reshape(2 if bits == 8 else 1, -1)
    assert reference.unpack_zero_points(bits, repeat, groups, packed).tolist() == [zero_points]


def test_weight_is_code_less_zero_point_times_scale() -> None:
    operator = Operator(4, Activation.A16, lorc=False)
    packed = np.frombuffer(bytes.fromhex("10325476 98badcfe"), np.uint8).reshape(1, 1, 8)
    scales, zero_points = np.array([[0.5]], np.float32), np.array([[0x03]], np.uint8)
    weight = reference.unpack_weight(operator, 5, 1, 16, 1, 1, packed, scales, zero_points)
    assert weight.tolist() == [[-1.5, -1.0, -0.5, 0.0, 0.5]]


@pytest.mark.parametrize("group_size", ["row", 512, 1024, 64])
def test_every_weight_has_the_scale_of_its_group(group_size: str | int) -> None:
    granularity = parse_granularity(group_size)
    layout = packed_layout(1500, 3, 8, granularity)
    operator = Operator(8, Activation.A16, lorc=False)
    constants = random_constants(operator, layout, np.random.default_rng(0), bias=False)
    constants["scales"] = np.arange(1, 3 * layout.groups + 1, dtype=np.float32).reshape(3, -1)
    constants["zero_points"][:] = 0
    weight = reference.unpack_weight(operator, **node_attributes(layout), **constants)
    size = 1500 if group_size == "row" else int(group_size)
    codes = reference.unpack_codes(8, constants["B"])
    for row, column in [(0, 0), (1, size - 1), (2, min(size, 1499)), (0, 1499), (2, 1024)]:
        scale = constants["scales"][row, column // size]
        assert weight[row, column] == codes[row, column] * scale


@pytest.mark.parametrize("name", OPERATORS)
def test_product_branch_and_bias_add_up(name: str) -> None:
    operator = OPERATORS[name]
    layout = operator_layout(operator, 20, 4, 16)
    rng = np.random.default_rng(1)
    inputs = random_constants(operator, layout, rng, rank=2) | {"A": np.eye(20, dtype=np.float32)}
    attributes = node_attributes(layout)
    parts = {key: inputs[key] for key in ("B", "scales", "zero_points")}
    expected = reference.unpack_weight(operator, **attributes, **parts).T + inputs["bias"][:4]
    if operator.lorc:
        u = inputs["U"] * inputs["U_scales"].astype(np.float64)
        v = inputs["V"] * inputs["V_scales"].astype(np.float64)
        expected = expected + u @ v
    # One activation a token is 127 steps, each a float32.
    rtol = 1e-14 if operator.activation is Activation.A16 else 1e-6
    np.testing.assert_allclose(reference.matmul(operator, attributes, inputs), expected, rtol=rtol)


def test_whole_bytes_are_codes_and_zero_points_as_they_are() -> None:
    operator = Operator(8, Activation.A8, lorc=False, act_granularity=ActGranularity.BLOCK)
    packed = np.arange(40, 72, dtype=np.uint8).reshape(1, 2, 16)
    scales, zero_points = np.array([[0.5, 2.0]], np.float32), np.array([[42, 50]], np.uint8)
    weight = reference.unpack_weight(operator, 18, 1, 16, 1, 1, packed, scales, zero_points)
    assert weight.tolist() == [[*(0.5 * (code - 42) for code in range(40, 56)), 12.0, 14.0]]


A = np.array([[254.0, 1.0, 3.0, 1.9, 0.5, -0.2], [0, 0, 0, 0, 0, 4.0]], np.float32)
TOKEN = [[254.0, 0.0, 4.0, 2.0, 0.0, 0.0], [0, 0, 0, 0, 0, 4.0]]
BLOCKS = [[254.0, 0.0, 4.0, 2.0, 0.5, -0.2], [0, 0, 0, 0, 0, 4.0]]
"""Steps of 2 and of 0.5 / 127; 1 and 3 lie between two."""


@pytest.mark.parametrize(("size", "expected"), [(6, TOKEN), (4, BLOCKS)])
def test_activations_in_steps_of_their_own_scale(size: int, expected: list[list[float]]) -> None:
    rounded, undecided = reference.round_activations(A, size)
    np.testing.assert_allclose(rounded, expected, atol=0.5 / 254)
    assert undecided.tolist() == [[0, 2.0, 2.0, 0, 0, 0], [0] * 6]


@pytest.mark.parametrize("granularity", [ActGranularity.TOKEN, ActGranularity.BLOCK])
def test_slack_is_what_undecided_activations_amount_to(granularity: ActGranularity) -> None:
    operator = Operator(4, Activation.A8, lorc=False, act_granularity=granularity)
    layout = operator_layout(operator, 6, 5, 16)
    inputs = random_constants(operator, layout, np.random.default_rng(2), bias=False) | {"A": A}
    attributes = node_attributes(layout)
    parts = {key: inputs[key] for key in ("B", "scales", "zero_points")}
    weight = reference.unpack_weight(operator, **attributes, **parts)
    values, slack = reference.matmul_with_slack(operator, attributes, inputs)
    np.testing.assert_allclose(slack, [2 * np.abs(weight[:, 1:3]).sum(1), np.zeros(5)])
    other = values[0] + 2 * weight[:, 1]  # 1 becomes 2, not 0
    assert (np.abs(other - values[0]) <= slack[0]).all()
    as_floats, none = reference.matmul_with_slack(operator, attributes, inputs, rounded=False)
    np.testing.assert_allclose(as_floats, A @ weight.T, rtol=1e-6)
    assert not none.any()


def test_shapes_that_do_not_belong_are_refused() -> None:
    operator = Operator(4, Activation.A16, lorc=False)
    layout = packed_layout(64, 4, 4, parse_granularity(32))
    constants = random_constants(operator, layout, np.random.default_rng(2), bias=False)
    attributes = node_attributes(layout)
    with pytest.raises(ValueError, match=r"K=65, N=4 and blocks of 32"):
        reference.unpack_weight(operator, **attributes | {"K": 65}, **constants)
    with pytest.raises(ValueError, match="repeated 3 times"):
        reference.unpack_weight(operator, **attributes | {"zero_point_repeat": 3}, **constants)
