"""Checks what a study is asked for before any work is done, and says what tells it from other studies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zq2onnx import __version__
from zq2onnx.calibration.samples import Samples
from zq2onnx.configuration import context_length
from zq2onnx.conversion.calibration import read_samples
from zq2onnx.conversion.choices import Choices
from zq2onnx.conversion.loading import Source, load
from zq2onnx.conversion.options import Options, resolve
from zq2onnx.errors import UserError
from zq2onnx.evaluation import Plan, plan_evaluation
from zq2onnx.language import fixed_length, free_inputs, read_config
from zq2onnx.runtime.providers import require_onnxruntime
from zq2onnx.storage.mapped import file_digest
from zq2onnx.study.request import DEFAULT_SAMPLES, LONGEST_DEFAULT, Request
from zq2onnx.study.results import Cell
from zq2onnx.text import tokenizer_file


@dataclass(frozen=True)
class Prepared:
    """A request whose files were read and found to fit each other.

    Attributes:
        request: with nothing left open.
        tokenizer: of the model.
        plan: of the float model's evaluation.
        options: of each cell's conversion, in the order of the grid.
        identity: digests of model, texts and tokenizer, and how texts are cut: what makes results comparable.
        calibration: digest of the samples; "" where there are none.
        calib_samples, calib_length: given to convert; None where there is no calibration data.
        warnings: what the user should know.
    """

    request: Request
    tokenizer: Path
    plan: Plan
    options: Mapping[Cell, Options]
    identity: Mapping[str, Any]
    calibration: str
    calib_samples: int | None
    calib_length: int | None
    warnings: tuple[str, ...]

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return self.plan.length

    @property
    def measures_sensitivity(self) -> bool:
        """Whether each layer is measured alone too."""
        wanted = self.request.sensitivity
        return self.request.calib is not None if wanted is None else wanted

    def header(self, options: Mapping[str, Any] | None = None, calibrated: bool = False) -> dict[str, Any]:
        """What must be the same for a result to be used again."""
        return {
            "study": dict(self.identity),
            "zq2onnx": __version__,
            "onnxruntime": require_onnxruntime().__version__,
            "options": options,
            "calibration": self.calibration if calibrated else "",
        }

    def cell_header(self, cell: Cell) -> dict[str, Any]:
        """The header of a cell's result."""
        return self.header(self.options[cell].describe(), cell.calibrated)


def prepare(request: Request) -> Prepared:
    """Check all that a study needs, and read what tells it from others.

    Raises:
        UserError: as `convert` and `evaluate` do, for any cell; or calibration is spoken of without data.
    """
    _check_calibration(request)
    source = load(request.model)
    length = _default_length(request, source)
    calibrated = request.calib is not None
    samples, calib_length = _calibration_size(request, length)
    options = {
        cell: resolve(choices(cell, samples, calib_length), None, calibrated and cell.calibrated)
        for cell in request.grid.cells(calibrated)
    }
    tokenizer = request.model.parent if request.tokenizer is None else request.tokenizer
    plan = plan_evaluation([request.model], request.texts, tokenizer, length=length, windows=request.windows)
    found = _samples(request, source, tokenizer, samples, calib_length)
    return Prepared(
        request,
        tokenizer,
        plan,
        options,
        _identity(request, source, tokenizer, plan.length),
        "" if found is None else found.digest,
        samples,
        calib_length,
        () if found is None else (*found.warnings, *_overlap(request)),
    )


def choices(cell: Cell, calib_samples: int | None, calib_length: int | None) -> Choices:
    """What `convert` is told of a cell."""
    return Choices(
        scheme=cell.scheme,
        group_size=cell.group_size,
        method=cell.method,
        lorc_rank=cell.lorc_rank,
        calib_samples=calib_samples if cell.calibrated else None,
        calib_length=calib_length if cell.calibrated else None,
    )


def _calibration_size(request: Request, length: int | None) -> tuple[int | None, int | None]:
    """Samples and their length; None where there is no data."""
    if request.calib is None:
        return None, None
    samples = DEFAULT_SAMPLES if request.calib_samples is None else request.calib_samples
    default = LONGEST_DEFAULT if length is None else length
    return samples, default if request.calib_length is None else request.calib_length


def _check_calibration(request: Request) -> None:
    """Calibration data is needed by what is said about it."""
    if request.calib is not None:
        return
    spoken = {
        "--calib-samples": request.calib_samples,
        "--calib-length": request.calib_length,
        "--sensitivity": request.sensitivity or None,
    }
    for option, value in spoken.items():
        if value is not None:
            said = option if value is True else f"{option} {value}"
            raise UserError(said, "calibration data", "give --calib FILE.txt, or FILE.npz")


def _default_length(request: Request, source: Source) -> int | None:
    """Tokens in a window; None where the model does not tell its context, of which evaluation complains."""
    if request.length is not None:
        return request.length
    context = context_length(read_config(request.model))
    longest = None if context is None else min(context, LONGEST_DEFAULT)
    return fixed_length(free_inputs(source.model)) or longest


def _samples(
    request: Request, source: Source, tokenizer: Path, samples: int | None, length: int | None
) -> Samples | None:
    """The calibration samples, as every calibrated cell will read them."""
    if request.calib is None:
        return None
    said = resolve(Choices(calib_samples=samples, calib_length=length), None, calibrated=True)
    return read_samples(source, said, request.calib, tokenizer)


def _overlap(request: Request) -> list[str]:
    """What is said where calibration data and a text are the same."""
    assert request.calib is not None  # there are samples
    calib = file_digest(request.calib)
    return [
        f"{text} is also what is calibrated on: calibrated cells look better than they are"
        for text in request.texts
        if file_digest(text) == calib
    ]


def _identity(request: Request, source: Source, tokenizer: Path, length: int) -> dict[str, Any]:
    return {
        "model": source.digest,
        "data": {path.name: file_digest(path) for path in source.data},
        "texts": [file_digest(text) for text in request.texts],
        "tokenizer": file_digest(tokenizer_file(tokenizer)),
        "length": length,
        "windows": request.windows,
    }
