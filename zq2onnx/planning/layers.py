"""What each linear layer is to its transformer block, told by the graph alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from zq2onnx.calibration.linears import Linear, find_linears
from zq2onnx.passes.partition import Piece, blocks, partition
from zq2onnx.planning.costs import ATTENTION_IN, ATTENTION_OUT, MLP_DOWN, MLP_UP, OTHER


@dataclass(frozen=True)
class Place:
    """Where a linear layer is.

    Attributes:
        kind: one of `KINDS`.
        block: its transformer block, from 0.
    """

    kind: str
    block: int


def find_places(model: ir.Model) -> dict[str, Place]:
    """The place of every linear of a float graph, by node name, in the order of the pieces.

    In each half of a block those linears that read what its first one reads lead in (query, key and
    value; gate and up), the others lead out.
    """
    linears = find_linears(model)
    pieces = partition(model)
    places: dict[str, Place] = {}
    for number, group in enumerate(blocks(pieces)):
        for piece in group:
            places |= _places_in(piece, number, linears, len(group) > 1)
    return places


def _places_in(piece: Piece, block: int, linears: dict[str, Linear], whole: bool) -> dict[str, Place]:
    """The linears of a piece; `whole` where it is half of a block of two."""
    found = [linears[node.name or ""] for node in piece.nodes if (node.name or "") in linears]
    if not piece.attention and not whole:
        return {linear.name: Place(OTHER, block) for linear in found}
    kinds = (ATTENTION_IN, ATTENTION_OUT) if piece.attention else (MLP_UP, MLP_DOWN)
    return {linear.name: Place(kinds[not _leads_in(linear, found)], block) for linear in found}


def _leads_in(linear: Linear, others: Sequence[Linear]) -> bool:
    return linear.activation is others[0].activation
