"""What a user is willing to spend: bits per weight, bytes of the file, or perplexity."""

from __future__ import annotations

import re
from dataclasses import dataclass

from zq2onnx.errors import UserError
from zq2onnx.evaluation.paper_class import PaperClass

_UNITS = {"b": 1, "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000}
_REQUIRED = "bits per weight, a size, or a class of ZeroQuant-V2"
_REMEDY = "such as 3.5bits, 120MB, class-1"


@dataclass(frozen=True)
class Bits:
    """At most so many effective bits per quantized weight: codes, scales, zero points and factors."""

    limit: float

    def __str__(self) -> str:
        return f"{self.limit:g}bits"


@dataclass(frozen=True)
class Bytes:
    """At most so many bytes of the whole output with its data."""

    limit: int

    def __str__(self) -> str:
        return f"{self.limit / 1e6:.6f}".rstrip("0").rstrip(".") + "MB"


@dataclass(frozen=True)
class Quality:
    """The least bytes whose perplexity is of a class."""

    limit: PaperClass

    def __str__(self) -> str:
        return self.limit.value.lower()


Budget = Bits | Bytes | Quality


def parse_budget(text: str) -> Budget:
    """Read a budget. MB are 10^6 bytes.

    >>> parse_budget("3.5bits"), parse_budget("120 MB"), str(parse_budget("1.5GB"))
    (Bits(limit=3.5), Bytes(limit=120000000), '1500MB')

    Raises:
        UserError: it is none.
    """
    word = text.strip().lower().replace(" ", "").replace("_", "-")
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)(bits?|[kmg]?b)", word):
        number, unit = float(match[1]), match[2]
        return Bits(number) if unit.startswith("bit") else Bytes(round(number * _UNITS[unit]))
    for kind in (PaperClass.CLASS_1, PaperClass.CLASS_2):
        if word == kind.value.lower():
            return Quality(kind)
    raise UserError(f"--budget {text}", _REQUIRED, _REMEDY)
