"""`zq2onnx convert`: a float model in, a quantized one out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zq2onnx.cli.bars import Bars
from zq2onnx.cli.outcome import print_report
from zq2onnx.cli.plan_table import print_plan
from zq2onnx.errors import UserError
from zq2onnx.scheme import GROUP_SIZES, SCHEME_NAMES

if TYPE_CHECKING:
    from zq2onnx.planning.plan import Plan
    from zq2onnx.report import Report

QUANTIZATION = "Quantization"
CALIBRATION = "Calibration"
SELECTION = "Which nodes"
BUDGET = "Budget"
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
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="ort-cpu|ort-cuda|genai|triton",
            help="Choose, for where the model is to run, what is said neither here nor in the recipe.",
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
            metavar="rtn|gptq|zq-local|zq-global",
            help="How codes are chosen: rounded to nearest; each column making up for the error of those"
            " before; or by gradient, of each layer or of each block (need torch). All but rtn need --calib."
            " [default: gptq with --calib, else rtn]",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="none|mse|auto",
            help="Range of a group: all of it, shrunk to the least squared error of its weights, or (gptq)"
            " to the least final error of the layer's output. [default: auto with gptq, else none]",
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
    lorc: Annotated[
        str | None,
        typer.Option(
            metavar="plain|exact|auto",
            help="What the branch makes up for: the weight's error, or the output's on calibration data;"
            " auto: exact where there is such data, else plain. [default: auto]",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    lorc_rounds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Choose codes and branch in turns, up to this often, while it helps. [default: 1]",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="layer|model",
            help="What gptq and an exact branch keep small: the error of each layer's output, or of the"
            " model's, by the gradients at each layer's output: half the divergence for a slower"
            " calibration (needs torch). [default: layer]",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    act_granularity: Annotated[
        str | None,
        typer.Option(
            metavar="token|block|tensor",
            help="What int8 activations (a8) share a scale: a token's; a token's that meet one block of the"
            " weight, the fastest on CPUs; all, by calibration (qdq only). [default: token]",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    smooth: Annotated[
        str | None,
        typer.Option(
            metavar="auto|off",
            help="Move outliers of int8 activations into the weights where the graph allows it (SmoothQuant)."
            " [default: auto]",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    calib: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Calibration data: a .txt, a .jsonl with a text a line, or a .npz of the model's inputs.",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|tokenizer.json",
            help="The model's tokenizer, for calibration on text.",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    calib_samples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Windows of the text, from its start. [default: 128]",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    calib_length: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Tokens in a window; at most the model's context. [default: 2048]",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    calib_inputs: Annotated[
        str | None,
        typer.Option(
            metavar="quantized|float",
            help="A block is calibrated on what the quantized blocks before it make, or the float ones."
            " [default: quantized]",
            rich_help_panel=CALIBRATION,
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
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="keep|fp32|fp16|bf16",
            help="Float type of activations, inputs, outputs and of the weights that stay float."
            " [default: keep]",
            rich_help_panel=OUTPUT,
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
    bias: Annotated[
        str | None,
        typer.Option(
            metavar="inside|outside",
            help="A portable node adds the bias itself, or an Add behind it does. [default: inside]",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    merge: Annotated[
        bool | None,
        typer.Option(
            "--merge/--no-merge",
            help="Make one node, with one low-rank branch, of those that read the same input (query, key"
            " and value; gate and up). [default: no-merge]",
            rich_help_panel=QUANTIZATION,
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
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="BITS|SIZE|CLASS",
            help="Choose bits, group size and rank of each layer so that this is best spent: 3.5bits a"
            " weight, 120MB of the whole output, or class-1 or class-2, the least bytes whose perplexity on"
            " --budget-text is within 0.1 or 0.5 of the float model's. Needs --calib. --scheme then gives the"
            " activations alone, --group-size the one size to try, --lorc-rank the greatest rank.",
            rich_help_panel=BUDGET,
        ),
    ] = None,
    budget_text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Held-out UTF-8 text that a class is judged by, its first 40 windows. Repeatable.",
            rich_help_panel=BUDGET,
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Where the plan of --budget is written: a recipe, to be edited and given to --recipe."
            " [default: OUT.plan.toml]",
            rich_help_panel=BUDGET,
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

    Rewrites every MatMul and Gemm with a constant weight. With --calib, codes and branches are chosen by what
    reaches each layer, block by block: far better, and slower. The result runs on stock ONNX Runtime
    (pip install "zq2onnx[cpu]" or "zq2onnx[gpu]"). lm_head and embeddings stay float by default.

    Peak memory is a few weights, not the model, where weights are initializers and the output has its
    data outside; --single-file holds the whole output. Ctrl-C keeps what was done for --resume.

    Where the output goes to another folder, config.json, tokenizer.json and the like are copied along;
    files of those names that are there already stay.

    \b
    zq2onnx convert model.onnx
    zq2onnx convert model.onnx -o small/model.onnx --scheme w3a16 --group-size 64 --include lm_head
    zq2onnx convert model.onnx --scheme w3a16 --calib text.txt --tokenizer DIR
    zq2onnx convert model.onnx --budget 3.5bits --calib text.txt --tokenizer DIR
    zq2onnx convert model.onnx --profile ort-cuda
    zq2onnx convert model.onnx --recipe mixed.toml --target qdq --check full --report report.json
    """
    choices = {
        "profile": profile,
        "scheme": scheme,
        "group_size": group_size,
        "symmetric": symmetric,
        "method": method,
        "clip": clip,
        "lorc_rank": lorc_rank,
        "lorc_dtype": lorc_dtype,
        "lorc": lorc,
        "lorc_rounds": lorc_rounds,
        "objective": objective,
        "act_granularity": act_granularity,
        "smooth": smooth,
        "calib_samples": calib_samples,
        "calib_length": calib_length,
        "calib_inputs": calib_inputs,
        "embedding_bits": embedding_bits,
        "dtype": dtype,
        "target": target,
        "bias": bias,
        "merge": merge,
        "only": only or None,
        "include": include or None,
        "exclude": exclude or None,
        "single_file": single_file,
    }
    files = {"calib": calib, "tokenizer": tokenizer, "recipe": recipe}
    with contextlib.ExitStack() as stack:
        bars = Bars(stack, quiet)
        run = {
            "jobs": jobs,
            "resume": resume,
            "check": check,
            "report": report,
            "dump_passes": dump_passes,
            "force": force,
            "progress": bars.quantizing,
            "block_progress": bars.calibrating,
            "gradient_progress": bars.gathering,
            "check_progress": bars.checking,
        }
        if budget is None:
            result = _convert(model, output, budget_text, plan, choices | files | run)
        else:
            show = None if quiet else print_plan
            result = _spend(model, output, budget, budget_text, plan, files, choices, run, bars, show)
    if not quiet:
        print_report(result)


