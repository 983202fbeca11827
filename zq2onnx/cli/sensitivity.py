"""`zq2onnx sensitivity`: what quantizing each layer alone costs."""

from __future__ import annotations

import contextlib
import dataclasses
import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from zq2onnx.cli.bars import Bars
from zq2onnx.cli.console import stderr, stdout
from zq2onnx.errors import UserError
from zq2onnx.scheme import GROUP_SIZES, SCHEME_NAMES
from zq2onnx.storage.paths import check_folder

if TYPE_CHECKING:
    from zq2onnx.planning.costs import Sensitivity


def sensitivity(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The exported float model.")],
    calib: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Calibration data, as `zq2onnx convert` takes it: not what is measured on."
        ),
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Held-out UTF-8 text (or .npz of the model's inputs) to measure on. Repeatable; without it"
            " there are estimates alone.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|tokenizer.json", help="The model's tokenizer.", show_default="the model's folder"
        ),
    ] = None,
    schemes: Annotated[
        str, typer.Option(metavar="LIST", help=f"Comma-separated, of {', '.join(SCHEME_NAMES)}.")
    ] = "w3a16",
    group_size: Annotated[
        str | None,
        typer.Option(
            metavar="|".join([*map(str, GROUP_SIZES), "row"]),
            help="Weights that share a scale. [default: 128]",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="rtn|gptq", help="How codes are chosen. [default: gptq]")
    ] = None,
    lorc_rank: Annotated[int, typer.Option(metavar="R", help="Rank of the low-rank branch.")] = 0,
    only: Annotated[
        list[str] | None, typer.Option(metavar="REGEX", help="These layers alone. Repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="REGEX", help="Not these layers. Repeatable.")
    ] = None,
    calib_samples: Annotated[
        int | None, typer.Option(metavar="N", help="Windows of --calib. [default: 128]")
    ] = None,
    calib_length: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Tokens in such a window. [default: 2048]")
    ] = None,
    length: Annotated[int, typer.Option(metavar="TOKENS", help="Tokens in a window of --text.")] = 256,
    windows: Annotated[int, typer.Option(metavar="N", help="The first N windows of each text.")] = 16,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results as JSON too.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors alone.")] = False,
) -> None:
    """Find out which layers matter: quantize each alone, and measure the divergence of the predictions.

    KL is the mean divergence from the float model on --text, in nats, with that layer quantized and all
    others float. `estimate` foretells it without running the model again: tr(G E R E') / 2, the error of the
    layer's output weighted by the gradients there (needs torch). `layer error`, tr(E R E'), is that error
    alone. Below stands how well each puts the layers into the measured order (Spearman's rank correlation).

    \b
    zq2onnx sensitivity model.onnx --calib text.txt --text heldout.txt
    zq2onnx sensitivity model.onnx --calib text.txt --text heldout.txt --schemes w3a16,w2a16 --group-size 64
    """
    from zq2onnx.planning.sensitivity import measure_sensitivity
    from zq2onnx.planning.survey import Steps

    if json is not None:
        _check_json(json, [model, calib, *(text or [])])
    warnings: list[str] = []
    with contextlib.ExitStack() as stack:
        bars = Bars(stack, quiet)
        found = measure_sensitivity(
            model,
            calib=calib,
            texts=text or (),
            tokenizer=model.parent if tokenizer is None else tokenizer,
            schemes=[name.strip() for name in schemes.split(",")],
            length=length,
            windows=windows,
            steps=Steps(bars.gathering, bars.sizing_up, bars.measuring),
            warnings=warnings,
            group_size=group_size,
            method=method,
            lorc_rank=lorc_rank,
            only=tuple(only) if only else None,
            exclude=tuple(exclude) if exclude else None,
            calib_samples=calib_samples,
            calib_length=calib_length,
        )
    for warning in warnings:
        stderr.print(f"warning: {warning}")
    if json is not None:
        _write(json, found)
    if not quiet:
        for each in found:
            _print(each)


def _check_json(json: Path, read: list[Path]) -> None:
    """Find out before any work whether the results can be written."""
    if json.is_dir() or not json.absolute().parent.is_dir():
        raise UserError(f"--json {json}", "a file in a folder that exists", f"mkdir -p {json.parent}")
    if json.resolve() in {path.resolve() for path in read}:
        raise UserError(f"--json {json}: it is one of the inputs", "another file")
    check_folder(json)


def _write(file: Path, found: tuple[Sensitivity, ...]) -> None:
    from zq2onnx.storage.text_file import write_whole

    plain = {"sensitivity": [dataclasses.asdict(each) for each in found]}
    write_whole(file, json_format.dumps(plain, indent=2) + "\n")


def _print(found: Sensitivity) -> None:
    table = Table(title=f"each layer alone, {found.label}", caption=_caption(found))
    for heading in ("layer", "kind"):
        table.add_column(heading, overflow="fold")
    for heading in ("block", "KL", "estimate", "layer error"):
        table.add_column(heading, justify="right")
    for layer in found.layers:
        table.add_row(
            layer.node,
            layer.kind,
            str(layer.block),
            _number(layer.kl),
            _number(layer.estimate),
            _number(layer.layer_error),
        )
    stdout.print(table)
    for kind, cost in sorted(found.by_kind().items(), key=lambda item: -item[1]):
        stdout.print(f"{kind}: {_number(cost)} nats in all")


def _caption(found: Sensitivity) -> str:
    pairs = (("estimate", found.spearman), ("layer error", found.spearman_of_layer_error))
    told = [f"{name} {value:.2f}" for name, value in pairs if value is not None]
    return f"rank correlation with KL: {', '.join(told)}" if told else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
