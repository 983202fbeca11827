"""`zq2onnx eval`: compares quantized models with the float one on texts."""

from __future__ import annotations

import enum
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zq2onnx.cli.console import progress, stdout
from zq2onnx.cli.evaluation_table import evaluation_table
from zq2onnx.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from zq2onnx.evaluation import (
        EmbeddingEvaluation,
        EmbeddingPlan,
        Evaluation,
        OutputEvaluation,
        OutputPlan,
        Plan,
    )


class Task(enum.StrEnum):
    """What a text is read for."""

    PERPLEXITY = "perplexity"
    EMBEDDING = "embedding"


def eval_(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="FLOAT.onnx QUANT.onnx...", help="The others are compared with the first."),
    ],
    text: Annotated[list[Path] | None, typer.Option(help="UTF-8 text to read. May be repeated.")] = None,
    npz: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Instead of a text, for any model: its inputs by name, samples along the first axis."
            " May be repeated.",
        ),
    ] = None,
    task: Annotated[
        Task, typer.Option(help="perplexity of causal language models, or embedding of encoders.")
    ] = Task.PERPLEXITY,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="tokenizer.json, or its folder.", show_default="the first model's folder"),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            help="Tokens in a window; what a sentence is cut to.",
            show_default="the model's context, at most 2048",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Advance by N tokens from window to window, and score the last N of each: more context,"
            " more work.",
            show_default="--length: no overlap",
        ),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(help="Use the first N windows of each text (sentences, samples).", show_default="all"),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results as JSON too.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write them as a web page too.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors alone.")] = False,
) -> None:
    """Measure what quantizing cost, on a text or on ready-made inputs.

    Causal language models: each text's perplexity, their mean, its gap to the first model's and the
    class that ZeroQuant-V2 gives it (Class-1 at most 0.1, Class-2 at most 0.5, Class-3 more), how often
    the likeliest token is the first model's (top-1), and the mean divergence from its predictions in nats
    (KL). A KV cache among the inputs is fed empty.

    Encoders, with --task embedding: every line of a text is a sentence; the cosine similarity of its
    embedding (the mean over tokens of the last hidden state) to the first model's.

    Any model, with --npz: each output's relative error and largest absolute difference.
    """
    texts, archives = text or [], npz or []
    for option, file in (("--json", json), ("--html", html)):
        _check_output(option, file)
    if json is not None and html is not None and json.resolve() == html.resolve():
        raise UserError(f"--json and --html {html}", "a file for each")
    if html is not None:
        from zq2onnx.pages import require_libraries

        require_libraries()
    plan = _plan(models, texts, archives, task, tokenizer, length, stride, windows)
    for option, file in (("--json", json), ("--html", html)):
        _check_not_read(option, file, models, [*texts, *archives, *([tokenizer] if tokenizer else [])])
    with progress("evaluating", plan.runs, quiet, unit=_unit(archives, task)) as advance:
        evaluation = plan.run(advance)
    _check_sense(evaluation)
    if json is not None:
        _write(json, evaluation.to_json())
    if html is not None:
        from zq2onnx.pages.evaluation_card import render

        _write(html, render(evaluation))
    if not quiet:
        stdout.print(evaluation_table(evaluation))
    _check_finite(evaluation)


def _plan(
    models: list[Path],
    texts: list[Path],
    archives: list[Path],
    task: Task,
    tokenizer: Path | None,
    length: int | None,
    stride: int | None,
    windows: int | None,
) -> Plan | EmbeddingPlan | OutputPlan:
    """Read all that is to be compared."""
    from zq2onnx.evaluation import plan_embedding, plan_evaluation, plan_outputs

    if bool(texts) == bool(archives):
        given = "--text and --npz together" if texts else "nothing to run the models on"
        raise UserError(given, "--text FILE, or --npz FILE for models that do not read text")
    if archives:
        asked = {"--tokenizer": tokenizer, "--length": length, "--stride": stride}
        _refuse("--npz", {**asked, "--task embedding": task is Task.EMBEDDING or None})
        return plan_outputs(models, archives, samples=windows)
    source = models[0].parent if tokenizer is None else tokenizer
    if task is Task.EMBEDDING:
        _refuse("--task embedding", {"--stride": stride})
        return plan_embedding(models, texts, source, length=length, sentences=windows)
    return plan_evaluation(models, texts, source, length=length, windows=windows, stride=stride)


def _refuse(chosen: str, options: dict[str, object]) -> None:
    """Refuse options that mean nothing beside another."""
    if strange := [name for name, value in options.items() if value is not None]:
        raise UserError(f"{', '.join(strange)} with {chosen}, which has no use for it", remedy="leave it out")


def _unit(archives: list[Path], task: Task) -> str:
    if archives:
        return "samples"
    return "windows" if task is Task.PERPLEXITY else "sentences"


def _check_output(option: str, file: Path | None) -> None:
    """Find out before any work whether the results can be written."""
    if file is None:
        return
    if file.is_dir() or not (file.parent.is_dir() or file.parent.parent.is_dir()):
        raise UserError(f"{option} {file}", "a file in a folder that exists", f"mkdir -p {file.parent}")


def _check_not_read(option: str, file: Path | None, models: list[Path], others: list[Path]) -> None:
    """Refuse to write over what was read: a model, its weights, the files beside it, a text, a tokenizer."""
    from zq2onnx.evaluation import model_files

    if file is None:
        return
    folders = [*others, *(model.parent for model in models)]
    beside = [folder / name for folder in folders for name in ("config.json", "tokenizer.json")]
    read = [*others, *beside, *(each for model in models for each in model_files(model))]
    if file.resolve() in {path.resolve() for path in read}:
        raise UserError(f"{option} {file}: it is one of the inputs", "another file")


def _write(file: Path, content: str) -> None:
    from zq2onnx.storage.text_file import write_whole

    file.parent.mkdir(exist_ok=True)
    write_whole(file, content)


def _check_sense(evaluation: Evaluation | EmbeddingEvaluation | OutputEvaluation) -> None:
    """Refuse to show what a comparison with nonsense gave."""
    from zq2onnx.evaluation import Evaluation, check_perplexity

    if isinstance(evaluation, Evaluation):
        check_perplexity(evaluation)


def _check_finite(evaluation: Evaluation | EmbeddingEvaluation | OutputEvaluation) -> None:
    """Fail on numbers that are none, once they were shown."""
    from zq2onnx.evaluation import EmbeddingEvaluation, Evaluation

    if isinstance(evaluation, Evaluation):
        for model in evaluation.models:
            if not math.isfinite(model.mean):
                raise CheckFailed(
                    f"{model.path}: its perplexity is {model.mean}: its logits are not all finite"
                )
    elif isinstance(evaluation, EmbeddingEvaluation):
        for encoder in evaluation.models:
            if not math.isfinite(encoder.mean_cosine):
                raise CheckFailed(f"{encoder.path}: its embeddings, or the first model's, are not all finite")
    else:
        for other in evaluation.models:
            for name, error in other.largest_difference.items():
                if not math.isfinite(error):
                    raise CheckFailed(f"{other.path}: output {name} is not finite where it should be")
