"""A study as JSON, and back: equal to what was written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zq2onnx.planning.costs import LayerCost, Sensitivity
from zq2onnx.storage.text_file import write_whole
from zq2onnx.study.results import Cell, CellFailure, CellResult, LayerError, Study


def to_json(study: Study) -> str:
    """A study as indented JSON.

    Raises:
        ValueError: a number is not finite.
    """
    return _dump(dataclasses.asdict(study))


def from_json(text: str) -> Study:
    """The study that `to_json` wrote.

    Raises:
        ValueError: the text is no JSON.
        KeyError, TypeError: it is not a study's.
    """
    plain = json.loads(text)
    plain["cells"] = tuple(cell_result(each) for each in plain["cells"])
    plain["failures"] = tuple(CellFailure(Cell(**each["cell"]), each["reason"]) for each in plain["failures"])
    plain["sensitivity"] = tuple(sensitivity(each) for each in plain["sensitivity"])
    plain["warnings"] = tuple(plain["warnings"])
    return Study(**plain)


def cell_result(plain: Mapping[str, Any]) -> CellResult:
    """A cell's result of plain values, `dataclasses.asdict` undone."""
    layers = tuple(LayerError(**each) for each in plain["layers"])
    return CellResult(**{**plain, "cell": Cell(**plain["cell"]), "layers": layers})


def sensitivity(plain: Mapping[str, Any]) -> Sensitivity:
    """A sensitivity of plain values, `dataclasses.asdict` undone."""
    return Sensitivity(**{**plain, "layers": tuple(LayerCost(**each) for each in plain["layers"])})


def write_record(path: Path, header: Mapping[str, Any], result: object) -> None:
    """Write a result under the header that says what it is of: whole or not at all, whatever interrupts."""
    write_whole(path, _dump({"header": header, "result": result}))


def read_record(path: Path, header: Mapping[str, Any]) -> Any:
    """The result in a record under this very header; None where there is no such record."""
    record = _read(path)
    return None if record is None or record["header"] != json.loads(json.dumps(header)) else record["result"]


def read_header(path: Path) -> Any:
    """The header of a record; None where there is no record."""
    record = _read(path)
    return None if record is None else record["header"]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not there, or somebody's edit
        return None
    return record if isinstance(record, dict) and record.keys() == {"header", "result"} else None


def _dump(plain: object) -> str:
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
