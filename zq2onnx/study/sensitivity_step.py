"""The layers of a study's model, each quantized alone: measured once, and kept as a record."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from zq2onnx.errors import UserError
from zq2onnx.planning.costs import Sensitivity
from zq2onnx.planning.sensitivity import DEFAULT_LENGTH, DEFAULT_WINDOWS, measure_sensitivity
from zq2onnx.planning.survey import Steps
from zq2onnx.scheme import Method
from zq2onnx.study.folder import Folder
from zq2onnx.study.preparation import Prepared
from zq2onnx.study.progress import Teller
from zq2onnx.study.records import read_record, sensitivity, write_record

_NAME = "sensitivity"


@dataclass(frozen=True)
class Layers:
    """What was found of the layers.

    Attributes:
        sensitivity: one for each scheme; none where it was not asked for, or could not be had.
        warnings: what the user should know.
    """

    sensitivity: tuple[Sensitivity, ...] = ()
    warnings: tuple[str, ...] = ()


def measure_layers(prepared: Prepared, folder: Folder, teller: Teller) -> Layers:
    """Measure each layer's weights alone, in every number of bits of the grid, where that is asked for.

    Activations stay float: of `w4a16` and `w4a8` there is one measurement, under the former's name. The group
    size is the grid's first; the method is gptq where the grid has it, else rtn; there is no branch. A model
    whose layers cannot be measured costs a warning, and not the study.
    """
    if not prepared.measures_sensitivity:
        return Layers()
    options = _options(prepared)
    header = prepared.header(options, calibrated=True)
    kept = read_record(folder.record(_NAME), header)
    if kept is not None:
        return Layers(tuple(map(sensitivity, kept["sensitivity"])), tuple(kept["warnings"]))
    warnings: list[str] = []
    teller.subject = "layers, each alone"
    try:
        found = _measure(prepared, options, teller, warnings)
    except UserError as error:
        return Layers((), (f"the sensitivity of layers was not measured: {error}",))
    plain = {"sensitivity": [dataclasses.asdict(each) for each in found], "warnings": warnings}
    write_record(folder.record(_NAME), header, plain)
    return Layers(found, tuple(warnings))


def _options(prepared: Prepared) -> dict[str, Any]:
    """What `measure_sensitivity` is told beside the files."""
    cells = list(prepared.options)
    methods = {cell.method for cell in cells}
    return {
        "schemes": list(dict.fromkeys(f"{cell.scheme.partition('a')[0]}a16" for cell in cells)),
        "group_size": cells[0].group_size,
        "method": (Method.GPTQ if Method.GPTQ.value in methods else Method.RTN).value,
        "lorc_rank": 0,
        "length": min(prepared.length, DEFAULT_LENGTH),
        "windows": min(prepared.request.windows, DEFAULT_WINDOWS),
        "calib_samples": prepared.calib_samples,
        "calib_length": prepared.calib_length,
    }


def _measure(
    prepared: Prepared, options: dict[str, Any], teller: Teller, warnings: list[str]
) -> tuple[Sensitivity, ...]:
    request = prepared.request
    assert request.calib is not None  # the request is refused otherwise
    steps = Steps(
        gradients=teller.counter("gathering gradients", "steps"),
        layers=teller.counter("quantizing", "layers"),
        measured=teller.counter("measuring", "pieces"),
    )
    return measure_sensitivity(
        request.model,
        calib=request.calib,
        texts=request.texts,
        tokenizer=prepared.tokenizer,
        steps=steps,
        warnings=warnings,
        **options,
    )
