"""What a budget may be."""

from __future__ import annotations

import pytest

from zq2onnx.errors import UserError
from zq2onnx.evaluation.paper_class import PaperClass
from zq2onnx.planning.budget import Bits, Bytes, Quality, parse_budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("3.5bits", Bits(3.5)),
        ("1 bit", Bits(1.0)),
        ("120MB", Bytes(120_000_000)),
        ("120 mb", Bytes(120_000_000)),
        ("1.25GB", Bytes(1_250_000_000)),
        ("12345678B", Bytes(12_345_678)),
        ("class-1", Quality(PaperClass.CLASS_1)),
        ("Class_2", Quality(PaperClass.CLASS_2)),
    ],
)
def test_budget_is_read(text: str, budget: object) -> None:
    assert parse_budget(text) == budget
    assert parse_budget(str(parse_budget(text))) == budget


@pytest.mark.parametrize("text", ["", "3.5", "small", "-1MB", "class-3", "1e3MB", "3.5 bytes", "nanbits"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--budget .*; required: bits .*; such as 3.5bits, 120MB, class-1"):
        parse_budget(text)
