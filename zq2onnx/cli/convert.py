"""`zq2onnx convert`: a float model in, a quantized one out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from zq2onnx.cli import console
from zq2onnx.cli.outcome import print_report
from zq2onnx.scheme import GROUP_SIZES, SCHEME_NAMES

QUANTIZATION = "Quantization"
SELECTION = "Which nodes"
OUTPUT = "Output"
RUN = "The run"
_REGEX = (
    "Found in a node's name, its weight's name, its module path or its role (lm_head, embedding). Repeatable."
)
_SIZES = "|".join(map(str, GROUP_SIZES))


def convert(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The exported float model.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT.onnx",
            help="Where to write; weights go to OUT.onnx.data. [default: MODEL.SCHEME.onnx beside the input]",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(SCHEME_NAMES),
            help="Bits of the weights, bits of the activations. [default: w4a16]",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    group_size: Annotated[
        str | None,
        typer.Option(
            metavar=f"{_SIZES}|row",
            help="Weights of a row that share a scale and a zero point. [default: 128]",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric",
            help="Without or with a zero point of its own for each group. [default: asymmetric]",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="rtn", help="How codes are chosen. [default: rtn]", rich_help_panel=QUANTIZATION
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="none|mse",
            help="Range of a group: all of it, or shrunk to the least squared error. [default: none]",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    lorc_rank: Annotated[
        int | None,
        typer.Option(
            metavar="R",
            help="Rank of the low-rank compensation of the rounding error, up to 128; 0 is off. [default: 8]",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    lorc_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="int8|float",
            help="How its factors are stored. [default: int8]",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    embedding_bits: Annotated[
        int | None,
        typer.Option(
            metavar="8|4",
            help="Quantize embedding tables too. [default: they stay float]",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="portable|qdq",
            help="portable: one ai.zq2onnx node a MatMul, with a function body that any ONNX Runtime runs;"
            " qdq: standard DequantizeLinear + MatMul. [default: portable]",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX", help=f"Quantize these nodes alone. {_REGEX}", rich_help_panel=SELECTION
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REGEX",
            help="Quantize also these, which are float by default (lm_head). Repeatable.",
            rich_help_panel=SELECTION,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Leave these float. Repeatable.", rich_help_panel=SELECTION),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Options from a file, and [[node]] tables that refine them node by node."
            " The command line wins over its top-level keys.",
            rich_help_panel=SELECTION,
        ),
    ] = None,
    single_file: Annotated[
        bool | None,
        typer.Option(
            "--single-file/--external-data",
            help="Weights inside OUT.onnx, which must stay under 2 GB. [default: external data]",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    check: Annotated[
        str,
        typer.Option(
            metavar="sample|full|none",
            help="Run one rewritten node of every kind, or every node and the whole model, in ONNX Runtime"
            " against a NumPy oracle.",
            rich_help_panel=RUN,
        ),
    ] = "sample",
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="What became of every node, as JSON.", rich_help_panel=OUTPUT),
    ] = None,
    dump_passes: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write the graph after every pass, as ONNX text.", rich_help_panel=OUTPUT
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Weights quantized at a time; the bytes do not depend on it, the memory does."
            " [default: the processors, 8 at most]",
            rich_help_panel=RUN,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on where an interrupted run of the same input and options stopped.",
            rich_help_panel=RUN,
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the output.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors alone.", rich_help_panel=RUN)] = False,
) -> None:
    """Quantize a model's weights to 8, 4, 3 or 2 bits.

    Rewrites every MatMul and Gemm with a constant weight. The result runs on stock ONNX Runtime
    (pip install "zq2onnx[cpu]" or "zq2onnx[gpu]"). lm_head and embeddings stay float by default.

    Peak memory is a few weights, not the model, where weights are initializers and the output has its
    data outside; --single-file holds the whole output. Ctrl-C keeps what was done for --resume.

    Where the output goes to another folder, config.json, tokenizer.json and the like are copied along;
    files of those names that are there already stay.

    \b
    zq2onnx convert model.onnx
    zq2onnx convert model.onnx -o small/model.onnx --scheme w3a16 --group-size 64 --include lm_head
    zq2onnx convert model.onnx --recipe mixed.toml --target qdq --check full --report report.json
    """
    from zq2onnx import pipeline

    with contextlib.ExitStack() as stack:
        bars = _Bars(stack, quiet)
        result = pipeline.convert(
            model,
            output,
            scheme=scheme,
            group_size=group_size,
            symmetric=symmetric,
            method=method,
            clip=clip,
            lorc_rank=lorc_rank,
            lorc_dtype=lorc_dtype,
            embedding_bits=embedding_bits,
            target=target,
            only=only or None,
            include=include or None,
            exclude=exclude or None,
            recipe=recipe,
            jobs=jobs,
            resume=resume,
            check=check,
            report=report,
            dump_passes=dump_passes,
            single_file=single_file,
            force=force,
            progress=bars.quantizing,
            check_progress=bars.checking,
        )
    if not quiet:
        print_report(result)


class _Bars:
    """One progress bar after the other; each appears with its first work, when the total is known."""

    def __init__(self, stack: contextlib.ExitStack, quiet: bool) -> None:
        self.stack = stack
        self.quiet = quiet
        self.shown = ""
        self.checked = 0
        self.advance: Callable[[float], None] | None = None

    def quantizing(self, done: int, total: int) -> None:
        """So many parameters more are done."""
        self._show("quantizing", total, "params")(done)

    def checking(self, done: int, total: int) -> None:
        """So many nodes are checked."""
        self._show("checking", total, "nodes")(done - self.checked)
        self.checked = done

    def _show(self, description: str, total: int, unit: str) -> Callable[[float], None]:
        if self.advance is None or self.shown != description:
            self.stack.close()  # a terminal shows one at a time
            self.advance = self.stack.enter_context(
                console.progress(description, total, quiet=self.quiet, unit=unit)
            )
            self.shown = description
        return self.advance
