"""The study, top to bottom: the float model, then cell by cell, then its layers; every result is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zq2onnx.errors import CheckFailed, Zq2onnxError
from zq2onnx.evaluation import check_perplexity
from zq2onnx.study.cells import finished_cell, run_cell
from zq2onnx.study.folder import Folder
from zq2onnx.study.outputs import write_outputs
from zq2onnx.study.preparation import Prepared, prepare
from zq2onnx.study.progress import Progress, Teller
from zq2onnx.study.records import read_record, write_record
from zq2onnx.study.request import Request
from zq2onnx.study.results import Cell, CellFailure, CellResult, Study
from zq2onnx.study.sensitivity_step import measure_layers

_FLOAT = "float"
"""The name of the float model's record."""


def run_study(request: Request, progress: Progress | None = None) -> Study:
    """Convert and measure every cell of a grid, and write `study.md`, `study.csv` and `study.json`.

    What an earlier run of the same study in the same folder finished is taken over; a cell that was
    interrupted, or gave no result, starts anew. A cell that fails is recorded, and the others go on.

    Args:
        request: what is asked for.
        progress: told of every step.

    Raises:
        UserError: a file, an option or a combination of them cannot be used, as is found before any cell
            is converted; or the folder holds another study.
        CheckFailed: the float model's predictions are not finite.
    """
    prepared = prepare(request)
    folder = Folder(request.folder)
    with folder.held():
        folder.claim(prepared.identity, request.force)
        study = _run(prepared, folder, progress)
        write_outputs(study, folder)
        folder.finish()
    return study


def _run(prepared: Prepared, folder: Folder, progress: Progress | None) -> Study:
    request = prepared.request
    results: dict[Cell, CellResult] = {}
    for cell in prepared.options:
        if (known := finished_cell(prepared, folder, cell)) is not None:
            results[cell] = known
    teller = Teller(progress, len(prepared.options), len(results), "float model")
    measured = _float_model(prepared, folder, teller)
    failures: dict[Cell, CellFailure] = {}
    for cell in prepared.options:
        if cell in results:
            continue
        teller.subject = cell.label
        try:
            results[cell] = run_cell(prepared, folder, cell, teller)
            teller.finished += 1
        except Zq2onnxError as error:
            failures[cell] = CellFailure(cell, " ".join(str(error).split()))
    layers = measure_layers(prepared, folder, teller)
    warnings = (*prepared.warnings, *layers.warnings)
    return Study(
        model=str(request.model),
        bytes=measured["bytes"],
        perplexity=dict(zip(map(str, request.texts), measured["perplexity"], strict=True)),
        mean=measured["mean"],
        length=prepared.length,
        positions=measured["positions"],
        calibration="" if request.calib is None else str(request.calib),
        cells=tuple(results[cell] for cell in prepared.options if cell in results),
        sensitivity=layers.sensitivity,
        failures=tuple(failures[cell] for cell in prepared.options if cell in failures),
        tokenizer=str(prepared.tokenizer),
        windows=request.windows,
        calib_samples=prepared.calib_samples,
        calib_length=prepared.calib_length,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _float_model(prepared: Prepared, folder: Folder, teller: Teller) -> Mapping[str, Any]:
    """Size and perplexities of the float model: the first thing measured, for it tells a wrong tokenizer.

    Raises:
        UserError: it predicts worse than one that knows nothing.
        CheckFailed: its predictions are not finite.
    """
    header = prepared.header()
    kept: Mapping[str, Any] | None = read_record(folder.record(_FLOAT), header)
    if kept is not None:
        return kept
    advance = teller.adder("evaluating", "windows", prepared.plan.runs)
    evaluation = prepared.plan.run(advance, reference_cache=folder.reference)
    check_perplexity(evaluation)
    (score,) = evaluation.models
    if not math.isfinite(score.mean):
        raise CheckFailed(f"{score.path}: its perplexity is {score.mean}: its logits are not all finite")
    measured = {
        "bytes": score.bytes,
        "perplexity": list(score.perplexity.values()),
        "mean": score.mean,
        "positions": evaluation.positions,
    }
    write_record(folder.record(_FLOAT), header, measured)
    return measured
