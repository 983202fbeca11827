"""One cell of a study: converted aside, measured, and kept as a record."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

from zq2onnx import pipeline
from zq2onnx.errors import CheckFailed, UserError
from zq2onnx.evaluation import plan_evaluation
from zq2onnx.evaluation.results import ModelScore
from zq2onnx.report import NodeReport, Report
from zq2onnx.study.folder import Folder
from zq2onnx.study.preparation import Prepared
from zq2onnx.study.progress import Teller
from zq2onnx.study.records import cell_result, read_record, write_record
from zq2onnx.study.results import Cell, CellResult, LayerError


def finished_cell(prepared: Prepared, folder: Folder, cell: Cell) -> CellResult | None:
    """The result of an earlier run, if it is of this very cell, and its model where that is to stay."""
    plain = read_record(folder.record(cell.name), prepared.cell_header(cell))
    if plain is None or (prepared.request.keep_models and not folder.model(cell).is_file()):
        return None
    result = cell_result(plain)
    # The texts are the same; their paths may be written otherwise.
    names = map(str, prepared.request.texts)
    return dataclasses.replace(result, perplexity=dict(zip(names, result.perplexity.values(), strict=True)))


def run_cell(prepared: Prepared, folder: Folder, cell: Cell, teller: Teller) -> CellResult:
    """Convert and measure a cell from the beginning, and keep its record; of the model only where asked.

    Raises:
        UserError, CheckFailed: as `convert` and `evaluate` do, or there is nothing to measure.
    """
    model = folder.model(cell)
    shutil.rmtree(model.parent, ignore_errors=True)
    done = False
    try:
        report = _convert(prepared, model, cell, teller)
        score = _measure(prepared, folder, model, teller)
        result = _result(cell, report, score)
        write_record(folder.record(cell.name), prepared.cell_header(cell), dataclasses.asdict(result))
        done = True
    finally:
        if not (done and prepared.request.keep_models):
            shutil.rmtree(model.parent, ignore_errors=True)
    return result


def _convert(prepared: Prepared, model: Path, cell: Cell, teller: Teller) -> Report:
    request = prepared.request
    calibration = {
        "calib": request.calib,
        "tokenizer": prepared.tokenizer,
        "calib_samples": prepared.calib_samples,
        "calib_length": prepared.calib_length,
        "block_progress": teller.counter("calibrating", "blocks"),
    }
    report = pipeline.convert(
        request.model,
        model,
        scheme=cell.scheme,
        group_size=cell.group_size,
        method=cell.method,
        lorc_rank=cell.lorc_rank,
        check="none",
        force=True,
        **(calibration if cell.calibrated else {"progress": _weights(teller)}),
    )
    if not report.quantized:
        raise UserError(f"{request.model}: nothing to quantize", "a MatMul or Gemm with a constant weight")
    return report


def _weights(teller: Teller) -> Callable[[int, int], None]:
    """`convert` tells of weights by what was added."""
    tell, done = teller.counter("quantizing", "params"), 0

    def add(amount: int, total: int) -> None:
        nonlocal done
        done += amount
        tell(done, total)

    return add


def _measure(prepared: Prepared, folder: Folder, model: Path, teller: Teller) -> ModelScore:
    """Evaluate beside the float model, whose predictions are kept from one cell to the next."""
    request = prepared.request
    plan = plan_evaluation(
        [request.model, model],
        request.texts,
        prepared.tokenizer,
        length=prepared.length,
        windows=request.windows,
    )
    advance = teller.adder("evaluating", "windows", plan.runs)
    score = plan.run(advance, reference_cache=folder.reference).models[1]
    if not math.isfinite(score.mean) or not math.isfinite(score.kl):
        raise CheckFailed(f"its perplexity is {score.mean}, its KL {score.kl}: its logits are not all finite")
    return score


def _result(cell: Cell, report: Report, score: ModelScore) -> CellResult:
    return CellResult(
        cell,
        score.bytes,
        report.effective_bits or 0.0,
        score.perplexity,
        score.mean,
        score.gap,
        score.kl,
        score.top1,
        report.seconds,
        tuple(error for node in report.quantized if (error := _layer(node)) is not None),
    )


def _layer(node: NodeReport) -> LayerError | None:
    """The error of a layer's output, or of its weight where there was no calibration; None if not told."""
    error, plain = node.output_error, node.output_error_without_lorc
    if error is None or plain is None:
        error, plain = node.weight_error, node.weight_error_without_lorc
    return None if error is None or plain is None else LayerError(node.name, error, plain)
