"""`zq2onnx compare`: where a quantized model departs from the float one, layer by layer, and why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from zq2onnx.cli.console import progress, stdout
from zq2onnx.errors import UserError

if TYPE_CHECKING:
    from zq2onnx.diagnosis import Comparison, LayerError

_WORST = "<- worst"
_JUMP = "<- jump"


def compare(
    of_float: Annotated[Path, typer.Argument(metavar="FLOAT.onnx", help="The float model.")],
    quantized: Annotated[
        Path, typer.Argument(metavar="QUANT.onnx", help="What was made of it, by zq2onnx or another tool.")
    ],
    text: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="UTF-8 text to run both on. May be repeated.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="tokenizer.json, or its folder.",
            show_default="the float model's folder",
        ),
    ] = None,
    npz: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="In place of a text: the model's own inputs, as numpy.savez writes."
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Tokens in a window.", show_default="the model's context, at most 512"
        ),
    ] = None,
    windows: Annotated[
        int, typer.Option(metavar="N", help="Use the first N windows of each text, or samples of --npz.")
    ] = 4,
    top: Annotated[
        int | None,
        typer.Option(metavar="N", help="List the N layers of the largest own error.", show_default="all"),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results as JSON too.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors alone.")] = False,
) -> None:
    """Find out which layers of a quantized model are wrong, and why.

    Runs both models on a text. For each layer, in the order of the graph, the table says how far its
    output is from the float one: `accumulated`, with all that went wrong before it; `own`, what it adds by
    itself, fed with the float model's activations; `input`, how far off its input is. Errors are relative,
    0.05 is 5%; SNR is the accumulated error in decibels.

    Below it: the first layer where the error jumps, with its likely cause (an outlier channel, dead rows, a
    clipped range, wrong scales, numbers that are not finite, an error amplified on its way), and other layers
    that stand out.

    \b
    zq2onnx compare model.onnx model.w4a16.onnx --text heldout.txt
    zq2onnx compare model.onnx model.w8a8.onnx --text heldout.txt --top 10 --json errors.json
    """
    from zq2onnx.diagnosis import plan_comparison

    _check_request(top, json, [of_float, quantized, *(text or ()), *([npz] if npz else ())])
    with (
        plan_comparison(
            of_float,
            quantized,
            texts=text or (),
            tokenizer=tokenizer,
            npz=npz,
            length=length,
            windows=windows,
        ) as plan,
        progress("comparing", plan.runs, quiet, unit="windows") as advance,
    ):
        comparison = plan.run(advance)
    if json is not None:
        json.parent.mkdir(exist_ok=True)
        json.write_text(comparison.to_json(), encoding="utf-8")
    if not quiet:
        _print(comparison, top)


def _check_request(top: int | None, json: Path | None, inputs: list[Path]) -> None:
    """Find out before any work what cannot be done."""
    from zq2onnx.storage.paths import check_folder, same_file

    if top is not None and top < 1:
        raise UserError(f"--top {top}", "at least 1")
    if json is not None:
        if json.is_dir():
            raise UserError(f"--json {json}: a folder", "a file name")
        if any(same_file(json, path) for path in inputs):
            raise UserError(f"--json {json}: it is one of the inputs", "another file")
        check_folder(json)


def _print(comparison: Comparison, top: int | None) -> None:
    if comparison.identical:
        stdout.print(f"nothing differs: {len(comparison.layers)} layers are the same in both models")
    else:
        stdout.print(_table(comparison, top))
    for name, reason in comparison.unmatched.items():
        stdout.print(f"not compared: {name}: {reason}")
    if not comparison.identical:
        stdout.print()
        for line in _verdict(comparison):
            stdout.print(line)


def _table(comparison: Comparison, top: int | None) -> Table:
    """A row per layer, in graph order."""
    shown = _shown(comparison, top)
    worst = max(comparison.layers, key=_badness)
    hidden = len(comparison.layers) - len(shown)
    caption = f"{comparison.tokens} tokens" + (f"; {hidden} layers not shown" if hidden else "")
    table = Table(title="relative error by layer", caption=caption)
    table.add_column("layer", overflow="fold")
    table.add_column("block", justify="right")
    table.add_column("operator", overflow="fold")
    for heading in ("accumulated", "own", "input", "SNR dB"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for error in shown:
        table.add_row(
            error.name,
            "" if error.block is None else str(error.block),
            error.operator,
            _decimal(error.accumulated),
            _decimal(error.own),
            _decimal(error.inherited),
            f"{error.snr_db:.1f}",
            Text(_remark(error, comparison, worst), overflow="fold"),
        )
    return table


def _shown(comparison: Comparison, top: int | None) -> list[LayerError]:
    """The layers with the largest own error, and that of the jump; in graph order."""
    if top is None:
        return list(comparison.layers)
    ranked = sorted(comparison.layers, key=_badness, reverse=True)[:top]
    jump = None if comparison.jump is None else comparison.jump.layer
    return [each for each in comparison.layers if each in ranked or each.name == jump]


def _badness(error: LayerError) -> float:
    """Its own error; the accumulated one where that is not known; what is not finite above all."""
    value = error.accumulated if error.own is None else error.own
    return math.inf if error.broken or math.isnan(value) else value


def _remark(error: LayerError, comparison: Comparison, worst: LayerError) -> str:
    marks = []
    if comparison.jump is not None and error.name == comparison.jump.layer:
        marks.append(_JUMP)
    if error is worst:
        marks.append(_WORST)
    if error.broken:
        marks.append(f"{error.broken} not finite")
    if error.note:
        marks.append(error.note)
    return ", ".join(marks)


def _verdict(comparison: Comparison) -> list[str]:
    """The jump and its cause, and what else was noticed."""
    findings = list(comparison.findings)
    lines = []
    jump = comparison.jump
    if jump is None:
        last = max((each.accumulated for each in comparison.layers), default=0.0)
        lines.append(
            f"the error jumps nowhere: a layer adds about {comparison.usual:.3g}, and it reaches {last:.3g}"
        )
    else:
        where = "" if jump.block is None else f" (block {jump.block})"
        lines.append(f"the error jumps at node {jump.layer}{where}: {jump.before:.3g} -> {jump.after:.3g}")
        cause = findings.pop(0)
        lines.append(f"likely cause: {cause.sentence}")
    lines += [f"{each.layer} stands out: {each.sentence}" for each in findings]
    return lines


def _decimal(value: float | None) -> str:
    """
    >>> _decimal(0.01234), _decimal(None), _decimal(0.0)
    ('0.0123', '-', '0')
    """
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.4f}" if 1e-4 <= value < 100 else f"{value:.2g}"
