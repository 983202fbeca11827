"""`zq2onnx eval`: compares quantized models with the float one on texts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from zq2onnx.cli.console import progress, stdout
from zq2onnx.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from zq2onnx.evaluation import Evaluation


def eval_(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="FLOAT.onnx QUANT.onnx...", help="The others are compared with the first."),
    ],
    text: Annotated[list[Path], typer.Option(help="UTF-8 text to predict. May be repeated.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="tokenizer.json, or its folder.", show_default="the first model's folder"),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens in a window.", show_default="the model's context, at most 2048"),
    ] = None,
    windows: Annotated[
        int | None, typer.Option(help="Use the first N windows of each text.", show_default="all")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results as JSON too.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors alone.")] = False,
) -> None:
    """Measure perplexity, agreement with the first model, and size.

    Columns are each text's perplexity, their mean, its gap to the first model's, how often the likeliest
    token is the first model's (top-1), and the mean divergence from its predictions in nats (KL).
    """
    from zq2onnx.evaluation import check_perplexity, plan_evaluation

    _check_output(json, [*models, *text])
    source = models[0].parent if tokenizer is None else tokenizer
    plan = plan_evaluation(models, text, source, length=length, windows=windows)
    with progress("evaluating", plan.runs, quiet, unit="windows") as advance:
        evaluation = plan.run(advance)
    check_perplexity(evaluation)
    if json is not None:
        json.parent.mkdir(exist_ok=True)
        json.write_text(evaluation.to_json(), encoding="utf-8")
    if not quiet:
        stdout.print(_table(evaluation))
    for model in evaluation.models:
        if not math.isfinite(model.mean):
            raise CheckFailed(f"{model.path}: its perplexity is {model.mean}: its logits are not all finite")


def _check_output(file: Path | None, inputs: list[Path]) -> None:
    """Find out before any work whether the results can be written."""
    if file is None:
        return
    if file.is_dir() or not (file.parent.is_dir() or file.parent.parent.is_dir()):
        raise UserError(f"--json {file}", "a file in a folder that exists", f"mkdir -p {file.parent}")
    if file.resolve() in {path.resolve() for path in inputs}:
        raise UserError(f"--json {file}: it is one of the inputs", "another file")


def _table(evaluation: Evaluation) -> Table:
    """A row per model, a column per measure."""
    table = Table(
        title="perplexity", caption=f"{evaluation.length} tokens a window, {evaluation.positions} predicted"
    )
    table.add_column("model", overflow="fold")
    for heading in ("MB", "bits/weight", *_headings(evaluation), "mean", "gap", "top-1 %", "KL"):
        table.add_column(heading, justify="right", overflow="fold")
    for model in evaluation.models:
        bits = "-" if model.bits_per_weight is None else f"{model.bits_per_weight:.2f}"
        table.add_row(
            model.path,
            f"{model.bytes / 1e6:.2f}",
            bits,
            *(_decimal(value) for value in model.perplexity.values()),
            _decimal(model.mean),
            f"{model.gap:+.3f}",
            f"{100 * model.top1:.2f}",
            f"{model.kl:.5f}",
        )
    return table


def _headings(evaluation: Evaluation) -> list[str]:
    """The texts' names; their paths where two have the same name."""
    paths = [Path(text) for text in evaluation.models[0].perplexity]
    names = {path.stem for path in paths}
    return [path.stem if len(names) == len(paths) else str(path) for path in paths]


def _decimal(value: float) -> str:
    """Perplexity: 3 decimals where it is small, none where it has exploded.

    >>> _decimal(20.12345), _decimal(1234567.8), _decimal(float("inf"))
    ('20.123', '1.23e+06', 'inf')
    """
    return f"{value:.3f}" if value < 1e5 else f"{value:.3g}"
