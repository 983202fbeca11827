"""`zq2onnx inspect`: what would be, or was, quantized, and why not."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zq2onnx.cli import console

if TYPE_CHECKING:
    import onnx_ir as ir

    from zq2onnx.passes.measure_sizes import WeightSize
    from zq2onnx.report import NodeReport


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A float or a converted model.")],
    every: Annotated[bool, typer.Option("--all", help="Also list the products of two activations.")] = False,
) -> None:
    """List a model's weights: node, shape, bits, and what `convert` would do, or why it would not.

    Reads the graph alone, no weight. The names are those that --only, --include and --exclude search.
    Bits are those of a weight with its scales, zero points and low-rank factors; a weight that
    several nodes share is counted at the first.
    """
    from zq2onnx.conversion.loading import load
    from zq2onnx.passes.measure_sizes import Kind, measure_sizes
    from zq2onnx.passes.normalize import NormalizePass
    from zq2onnx.passes.select_nodes import Policy, select_nodes

    source = load(model)
    NormalizePass()(source.model)
    sizes = measure_sizes(source.model)
    reports = select_nodes(source.model, Policy()).reports
    shapes = _written_shapes(source.model)
    weights = {size.node: size for size in sizes if size.kind is not Kind.OTHER}
    _print_nodes(reports, shapes, weights, every)
    _print_kinds(sizes, source.nbytes)


def _written_shapes(model: ir.Model) -> dict[str, list[int]]:
    """`[K, N]` of the weights that are quantized already, by the name of the node they were written for."""
    from zq2onnx.opset import GROUP_KEY

    shapes = {}
    for graph in model.graphs():
        for node in graph:
            name = node.metadata_props.get(GROUP_KEY) or node.name or ""
            if "K" in node.attributes and "N" in node.attributes:
                shapes[name] = [node.attributes.get_int("K"), node.attributes.get_int("N")]
            elif node.op_type == "DequantizeLinear" and name not in shapes:
                shape = node.inputs[0].shape if node.inputs[0] is not None else None
                if shape is not None and len(shape) == 2 and shape.is_static():
                    shapes[name] = [int(size) for size in shape.numpy()]
    return shapes


def _print_nodes(
    reports: list[NodeReport], shapes: dict[str, list[int]], sizes: dict[str, WeightSize], every: bool
) -> None:
    from rich.table import Table

    table = Table("node", "op", "K x N", "bits now", "convert would", box=None, pad_edge=False)
    hidden = 0
    for report in reports:
        if report.reason.startswith("both operands") and not every:
            hidden += 1
            continue
        size = sizes.get(report.name)
        shape = " x ".join(map(str, report.shape or shapes.get(report.name, [])))
        bits = f"{size.bits:.2f}" if size is not None else ""
        verdict = f"leave it: {report.reason}" if report.reason else "quantize"
        table.add_row(report.name, report.op, shape, bits, verdict)
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
