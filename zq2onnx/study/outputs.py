"""Writes a study for readers: Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io

from zq2onnx.storage.text_file import write_whole
from zq2onnx.study.folder import Folder
from zq2onnx.study.markdown import to_markdown
from zq2onnx.study.recommendation import pareto
from zq2onnx.study.records import to_json
from zq2onnx.study.results import Cell, Study
from zq2onnx.study.table import text_names


def write_outputs(study: Study, folder: Folder) -> None:
    """Write `study.md`, `study.csv` and `study.json`, each whole or not at all."""
    write_whole(folder.path / "study.json", to_json(study))
    write_whole(folder.path / "study.csv", to_csv(study))
    write_whole(folder.path / "study.md", to_markdown(study))


def to_csv(study: Study) -> str:
    """A row a cell, in the order of the grid with failures last; numbers unrounded, sizes in bytes.

    `pareto_kl` and `pareto_gap` are 1 where no other cell is at once no larger and better; `failure` is the
    reason of a cell that gave no result.
    """
    names = text_names(study)
    fronts = [{result.cell for result in pareto(study, measure)} for measure in ("kl", "gap")]
    texts = [f"perplexity {names[text]}" for text in study.perplexity]
    heading = ["method", "scheme", "group_size", "lorc_rank", "bytes", "bits_per_weight", *texts, "mean"]
    heading += ["gap", "class", "kl", "top1", "seconds", "pareto_kl", "pareto_gap", "failure"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, heading, restval="", lineterminator="\n")
    writer.writeheader()
    for result in study.cells:
        numbers = {name: getattr(result, name) for name in heading if name in vars(result)}
        measured = zip(texts, result.perplexity.values(), strict=True)
        marks = (int(result.cell in front) for front in fronts)
        writer.writerow(
            _choices(result.cell)
            | numbers
            | dict(measured)
            | {"class": result.paper_class.value}
            | dict(zip(("pareto_kl", "pareto_gap"), marks, strict=True))
        )
    for failure in study.failures:
        writer.writerow(_choices(failure.cell) | {"failure": failure.reason})
    return stream.getvalue()


def _choices(cell: Cell) -> dict[str, object]:
    return dict(vars(cell))
