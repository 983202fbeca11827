"""The oracle: every `ai.zq2onnx` operator in plain NumPy, against which all kernels are tested.

Written from the words of `zq2onnx.layout` and `zq2onnx.opset` alone and meant to be read, not to
be fast. It shares no code with the packing that writes the files nor with the operators' bodies,
so that a mistake in either shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zq2onnx.opset import Operator
from zq2onnx.scheme import ActGranularity

Array = NDArray[Any]


def nibbles(packed: Array) -> Array:
    """Split bytes into nibbles, low first: uint8 `[.., n]` to uint8 `[.., 2n]`.

    >>> nibbles(np.array([0x21, 0x43], np.uint8)).tolist()
    [1, 2, 3, 4]
    """
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def unpack_codes(bits: int, packed: Array) -> Array:
    """Unpack the codes of `B`.

    Args:
        bits: bits per code: 8, 4, 3 or 2.
        packed: uint8 `[N, k_blocks, block_size * bits / 8]`, in the layout of `zq2onnx.layout`;
            8 bits: `[2N, k_blocks, block_size / 2]`.

    Returns:
        uint8 `[N, k_blocks * block_size]`, padding included.

    >>> unpack_codes(2, np.array([[[0b1001_0100]]], np.uint8)).tolist()
    [[0, 1, 1, 2]]
    """
    match bits:
        case 4:
            codes = nibbles(packed)
        case 2:
            both = nibbles(packed)
            codes = np.concatenate([both & 3, both >> 2], axis=-1)
        case 3:
            planes = [nibbles(plane) for plane in np.split(packed, 3, axis=-1)]
            quarters = [plane & 7 for plane in planes]
            last = (planes[0] >> 3) | (planes[1] >> 3) << 1 | (planes[2] >> 3) << 2
            codes = np.concatenate([*quarters, last], axis=-1)
        case 8:
            low, high = np.split(packed, 2)
            codes = nibbles(low) | nibbles(high) << 4
        case _:
            raise ValueError(f"{bits} bits per code; 8, 4, 3 or 2 are known")
    return codes.reshape(len(codes), -1)


def unpack_zero_points(bits: int, repeat: int, groups: int, packed: Array) -> Array:
    """Unpack `zero_points`, uint8 `[N, bytes]`, to uint8 `[N, groups]`: one for each stored scale.

    Args:
        repeat: blocks that share a scale. With 1 a byte holds the nibbles of two groups; with more,
            that of one group, twice.

    >>> unpack_zero_points(4, 1, 3, np.array([[0x21, 0x03]], np.uint8)).tolist()
    [[1, 2, 3]]
    >>> unpack_zero_points(8, 4, 1, np.array([[0x55], [0xAA]], np.uint8)).tolist()
    [[165]]
    """
    if bits == 8:
        low, high = np.split(packed, 2)
        return unpack_zero_points(4, repeat, groups, low) | unpack_zero_points(4, repeat, groups, high) << 4
    each = packed & 15 if repeat > 1 else nibbles(packed)
    return each[:, :groups]


def unpack_weight(
    operator: Operator,
    K: int,
    N: int,
    block_size: int,
    scale_repeat: int,
    zero_point_repeat: int,
    B: Array,
    scales: Array,
    zero_points: Array,
    stored_rows: int | None = None,
) -> NDArray[np.float64]:
    """The float weight that an operator multiplies with: `(code - zero point) * scale`.

    Args:
        operator: which one; it chooses the layout.
        K, N, block_size, scale_repeat, zero_point_repeat, stored_rows: the node's attributes.
        B: uint8 `[N, k_blocks, block_size * bits / 8]`; half bytes: `[2N, k_blocks, block_size / 2]`.
        scales: `[N, groups]`, any float type.
        zero_points: uint8, as `PackedLayout.zero_points_shape` says.

    Returns:
        `[N, K]`. Exact: a difference of bytes times a float of at most 24 bits.

    Raises:
        ValueError: the shapes do not belong to the attributes.
    """
    repeat, groups = scale_repeat, scales.shape[1]
    k_blocks = -(-K // block_size)
    expected = (N, k_blocks, block_size * operator.bits // 8)
    if operator.half_bytes:
        expected = (2 * N, k_blocks, block_size // 2)
    if (
        stored_rows not in (None, 2 * N)
        or B.shape != expected
        or scales.shape[0] != N
        or groups != -(-k_blocks // repeat)
    ):
        raise ValueError(
            f"B {B.shape} and scales {scales.shape}; K={K}, N={N} and blocks of {block_size} "
            f"repeated {repeat} times need {expected} and {(N, -(-k_blocks // repeat))}"
        )
    if zero_point_repeat != (repeat if operator.whole_bytes else (repeat + 1) // 2):
        raise ValueError(f"zero points repeated {zero_point_repeat} times beside scales {repeat} times")
    if operator.whole_bytes:
        codes, zeros = B.reshape(N, -1), zero_points
    else:
        codes = unpack_codes(operator.bits, B)
        zeros = unpack_zero_points(operator.bits, repeat, groups, zero_points)
    group_size = block_size * repeat

    def each(values: Array) -> Array:
        return np.repeat(values.astype(np.float64), group_size, axis=1)[:, :K]

    return (codes[:, :K].astype(np.float64) - each(zeros)) * each(scales)


def low_rank(inputs: Mapping[str, Array]) -> NDArray[np.float64]:
    """The branch as a matrix, `(U * U_scales) @ (V * V_scales)`: `[K, N]`."""
    factors = {name: inputs[name].astype(np.float64) for name in ("U", "V", "U_scales", "V_scales")}
    return (factors["U"] * factors["U_scales"]) @ (factors["V"] * factors["V_scales"])


NEAR_TIE = 1e-4
"""How near to the middle between two steps a quotient is undecided: float32 has 24 bits, and a kernel that
multiplies by `127 / max` rather than divides by `max / 127` is off by a few of their last of up to 127."""


def round_activations(a: Array, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Round to int8 by blocks of the last axis: `round(a / s) * s` with `s = max|a| / 127`.

    Args:
        a: float `[.., K]`.
        size: channels that share a scale; the last block may be short. K: a scale for each token.

    Returns:
        What the products are made of, `[.., K]`, and for each value how far off another precision may
        be in its choice of a step: `s` where the quotient is within `NEAR_TIE` of the middle of two, else 0.

    >>> [part.tolist() for part in round_activations(np.array([[127.0, 2.5, 3.5, 0.4, 0, 0]]), 4)]
    [[[127.0, 2.0, 4.0, 0.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 0.0, 0.0, 0.0]]]
    """
    k = a.shape[-1]
    wide = a.astype(np.float32)
    blocks = -(-k // size)
    filled = np.zeros((*a.shape[:-1], blocks * size), np.float32)
    filled[..., :k] = np.abs(wide)
    greatest = filled.reshape(*a.shape[:-1], blocks, size).max(axis=-1)
    scales = np.maximum(greatest / np.float32(127), np.finfo(np.float32).tiny)
    each = np.repeat(scales, size, axis=-1)[..., :k].astype(np.float64)
    quotients = wide.astype(np.float64) / each
    middle = np.abs(np.abs(quotients - np.trunc(quotients)) - 0.5) < NEAR_TIE
    return np.rint(quotients) * each, np.where(middle, each, 0.0)


def rounding_size(operator: Operator, attributes: Mapping[str, Any]) -> int | None:
    """How many channels of a token share an int8 scale; None where activations are float."""
    match operator.act_granularity:
        case ActGranularity.TOKEN:
            return int(attributes["K"])
        case ActGranularity.BLOCK:
            return int(attributes["block_size"])
        case _:
            return None


def matmul(
    operator: Operator, attributes: Mapping[str, Any], inputs: Mapping[str, Array]
) -> NDArray[np.float64]:
    """What a node of `operator` computes: `rnd(A) · deq(B)ᵀ + (A·U)·V + bias`.

    Args:
        operator: which one.
        attributes: those of `operator.attributes`.
        inputs: arrays by the names of `operator.inputs`; `bias` may be absent.

    Returns:
        `[.., N]`, accumulated and returned in float64.
    """
    return matmul_with_slack(operator, attributes, inputs)[0]


def matmul_with_slack(
    operator: Operator, attributes: Mapping[str, Any], inputs: Mapping[str, Array], *, rounded: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`matmul`, and for each result how far off it may be by activations that lie between two int8 steps.

    About one activation in ten thousand is so near the middle that float32 may choose either step. The
    slack is what the product would change by if all of them went the other way: 0 for most tokens.

    Args:
        rounded: whether activations are rounded as the operator says; else they are taken as they are.
    """
    weight = unpack_weight(
        operator,
        **attributes,
        B=inputs["B"],
        scales=inputs["scales"],
        zero_points=inputs["zero_points"],
    )
    a = inputs["A"].astype(np.float64)
    size = rounding_size(operator, attributes) if rounded else None
    multiplied, undecided = (a, np.zeros_like(a)) if size is None else round_activations(inputs["A"], size)
    result = multiplied @ weight.T
    slack = undecided @ np.abs(weight).T
    if operator.lorc:
        result = result + a @ low_rank(inputs)
    if inputs.get("bias") is not None:
        result = result + inputs["bias"][: len(weight)].astype(np.float64)
    return result, slack
