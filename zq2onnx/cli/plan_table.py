"""Prints what was chosen for each layer."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

from rich.table import Table

from zq2onnx.cli.console import stderr, stdout
from zq2onnx.planning.costs import KINDS
from zq2onnx.scheme import Scheme

if TYPE_CHECKING:
    from zq2onnx.planning.plan import Plan, PlannedLayer


def print_plan(plan: Plan) -> None:
    """A row for each transformer block, a column for each kind of layer; then what it comes to."""
    for warning in plan.warnings:
        stderr.print(f"warning: {warning}")
    kinds = [kind for kind in KINDS if any(layer.place.kind == kind for layer in plan.layers)]
    table = Table(title=f"plan for --budget {plan.budget}", caption=_sum(plan))
    table.add_column("block", justify="right")
    for kind in kinds:
        table.add_column(kind)
    ordered = sorted(plan.layers, key=lambda layer: layer.place.block)
    for block, layers in groupby(ordered, key=lambda layer: layer.place.block):
        of_kind: dict[str, list[PlannedLayer]] = {kind: [] for kind in kinds}
        for layer in layers:
            of_kind[layer.place.kind].append(layer)
        table.add_row(str(block), *(_cell(of_kind[kind]) for kind in kinds))
    stdout.print(table)


def _cell(layers: Iterable[PlannedLayer]) -> str:
    """Runs of equal schemes, in graph order."""
    runs = [(text, len([*run])) for text, run in groupby(_short(layer.scheme) for layer in layers)]
    return ", ".join(text if count == 1 else f"{count} x {text}" for text, count in runs)


def _short(scheme: Scheme) -> str:
    """A scheme in few signs.

    >>> _short(Scheme(bits=3, lorc_rank=8)), _short(Scheme(lorc_rank=0))
    ('w3 g128 r8', 'w4 g128')
    """
    size = str(scheme.granularity)
    words = [f"w{scheme.bits}", size if size == "row" else f"g{size}"]
    return " ".join([*words, f"r{scheme.lorc_rank}"] if scheme.lorc_rank else words)


def _sum(plan: Plan) -> str:
    size = f"{plan.bytes / 1e6:.2f} MB, {plan.bits:.3f} bits per weight"
    return f"{size}; estimated divergence {plan.cost:.3g} nats"
