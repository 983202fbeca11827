"""`zq2onnx inspect`: what would be, or was, quantized, and why not."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zq2onnx.cli import console

if TYPE_CHECKING:
    from zq2onnx.passes.measure_sizes import WeightSize
    from zq2onnx.report import NodeReport


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A float or a converted model.")],
    every: Annotated[bool, typer.Option("--all", help="Also list the products of two activations.")] = False,
) -> None:
    """List a model's weights: node, shape, bits, and what `convert` would do, or why it would not.

    Reads the graph alone, no weight. The names are those that --only, --include and --exclude search.
    """
    from zq2onnx.loading import load
    from zq2onnx.passes.measure_sizes import measure_sizes
    from zq2onnx.passes.raise_opset import NormalizePass
    from zq2onnx.passes.select_nodes import Policy, select_nodes

    source = load(model)
    sizes = measure_sizes(source.model)
    NormalizePass()(source.model)
    reports = select_nodes(source.model, Policy()).reports
    _print_nodes(reports, {size.node: size for size in sizes}, every)
    _print_kinds(sizes, source.nbytes)


def _print_nodes(reports: list[NodeReport], sizes: dict[str, WeightSize], every: bool) -> None:
    from rich.table import Table

    table = Table("node", "op", "K x N", "bits now", "convert would", box=None, pad_edge=False)
    hidden = 0
    for report in reports:
        if report.reason.startswith("both operands") and not every:
            hidden += 1
            continue
        size = sizes.get(report.name)
        shape = " x ".join(map(str, report.shape)) if report.shape else ""
        bits = f"{size.bits:.2f}" if size is not None else ""
        table.add_row(report.name, report.op, shape, bits, report.reason or "quantize")
    console.stdout.print(table)
    if hidden:
        console.stdout.print(f"({hidden} products of two activations are not listed; --all lists them)")


def _print_kinds(sizes: list[WeightSize], total: int) -> None:
    from rich.table import Table

    kinds: dict[str, list[WeightSize]] = defaultdict(list)
    for size in sizes:
        kinds[size.kind.value].append(size)
    table = Table("kind", "tensors", "M weights", "MB", "bits a weight", box=None, pad_edge=False)
    for kind, members in kinds.items():
        weights = sum(size.weights for size in members)
        stored = sum(size.bytes for size in members)
        bits = f"{8 * stored / weights:.2f}" if weights else ""
        table.add_row(kind, str(len(members)), f"{weights / 1e6:.2f}", f"{stored / 1e6:.2f}", bits)
    table.add_row("all files", "", "", f"{total / 1e6:.2f}", "")
    console.stdout.print()
    console.stdout.print(table)
