"""A study as Markdown: the recommendation, the paper's table, and what holds of the paper's findings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from zq2onnx.evaluation.paper_class import PaperClass
from zq2onnx.evaluation.results import kl_text
from zq2onnx.planning.costs import Sensitivity
from zq2onnx.study.orderings import findings
from zq2onnx.study.recommendation import commands, pareto, sentences
from zq2onnx.study.results import Cell, CellFailure, CellResult, Study
from zq2onnx.study.table import table, text_names

_MOST_SENSITIVE = 3
"""Layers named in each scheme's summary."""

_SYNTAX = re.compile(r"[\\`*<>\[\]|&]|(?<!\w)_|_(?!\w)")
"""What Markdown, or the HTML in it, would not show as it is: in names, and in reasons that hold some."""


def to_markdown(study: Study) -> str:
    """The study as a Markdown document."""
    blocks = [f"# Study of {_plain(study.model)}", _setting(study)]
    blocks += ["## Recommendation", _bullets(sentences(study))]
    blocks += [f"```sh\n{line}\n```" for _, line in commands(study)]
    blocks += ["## Perplexity gap, divergence and size", _table(study), _legend()]
    if found := findings(study):
        blocks += ["## What the paper found, on this model", _bullets(found)]
    if study.sensitivity:
        blocks += ["## Layers, each quantized alone", _bullets(map(_layers, study.sensitivity))]
    if notes := list(_notes(study)):
        blocks += ["## Notes", _bullets(notes)]
    return "\n\n".join(blocks) + "\n"


def _plain(text: str) -> str:
    """A name or a sentence as Markdown that is shown as it stands, on one line.

    >>> _plain("self_attn.q_proj <b> a|b *_")
    'self_attn.q_proj \\\\<b\\\\> a\\\\|b \\\\*\\\\_'
    """
    return _SYNTAX.sub(r"\\\g<0>", " ".join(text.split()))


def _setting(study: Study) -> str:
    """The float model, and what was measured on."""
    names = text_names(study)
    texts = ", ".join(f"{_plain(names[text])} {value:.3f}" for text, value in study.perplexity.items())
    return (
        f"Float model: {study.bytes / 1e6:.2f} MB, perplexity {study.mean:.3f} ({texts});"
        f" {study.length} tokens a window, {study.positions} predicted."
    )


def _table(study: Study) -> str:
    laid_out, front = table(study), {result.cell for result in pareto(study)}
    lines = [
        ["method", "groups", "LoRC rank", *laid_out.schemes],
        ["---", "---", "---:", *["---"] * len(laid_out.schemes)],
    ]
    for row in laid_out.rows:
        entries = [_entry(entry, front) for entry in row.entries]
        lines.append([row.method, row.group_size, str(row.lorc_rank), *entries])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _entry(entry: CellResult | CellFailure | None, front: set[Cell]) -> str:
    match entry:
        case None:
            return ""
        case CellFailure():
            return f"failed: {_plain(entry.reason)}"
    mark = " *" if entry.cell in front else ""
    gap = f"{entry.gap:+.3f} {entry.paper_class.value}{mark}"
    return f"{gap}<br>KL {kl_text(entry.kl)}<br>{entry.bytes / 1e6:.2f} MB"


def _legend() -> str:
    first, second = PaperClass.CLASS_1, PaperClass.CLASS_2
    return (
        f"Gap: perplexity above the float model's, mean of the texts; {first.value}: at most {first.bound},"
        f" {second.value}: at most {second.bound}, Class-3: more. KL: mean divergence from the float model,"
        " in nats. *: every other file of the study is larger, or farther from the float model in KL."
    )


def _layers(found: Sensitivity) -> str:
    """Which kinds of layers, and which layers, cost most; how well the estimate tells it."""
    costs = {each.node: each.kl if each.kl is not None else each.estimate for each in found.layers}
    known = sorted(((cost, node) for node, cost in costs.items() if cost is not None), reverse=True)
    kinds = ", ".join(f"{kind} {cost:.2g}" for kind, cost in found.by_kind().items())
    said = f"{found.label}: KL by kind of layer: {kinds}"
    if known:
        worst = ", ".join(f"{_plain(node)} {cost:.2g}" for cost, node in known[:_MOST_SENSITIVE])
        said += f"; most costly: {worst}"
    if found.spearman is not None:
        said += f"; rank correlation of the estimate with what was measured: {found.spearman:.2f}"
    if found.spearman_of_layer_error is not None:
        said += f", of each layer's own error: {found.spearman_of_layer_error:.2f}"
    return f"{said}."


def _notes(study: Study) -> Iterator[str]:
    cells = [result.cell for result in study.cells] + [failure.cell for failure in study.failures]
    if study.calibration and any(cell.calibrated for cell in cells):
        size = (
            f", {study.calib_samples} samples of {study.calib_length} tokens at most"
            if study.calib_samples is not None
            else ""
        )
        yield f"Calibrated on {_plain(study.calibration)}{size}."
        if any(not cell.calibrated and cell.lorc_rank for cell in cells):
            yield (
                "rtn is given no calibration data: its low-rank branch makes up for the weight's error, that"
                " of the other methods for the output's."
            )
    yield from map(_plain, study.warnings)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
