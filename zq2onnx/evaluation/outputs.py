"""Compares the outputs of models on ready-made inputs, of whatever kind they are."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from zq2onnx.archive import read_arrays
from zq2onnx.errors import UserError
from zq2onnx.evaluation.embedding import check_several
from zq2onnx.evaluation.model_file import read_model
from zq2onnx.evaluation.results import OutputEvaluation, OutputScore
from zq2onnx.evaluation.session import Session, opened
from zq2onnx.evaluation.subject import ModelFile, measure_file
from zq2onnx.language import free_inputs, static_dim
from zq2onnx.runtime.providers import require_onnxruntime

Progress = Callable[[float], None]


@dataclass(frozen=True)
class FedModel:
    """A model that is fed arrays.

    Attributes:
        file: the file's size.
        inputs: by name, the types that it reads.
        outputs: names, in the graph's order.
        batch: samples that its graph takes at once; None for any number.
    """

    file: ModelFile
    inputs: Mapping[str, np.dtype]
    outputs: tuple[str, ...]
    batch: int | None


@dataclass(frozen=True)
class OutputPlan:
    """A comparison whose models and arrays were read and found to fit each other.

    Attributes:
        models: the first is what the others are compared with.
        arrays: by archive, the inputs by name; their first axis counts samples.
        batch: samples that are run at once.
    """

    models: tuple[FedModel, ...]
    arrays: tuple[dict[str, np.ndarray], ...]
    batch: int

    @property
    def samples(self) -> int:
        """How many samples every model is run on: whole batches of each archive."""
        return sum(_count(arrays) // self.batch * self.batch for arrays in self.arrays)

    @property
    def runs(self) -> int:
        """How many samples are to be run, over all models."""
        return len(self.models) * self.samples

    def run(self, progress: Progress | None = None) -> OutputEvaluation:
        """Run every sample once on every model.

        All models are open at once. The outputs of two of them for one batch are held.

        Raises:
            UserError: ONNX Runtime cannot load or run a model, or their outputs differ in shape.
        """
        advance = progress or (lambda amount: None)
        differences = [{name: _Difference() for name in self.models[0].outputs} for _ in self.models]
        with contextlib.ExitStack() as stack:
            sessions = [stack.enter_context(opened(model.file.path)) for model in self.models]
            for arrays in self.arrays:
                for start in range(0, _count(arrays) // self.batch * self.batch, self.batch):
                    self._run_batch(sessions, arrays, start, differences, advance)
        scores = tuple(
            OutputScore(
                path=str(model.file.path),
                bytes=model.file.bytes,
                bits_per_weight=model.file.bits_per_weight,
                relative_error={name: difference.relative for name, difference in found.items()},
                largest_difference={name: difference.largest for name, difference in found.items()},
            )
            for model, found in zip(self.models, differences, strict=True)
        )
        return OutputEvaluation(scores, self.samples)

    def _run_batch(
        self,
        sessions: Sequence[Session],
        arrays: Mapping[str, np.ndarray],
        start: int,
        differences: Sequence[Mapping[str, _Difference]],
        progress: Progress,
    ) -> None:
        names = self.models[0].outputs
        first: list[np.ndarray] = []
        for model, session, found in zip(self.models, sessions, differences, strict=True):
            feeds = {
                name: array[start : start + self.batch].astype(model.inputs[name], copy=False)
                for name, array in arrays.items()
            }
            outputs = session.run(names, feeds, f"sample {start}")
            first = first or outputs
            for name, output, reference in zip(names, outputs, first, strict=True):
                if output.shape != reference.shape:
                    raise UserError(
                        f"{model.file.path}: output {name} is of shape {list(output.shape)}, in"
                        f" {self.models[0].file.path} of {list(reference.shape)}",
                        "models with the same outputs",
                    )
                found[name].add(output, reference)
            progress(self.batch)


def plan_outputs(
    models: Sequence[str | Path], archives: Sequence[str | Path], *, samples: int | None = None
) -> OutputPlan:
    """Read models and arrays, and check that they fit each other.

    Args:
        models: of the same inputs and outputs; the others are compared with the first.
        archives: `.npz` files of arrays under the names of the inputs, whose first axis counts samples.
        samples: the first of each archive to use; None for all.

    Raises:
        UserError: there is nothing to compare, a file is missing or is not what it should be, an archive
            does not fit a model, the models' outputs differ, or onnxruntime is not installed.
    """
    paths, files = [*map(Path, models)], [*map(Path, archives)]
    if not paths or not files:
        raise UserError(f"{len(paths)} models and {len(files)} archives", "at least one of each")
    if samples is not None and samples < 1:
        raise UserError(f"--windows {samples}", "at least 1")
    check_several(paths)
    require_onnxruntime()
    fed: list[FedModel] = []
    arrays: list[dict[str, np.ndarray]] = []
    for path in paths:
        model = read_model(path)
        arrays = [read_arrays(model, path, file, samples or sys.maxsize) for file in files]
        fed.append(_describe(path, model))
        _check_outputs(fed[0], fed[-1])
    batch = _common_batch(fed)
    for file, found in zip(files, arrays, strict=True):
        if _count(found) < batch:
            raise UserError(f"{file}: {_count(found)} samples", f"the {batch} that the graph takes at once")
    return OutputPlan(tuple(fed), tuple(arrays), batch)


def _describe(path: Path, model: ir.Model) -> FedModel:
    inputs = free_inputs(model)
    sizes = {size for size in (static_dim(value, 0) for value in inputs) if size is not None}
    if len(sizes) > 1:
        raise UserError(
            f"{path}: its inputs begin with axes of {', '.join(map(str, sorted(sizes)))}",
            "inputs whose first axis counts samples",
        )
    return FedModel(
        file=measure_file(path, model),
        inputs={
            value.name or "": np.dtype(np.float32 if value.dtype is None else value.dtype.numpy())
            for value in model.graph.inputs
        },
        outputs=_numeric_outputs(path, model),
        batch=next(iter(sizes), None),
    )


def _numeric_outputs(path: Path, model: ir.Model) -> tuple[str, ...]:
    """Outputs that are tensors of numbers."""
    names = tuple(
        value.name or ""
        for value in model.graph.outputs
        if not isinstance(value.type, ir.SequenceType | ir.OptionalType)
        and value.dtype is not ir.DataType.STRING
    )
    if not names:
        raise UserError(f"{path}: none of its outputs is a tensor of numbers", "outputs that can be compared")
    return names


def _check_outputs(first: FedModel, other: FedModel) -> None:
    if missing := [name for name in first.outputs if name not in other.outputs]:
        raise UserError(
            f"{other.file.path}: no output {', '.join(missing)}, which {first.file.path} has",
            "models with the same outputs",
        )


def _common_batch(models: Sequence[FedModel]) -> int:
    fixed = {model.batch: model.file.path for model in models if model.batch is not None}
    if len(fixed) > 1:
        told = ", ".join(f"{size} by {path}" for size, path in fixed.items())
        raise UserError(f"samples taken at once: {told}", "models with the same inputs")
    return next(iter(fixed), 1)


def _count(arrays: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(arrays.values())))


@dataclass
class _Difference:
    """Sums over samples, of one output."""

    _squares: float = 0.0
    _reference: float = 0.0
    largest: float = 0.0

    def add(self, output: np.ndarray, reference: np.ndarray) -> None:
        wide, exact = output.astype(np.float64), reference.astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinite ones may agree too
            error = np.where(wide == exact, 0.0, wide - exact)
        self._squares += float(np.vdot(error, error))
        self._reference += float(np.vdot(exact, exact))
        # max of NaN and a number depends on their order; the sum's does not.
        largest = float(np.abs(error).max(initial=0.0))
        self.largest = largest if math.isnan(largest) else max(self.largest, largest)

    @property
    def relative(self) -> float:
        """`‖y - y_first‖ / ‖y_first‖`; 0 where both are 0, infinite where only the first is."""
        if self._reference == 0:
            return math.inf if self._squares else 0.0
        return math.sqrt(self._squares / self._reference)
