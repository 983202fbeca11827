"""What to choose: the smallest file of each class, the Pareto front, and the advice in words."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from zq2onnx.evaluation.metrics import gap_error
from zq2onnx.evaluation.paper_class import PaperClass
from zq2onnx.evaluation.results import kl_text
from zq2onnx.study.results import CellResult, Study

Measure = Literal["kl", "gap"]
"""What a file costs: divergence from the float model, or perplexity above it."""

SAME_SIZE = 1.001
"""Files whose sizes differ by less are equal in size: a name or a number in them is longer."""

_WITHIN = {
    paper_class: f"at most {paper_class.bound} above the float model's"
    for paper_class in (PaperClass.CLASS_1, PaperClass.CLASS_2)
}

_CONTENDERS = (PaperClass.CLASS_1, PaperClass.CLASS_2)


def smallest(study: Study, paper_class: PaperClass) -> CellResult | None:
    """The smallest file of a class or a better one; of files as good as equal in size the nearest in KL."""
    fitting = [result for result in study.cells if result.gap <= paper_class.bound]
    if not fitting:
        return None
    least = min(result.bytes for result in fitting)
    equal = [result for result in fitting if result.bytes <= least * SAME_SIZE]
    return min(equal, key=lambda result: (result.kl, result.bytes))


def best(study: Study) -> CellResult | None:
    """The file with the least perplexity; None where every cell failed."""
    return min(study.cells, key=lambda result: (result.gap, result.kl, result.bytes), default=None)


def pareto(study: Study, measure: Measure = "kl") -> tuple[CellResult, ...]:
    """The cells that no other beats in bytes and cost at once: growing files, falling cost.

    Args:
        study: the study.
        measure: which cost.
    """

    def cost(result: CellResult) -> float:
        return getattr(result, measure)

    def beaten(result: CellResult) -> bool:
        return any(
            (cost(other), other.bytes) < (cost(result), result.bytes)
            and other.bytes <= result.bytes * SAME_SIZE
            for other in study.cells
        )

    front = [result for result in study.cells if not beaten(result)]
    return tuple(sorted(front, key=lambda result: result.bytes))


def uncertainty(study: Study, result: CellResult) -> float:
    """The standard error of a cell's gap: see `gap_error`."""
    return gap_error(study.mean, result.kl, study.positions)


def recommended(study: Study) -> tuple[CellResult, ...]:
    """The smallest of Class-1, then the smallest of Class-2 where that is another; else the best there is."""
    found = tuple(result for result in _smallest_of_both(study) if result is not None)
    fallback = best(study)
    return found or (() if fallback is None else (fallback,))


def _smallest_of_both(study: Study) -> tuple[CellResult | None, CellResult | None]:
    """The smallest Class-1 file, and the smallest Class-2 file if that is smaller still."""
    first, second = (smallest(study, paper_class) for paper_class in _CONTENDERS)
    if first is not None and second is not None and first.bytes <= second.bytes * SAME_SIZE:
        second = None
    return first, second


def sentences(study: Study) -> list[str]:
    """The recommendation in plain words, a sentence or two for each class."""
    if not study.cells:
        return ["No cell of the study gave a result: there is nothing to recommend."]
    first, second = _smallest_of_both(study)
    if first is None and second is None:
        return _neither(study)
    said = []
    if first is None:
        said.append(f"No file is Class-1 (perplexity {_WITHIN[PaperClass.CLASS_1]}).")
    else:
        said.append(
            f"The smallest Class-1 file (perplexity {_WITHIN[PaperClass.CLASS_1]}) is {_facts(study, first)}."
        )
    if second is not None:
        said.append(f"The smallest Class-2 file ({_WITHIN[PaperClass.CLASS_2]}) is {_facts(study, second)}.")
    else:
        said.append("No smaller file is Class-2.")
    return [*said, *_doubts(study, [(PaperClass.CLASS_1, first), (PaperClass.CLASS_2, second)])]


def _neither(study: Study) -> list[str]:
    found = best(study)
    assert found is not None  # there are cells
    return [
        f"No file is Class-1 or Class-2 (perplexity {_WITHIN[PaperClass.CLASS_2]} of {study.mean:.3f}).",
        f"The best there is: {_facts(study, found)}. More bits, finer groups, a greater rank or"
        " calibration may bring it nearer.",
    ]


def _doubts(study: Study, chosen: list[tuple[PaperClass, CellResult | None]]) -> list[str]:
    """What is said where so few tokens were predicted that a file's class is not sure."""
    for paper_class, result in chosen:
        if result is not None and uncertainty(study, result) > paper_class.bound / 2:
            return [
                f"With {study.positions} tokens predicted, the gap of {result.cell.label} is known to about"
                f" {uncertainty(study, result):.2f} only: more --windows, or longer texts, tell it better."
            ]
    return []


def commands(study: Study) -> tuple[tuple[CellResult, str], ...]:
    """What is recommended, each with what makes it; two files of one scheme get names of their own."""
    found = recommended(study)
    if len({result.cell.scheme for result in found}) == len(found):
        return tuple((result, command(study, result)) for result in found)
    names = [str(Path(study.model).with_suffix(f".{result.cell.name}.onnx")) for result in found]
    return tuple((result, command(study, result, name)) for result, name in zip(found, names, strict=True))


def command(study: Study, result: CellResult, output: str | None = None) -> str:
    """The `zq2onnx convert` that makes a cell's file."""
    cell = result.cell
    words = ["zq2onnx", "convert", study.model, *(["-o", output] if output else [])]
    words += ["--scheme", cell.scheme, "--group-size", cell.group_size, "--method", cell.method]
    words += ["--lorc-rank", str(cell.lorc_rank)]
    if study.calibration and cell.calibrated:
        words += ["--calib", study.calibration]
        words += ["--tokenizer", study.tokenizer] if study.tokenizer else []
        for option, value in (
            ("--calib-samples", study.calib_samples),
            ("--calib-length", study.calib_length),
        ):
            words += [] if value is None else [option, str(value)]
    return shlex.join(words)


def _facts(study: Study, result: CellResult) -> str:
    """A cell and its numbers."""
    return (
        f"{result.cell.label}, {result.bytes / 1e6:.2f} MB of {study.bytes / 1e6:.2f} MB"
        f" ({study.bytes / result.bytes:.2f}x smaller), {result.gap:+.3f} in perplexity,"
        f" KL {kl_text(result.kl)}"
    )
