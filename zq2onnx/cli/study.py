"""`zq2onnx study`: which method, bits, groups and rank this very model needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zq2onnx.cli import console
from zq2onnx.cli.study_outcome import page_renderer, print_study, refuse_failures
from zq2onnx.errors import UserError
from zq2onnx.scheme import GROUP_SIZES, SCHEME_NAMES

if TYPE_CHECKING:
    from zq2onnx.study import Request, Step, Study

GRID = "The grid: comma-separated lists, every combination is a cell"
MEASURING = "Measuring"
CALIBRATION = "Calibration"
OUTPUT = "Output"


def study(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The exported float language model.")],
    text: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="UTF-8 text to predict. Repeatable.", rich_help_panel=MEASURING),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Where the report goes, and what is measured meanwhile.",
            rich_help_panel=OUTPUT,
        ),
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|tokenizer.json",
            help="The model's tokenizer. [default: the model's folder]",
            rich_help_panel=MEASURING,
        ),
    ] = None,
    schemes: Annotated[
        str,
        typer.Option(
            metavar="LIST", help=f"Of {', '.join(SCHEME_NAMES)}.", show_default=True, rich_help_panel=GRID
        ),
    ] = "w4a16,w3a16",
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Of rtn, gptq, zq-local, zq-global; all but rtn need --calib."
            " [default: rtn,gptq with --calib, else rtn]",
            rich_help_panel=GRID,
        ),
    ] = None,
    group_sizes: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help=f"Of {', '.join(map(str, GROUP_SIZES))}, row.",
            show_default=True,
            rich_help_panel=GRID,
        ),
    ] = "64,row",
    lorc_ranks: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Ranks of the low-rank compensation, 0 for none.",
            show_default=True,
            rich_help_panel=GRID,
        ),
    ] = "0,8",
    length: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Tokens in a window. [default: the model's context, at most 512]",
            rich_help_panel=MEASURING,
        ),
    ] = None,
    windows: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Use the first N windows of each text. More make small gaps surer, and take longer.",
            show_default=True,
            rich_help_panel=MEASURING,
        ),
    ] = 40,
    calib: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Calibration data: a .txt, a .jsonl with a text a line, or a .npz of the model's inputs."
            " Should not be one of the texts.",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    calib_samples: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Windows of it, from its start. [default: 128]", rich_help_panel=CALIBRATION
        ),
    ] = None,
    calib_length: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS", help="Tokens in such a window. [default: --length]", rich_help_panel=CALIBRATION
        ),
    ] = None,
    sensitivity: Annotated[
        bool | None,
        typer.Option(
            "--sensitivity/--no-sensitivity",
            help="Measure also what each layer costs if it alone is quantized; needs --calib."
            " [default: with --calib]",
            rich_help_panel=MEASURING,
        ),
    ] = None,
    html: Annotated[
        bool,
        typer.Option(
            "--html/--no-html",
            help='Write study.html, with plots; needs pip install "zq2onnx[report]".',
            rich_help_panel=OUTPUT,
        ),
    ] = True,
    keep_models: Annotated[
        bool,
        typer.Option(
            "--keep-models",
            help="Leave the converted models in DIR/cells; else each goes once it is measured.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Take over a DIR that holds another study; it is lost.", rich_help_panel=OUTPUT
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors alone.")] = False,
) -> None:
    """Convert and measure a model in every combination of method, bits, group size and rank.

    Tells the smallest file that is Class-1 (perplexity at most 0.1 above the float model's), the smallest
    that is Class-2 (at most 0.5), and whether ZeroQuant-V2's findings hold on this model. Writes study.md,
    study.csv, study.json and study.html into DIR.

    rtn rounds without calibration data, and its low-rank branch makes up for the weight's error; the other
    methods use --calib for codes and branch, as convert does.

    Each cell's result is kept as soon as it is measured: after Ctrl-C or a crash the same command goes on
    where it was, and a larger grid takes over what is known. A cell that fails is told in the table with its
    reason, the others go on; the exit code is 2 then.

    \b
    zq2onnx study model.onnx --text news.txt --text web.txt -o study
    zq2onnx study model.onnx --text news.txt --calib calibration.txt --schemes w4a16,w3a16,w2a16 -o study
    """
    from zq2onnx.storage.text_file import write_whole
    from zq2onnx.study import Grid, Request

    request = Request(
        model=model,
        texts=tuple(text),
        tokenizer=tokenizer,
        folder=output,
        grid=Grid(
            schemes=_names(schemes),
            methods=None if methods is None else _names(methods),
            group_sizes=_names(group_sizes),
            lorc_ranks=tuple(_rank(name) for name in _names(lorc_ranks)),
        ),
        calib=calib,
        calib_samples=calib_samples,
        calib_length=calib_length,
        length=length,
        windows=windows,
        sensitivity=sensitivity,
        keep_models=keep_models,
        force=force,
    )
    render = page_renderer() if html else None
    result = _run(request, quiet)
    if render is not None:
        write_whole(output / "study.html", render(result))
    if not quiet:
        print_study(result, output, html)
    refuse_failures(result, output)


def _run(request: Request, quiet: bool) -> Study:
    """The study, with its progress shown."""
    from zq2onnx.study import run_study

    with contextlib.ExitStack() as stack:
        return run_study(request, _Bar(stack, quiet).show)


def _names(given: str) -> tuple[str, ...]:
    """The names in a comma-separated list.

    >>> _names("w4a16, w3a16,")
    ('w4a16', 'w3a16')
    """
    return tuple(name for part in given.split(",") if (name := part.strip()))


def _rank(name: str) -> int:
    if not name.isdecimal():
        raise UserError(f"--lorc-ranks: {name!r}", "whole numbers, 0 for no compensation")
    return int(name)


class _Bar:
    """One progress bar after the other: what is being done, and how many cells have their result."""

    def __init__(self, stack: contextlib.ExitStack, quiet: bool) -> None:
        self.stack = stack
        self.quiet = quiet
        self.shown = ""
        self.counted = 0.0
        self.advance: Callable[[float], None] = lambda amount: None

    def show(self, step: Step) -> None:
        """A bar stands where the step is."""
        description = f"{step.finished} of {step.cells} cells; {step.doing}"
        if description != self.shown or step.done < self.counted:
            self.stack.close()  # a terminal shows one at a time
            bar = console.progress(description, step.total, quiet=self.quiet, unit=step.unit)
            self.advance = self.stack.enter_context(bar)
            self.shown, self.counted = description, 0.0
        self.advance(step.done - self.counted)
        self.counted = step.done
