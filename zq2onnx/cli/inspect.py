"""`zq2onnx inspect`: what would be, or was, quantized, and why not."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zq2onnx.cli import console
from zq2onnx.report import Status
from zq2onnx.scheme import SCHEME_NAMES

if TYPE_CHECKING:
    import onnx_ir as ir

    from zq2onnx.conversion.options import Options
    from zq2onnx.passes.measure_sizes import WeightSize
    from zq2onnx.report import NodeReport


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A float or a converted model.")],
    scheme: Annotated[
        str | None,
        typer.Option(metavar="|".join(SCHEME_NAMES), help="As for convert. [default: w4a16]"),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="REGEX", help="As for convert. Repeatable.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(metavar="REGEX", help="As for convert. Repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="REGEX", help="As for convert. Repeatable.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="As for convert: options and [[node]] tables.")
    ] = None,
    embedding_bits: Annotated[int | None, typer.Option(metavar="8|4", help="As for convert.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also list the products of two activations.")] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all of it as JSON too.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors alone.")] = False,
) -> None:
    """List a model's weights: node, shape, bits, and what `convert` would do, or why it would not.

    Reads the graph alone, no weight. The names are those that --only, --include and --exclude search;
    with the options of convert it shows what convert would do with them. Bits are those of a weight
    with its scales, zero points and low-rank factors; a weight that several nodes share is counted at
    the first.

    \b
    zq2onnx inspect model.onnx
    zq2onnx inspect model.onnx --scheme w3a16 --exclude 'layers\\.0\\.' --json nodes.json
    """
    from zq2onnx.conversion.choices import Choices
    from zq2onnx.conversion.options import resolve

    choices = Choices(
        scheme=scheme,
        embedding_bits=embedding_bits,
        only=tuple(only) if only else None,
        include=tuple(include) if include else None,
        exclude=tuple(exclude) if exclude else None,
    )
    survey = _look(model, resolve(choices, recipe), json_path)
    if json_path is not None:
        json_path.write_text(survey.to_json(), encoding="utf-8")
    if not quiet:
        _print_nodes(survey, every)
        _print_kinds(survey)
        for line in survey.notes:
            console.stdout.print(line)


@dataclass(frozen=True)
class _Survey:
    """What is to be said of a model.

    Attributes:
        opset: of the standard domain, if the model has it.
        obstacle: why `convert` would refuse the model; "" if it would not.
        warnings: what it would warn of.
        nodes: every node that could carry a weight; `QUANTIZED` is what convert would do.
        shapes: `[K, N]` of weights that are quantized already, by node.
        sizes: of all tensors.
        nbytes: of all files.
    """

    opset: int | None
    obstacle: str
    warnings: list[str]
    nodes: list[NodeReport]
    shapes: dict[str, list[int]]
    sizes: list[WeightSize]
    nbytes: int

    @property
    def weights(self) -> dict[str, WeightSize]:
        """The weight of each node that has one."""
        from zq2onnx.passes.measure_sizes import Kind

        return {size.node: size for size in self.sizes if size.kind is not Kind.OTHER}

    @property
    def kinds(self) -> dict[str, list[WeightSize]]:
        """Sizes by kind, in order of first use."""
        kinds: dict[str, list[WeightSize]] = defaultdict(list)
        for size in self.sizes:
            kinds[size.kind.value].append(size)
        return kinds

    @property
    def notes(self) -> list[str]:
        """What is said below the tables."""
        refusal = [f"convert would refuse this model: {self.obstacle}"] if self.obstacle else []
        return [*refusal, *(f"convert would warn: {warning}" for warning in self.warnings)]

    def to_json(self) -> str:
        """All of it."""
        weights = self.weights
        nodes = [
            {
                "name": node.name,
                "op": node.op,
                "shape": node.shape or self.shapes.get(node.name),
                "bits_now": weights[node.name].bits if node.name in weights else None,
                "would": "skip" if node.status is Status.SKIPPED or self.obstacle else "quantize",
                "reason": node.reason or self.obstacle,
                "bits": node.bits,
                "group_size": node.group_size,
                "rank": node.rank,
            }
            for node in self.nodes
        ]
        kinds = {
            kind: {
                "tensors": len(members),
                "weights": sum(size.weights for size in members),
                "bytes": sum(size.bytes for size in members),
            }
            for kind, members in self.kinds.items()
        }
        said = {"opset": self.opset, "obstacle": self.obstacle, "warnings": self.warnings}
        return json.dumps({**said, "bytes": self.nbytes, "kinds": kinds, "nodes": nodes}, indent=2) + "\n"


def _look(path: Path, options: Options, json_path: Path | None) -> _Survey:
    """Do what `convert` does before it rewrites anything; make sure that `json_path` can be written."""
    from zq2onnx.conversion.loading import load, naming
    from zq2onnx.errors import UserError
    from zq2onnx.passes.measure_sizes import measure_sizes
    from zq2onnx.passes.normalize import NormalizePass
    from zq2onnx.passes.select_nodes import select_nodes
    from zq2onnx.pipeline import raise_opset
    from zq2onnx.storage.paths import check_side_files

    source = load(path)
    check_side_files(json_path, None, source.files)
    graph = source.model
    normalize, raising = NormalizePass(), raise_opset(options)
    opset = graph.opset_imports.get("")
    with naming(path):
        normalize(graph)
        selection = select_nodes(graph, options.policy)
    sizes, shapes = measure_sizes(graph), _written_shapes(graph)
    obstacle = ""
    if selection.chosen:
        try:
            raising(graph)
        except UserError as error:
            obstacle = str(error)
    warnings = [*normalize.warnings, *selection.warnings, *raising.warnings] if selection.chosen else []
    return _Survey(opset, obstacle, warnings, selection.reports, shapes, sizes, source.nbytes)


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


def _print_nodes(survey: _Survey, every: bool) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("node", "op", "K x N", "bits now", "convert would"):
        table.add_column(heading, overflow="fold")  # a name that is cut is of no use to --only
    hidden = 0
    sizes = survey.weights
    for report in survey.nodes:
        if report.reason.startswith("both operands") and not every:
            hidden += 1
            continue
        size = sizes.get(report.name)
        shape = " x ".join(map(str, report.shape or survey.shapes.get(report.name, [])))
        bits = f"{size.bits:.2f}" if size is not None else ""
        verdict = f"leave it: {report.reason}" if report.reason else f"quantize to {report.bits} bits"
        table.add_row(report.name, report.op, shape, bits, verdict)
    console.stdout.print(table)
    if hidden:
        console.stdout.print(f"({hidden} products of two activations are not listed; --all lists them)")


def _print_kinds(survey: _Survey) -> None:
    from rich.table import Table

    table = Table("kind", "tensors", "M weights", "MB", "bits per weight", box=None, pad_edge=False)
    for kind, members in survey.kinds.items():
        weights = sum(size.weights for size in members)
        stored = sum(size.bytes for size in members)
        bits = f"{8 * stored / weights:.2f}" if weights else ""
        table.add_row(kind, str(len(members)), f"{weights / 1e6:.2f}", f"{stored / 1e6:.2f}", bits)
    table.add_row("all files", "", "", f"{survey.nbytes / 1e6:.2f}", "")
    console.stdout.print()
    console.stdout.print(table)
