"""The tables that `eval` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from zq2onnx.evaluation import EmbeddingEvaluation, Evaluation, OutputEvaluation


def evaluation_table(evaluation: Evaluation | EmbeddingEvaluation | OutputEvaluation) -> Table:
    """What an evaluation found, the models below each other."""
    from zq2onnx.evaluation import EmbeddingEvaluation, Evaluation

    if isinstance(evaluation, Evaluation):
        return _perplexity(evaluation)
    if isinstance(evaluation, EmbeddingEvaluation):
        return _embedding(evaluation)
    return _outputs(evaluation)


def _perplexity(evaluation: Evaluation) -> Table:
    """A row per model, a column per measure."""
    from zq2onnx.evaluation.results import kl_text

    overlap = "" if evaluation.stride is None else f" every {evaluation.stride} tokens"
    table = _table(
        "perplexity",
        f"{evaluation.length} tokens a window{overlap}, {evaluation.positions} predicted",
        [*_headings(evaluation.models[0].perplexity), "mean", "gap", "class", "top-1 %", "KL"],
    )
    for model in evaluation.models:
        table.add_row(
            *_file(model.path, model.bytes, model.bits_per_weight),
            *(_decimal(value) for value in model.perplexity.values()),
            _decimal(model.mean),
            f"{model.gap:+.3f}",
            "-" if model.paper_class is None else model.paper_class.value,
            f"{100 * model.top1:.2f}",
            kl_text(model.kl),
        )
    if evaluation.models[1:]:
        classes = {model.paper_class for model in evaluation.models if model.paper_class is not None}
        lines = [kind.describe() for kind in sorted(classes, key=lambda kind: kind.value)]
        table.caption = "\n".join([str(table.caption), *lines])
    return table


def _embedding(evaluation: EmbeddingEvaluation) -> Table:
    """A row per model, a column per measure."""
    table = _table(
        "cosine similarity of embeddings",
        f"{evaluation.sentences} sentences of at most {evaluation.length} tokens, {evaluation.output}",
        [*_headings(evaluation.models[0].cosine), "mean", "1st percentile", "least"],
    )
    for model in evaluation.models:
        measures = (*model.cosine.values(), model.mean_cosine, model.percentile_1, model.least_cosine)
        table.add_row(
            *_file(model.path, model.bytes, model.bits_per_weight), *(f"{value:.5f}" for value in measures)
        )
    return table


def _outputs(evaluation: OutputEvaluation) -> Table:
    """A row per model and output."""
    table = _table(
        "error of outputs",
        f"{evaluation.samples} samples",
        ["output", "relative error", "largest difference"],
    )
    for model in evaluation.models:
        file = _file(model.path, model.bytes, model.bits_per_weight)
        for name, error in model.relative_error.items():
            table.add_row(*file, name, f"{error:.3g}", f"{model.largest_difference[name]:.3g}")
            file = ("", "", "")
    return table


def _table(title: str, caption: str, headings: Sequence[str]) -> Table:
    """An empty table whose first columns are those of `_file`."""
    table = Table(title=title, caption=caption)
    table.add_column("model", overflow="fold")
    for heading in ("MB", "bits/weight", *headings):
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _file(path: str, size: int, bits: float | None) -> tuple[str, str, str]:
    return path, f"{size / 1e6:.2f}", "-" if bits is None else f"{bits:.2f}"


def _headings(texts: Sequence[str] | dict[str, float]) -> list[str]:
    """The texts' names; their paths where two have the same name."""
    paths = [Path(text) for text in texts]
    names = {path.stem for path in paths}
    return [path.stem if len(names) == len(paths) else str(path) for path in paths]


def _decimal(value: float) -> str:
    """Perplexity: 3 decimals where it is small, none where it has exploded.

    >>> _decimal(20.12345), _decimal(1234567.8), _decimal(float("inf"))
    ('20.123', '1.23e+06', 'inf')
    """
    return f"{value:.3f}" if value < 1e5 else f"{value:.3g}"