def _convert(
    model: Path,
    output: Path | None,
    budget_text: list[Path] | None,
    plan: Path | None,
    options: dict[str, Any],
) -> Report:
    """Convert by the options as they are."""
    from zq2onnx import pipeline

    for option, value in (("--budget-text", budget_text), ("--plan", plan)):
        if value:
            raise UserError(f"{option} without a budget", "--budget", f"or leave {option} out")
    return pipeline.convert(model, output, **options)


def _spend(
    model: Path,
    output: Path | None,
    budget: str,
    texts: list[Path] | None,
    plan: Path | None,
    files: dict[str, Any],
    choices: dict[str, Any],
    run: dict[str, Any],
    bars: Bars,
    show: Callable[[Plan], None] | None,
) -> Report:
    """Choose bits, group size and rank of each layer, and convert."""
    from zq2onnx.planning.spend import convert_within
    from zq2onnx.planning.survey import Steps

    calib = files.pop("calib")
    if calib is None:
        raise UserError("--budget without calibration data", "--calib FILE", "layers are chosen by it")
    tuples = {key: tuple(choices[key]) for key in ("only", "include", "exclude") if choices[key]}
    return convert_within(
        model,
        output,
        budget=budget,
        calib=calib,
        texts=texts or (),
        plan_file=plan,
        choices=choices | tuples,
        steps=Steps(bars.gathering, bars.sizing_up, bars.measuring, bars.calibrating),
        planned=show,
        **files,
        **run,
    ).report
