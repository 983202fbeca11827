"""What `benchmarks/cpu_matmul.py` concludes from its figures; the figures themselves are the machine's."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from benchmarks.cpu_verdict import (
    FLOAT32,
    FUNCTION,
    LEVEL_0,
    LEVEL_4,
    RANK_0,
    W4A16,
    Row,
    payment,
    verdict,
)
from benchmarks.products import FloatMatMul, OurMatMul, Shape, StockNBits, stored_bytes
from benchmarks.turns import median_ratio
from zq2onnx.opset import OPERATORS

SHAPE = Shape(4096, 4096, 128)
NONE = dict.fromkeys(OPERATORS, False)


def make_row(name: str, tokens: int, rank: int = 0, of_read: float = math.nan, **times: float) -> Row:
    forms = {"function": FUNCTION, "level_0": LEVEL_0, "level_4": LEVEL_4, "fp32": FLOAT32}
    forms |= {"rank_0": RANK_0, "w4a16": W4A16}
    return Row(
        name, SHAPE, tokens, rank, {}, {forms[key]: value for key, value in times.items()}, 10, of_read
    )


def line(lines: list[str], words: str) -> str:
    (found,) = [line for line in lines if words in line]
    return found


def test_worst_row_decides() -> None:
    rows = [make_row("W4A16", 1, level_0=1.6), make_row("W4A16", 1, level_0=1.7)]
    lines, holds = verdict(rows, NONE)
    assert holds
    assert "1.600    1.650  yes" in line(lines, "W4A16 M=1: times level 0")
    lines, holds = verdict([*rows, make_row("W4A16", 1, rank=8, level_0=1.49)], NONE)
    assert not holds
    assert "1.490    1.600  median only        W4A16 4096x4096 g128 M=1 r8" in line(lines, "W4A16 M=1")
    lines, holds = verdict([make_row("W4A16", 1, level_0=1.4)], NONE)
    assert not holds
    assert "1.400    1.400  no " in line(lines, "W4A16 M=1")


@pytest.mark.parametrize(("times", "holds"), [(1 / 1.03, True), (1 / 1.05, False)])
def test_rank_cost_is_bounded_from_above(times: float, holds: bool) -> None:
    assert verdict([make_row("W8A8", 1, rank=8, rank_0=times)], NONE)[1] is holds
    assert verdict([make_row("W8A8", 1, rank=32, rank_0=0.5)], NONE)[1], "only rank 8 has a bar"


def test_block_kernels_may_be_left_out() -> None:
    rows = [make_row("W4A8Block", 8, level_4=0.5)]
    lines, holds = verdict(rows, NONE)
    assert holds
    assert "no, not registered" in line(lines, "W4A8Block")
    assert not verdict(rows, NONE | {"MatMulW4A8Block": True})[1]
    assert not verdict([make_row("W4A8", 8, level_4=0.5)], NONE)[1], "per token there is no such choice"


def test_three_bits_are_held_to_four() -> None:
    assert verdict([make_row("W3A16", 1, w4a16=0.95)], NONE)[1]
    assert not verdict([make_row("W3A16", 1, w4a16=0.85)], NONE)[1]


@pytest.mark.parametrize(("name", "least"), [("W8A16", 0.7), ("W4A8", 0.7), ("W3A16", 0.5), ("W2A8", 0.3)])
def test_bandwidth(name: str, least: float) -> None:
    assert verdict([make_row(name, 1, of_read=least)], NONE)[1]
    assert not verdict([make_row(name, 1, of_read=least - 0.01)], NONE)[1]


def test_an_operator_pays_where_it_is_never_slower_than_its_function() -> None:
    few, many = make_row("W4A16", 1, function=1.0), make_row("W4A16", 128, function=0.9)
    assert " yes   no" in line(payment([few, many], NONE), "MatMulW4A16 ")
    slower = dataclasses.replace(many, times={FUNCTION: 0.89})
    assert " no    no" in line(payment([few, many, slower], NONE), "MatMulW4A16 ")
    assert " -     yes" in line(payment([few], NONE | {"MatMulW4A16": True}), "MatMulW4A16 ")


def test_bytes_are_those_that_are_stored() -> None:
    weights, scales = 4096 * 4096, 4096 * 32
    assert stored_bytes(FloatMatMul(), SHAPE) == 4 * weights
    assert stored_bytes(StockNBits(4, 0), SHAPE) == weights // 2 + 4 * scales + scales // 2
    assert stored_bytes(StockNBits(2, 4), SHAPE) == weights // 4 + 4 * scales + scales // 4
    for name, codes, zero_points in (
        ("MatMulW8A16", weights, scales),
        ("MatMulW3A16", 3 * weights // 8, scales // 2),
        ("MatMulW2A8LoRC", weights // 4, scales // 2),
    ):
        assert stored_bytes(OurMatMul(OPERATORS[name], 8), SHAPE) == codes + 4 * scales + zero_points


def test_ratios_are_of_turns_of_one_round() -> None:
    # The machine is twice as slow in the last two rounds; the second form sat out two.
    slow, fast = np.array([2.0, 2, 2, 4, 4]), np.array([1.0, math.nan, math.nan, 2, 2])
    assert median_ratio(slow, fast) == 2
    assert math.isnan(median_ratio(slow, np.full(5, math.nan)))
