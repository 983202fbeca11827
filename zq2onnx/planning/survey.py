"""A model prepared for looking at its layers one by one: as `convert` would take it, up to calibration."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from zq2onnx.calibration.moment_store import OutputMoments
from zq2onnx.calibration.samples import Samples, load_samples
from zq2onnx.conversion.calibration import read_samples
from zq2onnx.conversion.choices import Choices
from zq2onnx.conversion.dumps import Dumps
from zq2onnx.conversion.loading import Source, load, naming
from zq2onnx.conversion.options import Options, resolve
from zq2onnx.conversion.summary import requirements
from zq2onnx.errors import UserError
from zq2onnx.language import static_dim
from zq2onnx.passes.candidates import EMBEDDING, Candidate
from zq2onnx.passes.planned import WeightView
from zq2onnx.passes.select_nodes import Selection
from zq2onnx.pipeline import check_byte_order, prepare
from zq2onnx.report import Report
from zq2onnx.runtime.providers import require_onnxruntime

Progress = Callable[[int, int], None]

WITHOUT_GRADIENTS = (
    "torch is not installed: without gradients the estimate is the error of each layer's own output, which"
    ' ranks layers poorly; pip install "zq2onnx[torch]"'
)


@dataclass(frozen=True)
class Steps:
    """Who is told of the steps of a measurement, each with how many of how many are done.

    Attributes:
        gradients: of the pass that gathers gradients.
        layers: of layers, quantized on calibration data.
        measured: of pieces of the model, run with one layer changed at a time.
        blocks: of blocks, calibrated by a plan that is tried.
    """

    gradients: Progress | None = None
    layers: Progress | None = None
    measured: Progress | None = None
    blocks: Progress | None = None


@dataclass(frozen=True, eq=False)
class Survey:
    """What a conversion would start from.

    Attributes:
        source: the model, normalized.
        options: of the conversion.
        samples: it is calibrated on.
        selection: which nodes would be rewritten, and by which scheme.
        model: the float graph, a copy of its own. It is widened to float32 in place.
        warnings: one line each.
    """

    source: Source
    options: Options
    samples: Samples
    selection: Selection
    model: ir.Model
    warnings: tuple[str, ...]

    @property
    def candidates(self) -> dict[str, Candidate]:
        """The linears that would be quantized, by node name, in graph order."""
        return {
            node.name or "": candidate
            for node, (candidate, _) in self.selection.chosen.items()
            if candidate.role != EMBEDDING
        }

    @property
    def views(self) -> dict[str, WeightView]:
        """Their weights."""
        return {
            name: candidate.view
            for name, candidate in self.candidates.items()
            if not isinstance(candidate.view, str)
        }

    def gradients(self, progress: Progress | None = None) -> OutputMoments | None:
        """Moments of the gradients at the layers' outputs; None without torch. The caller closes them.

        Of a model that cannot be differentiated there are none; their notes say why.
        """
        if importlib.util.find_spec("torch") is None:
            return None
        from zq2onnx.calibration.torch_gradients import OutputMoments, output_moments

        try:
            return output_moments(
                self.model, self.source.path, self.samples, [*self.views], progress=progress
            )
        except UserError as error:
            none = OutputMoments()
            none.notes = (f"there are no gradients: {error.found}",)
            return none

    def windows(self, text: Path, tokenizer: Path | None, count: int, length: int) -> Samples:
        """Windows of a text, or samples of an .npz, one a batch where the graph allows it.

        Raises:
            UserError: as `load_samples` does.
        """
        found = load_samples(
            self.model, self.source.path, text, tokenizer, count, length, options=("--windows", "--length")
        )
        return single_samples(self.model, found, count)


def single_samples(model: ir.Model, samples: Samples, most: int) -> Samples:
    """The first samples, one a batch where the graph does not fix how many are."""
    batches = samples.batches
    if not any(static_dim(value, 0) for value in model.graph.inputs):
        batches = tuple(
            {name: array[row : row + 1] for name, array in batch.items()}
            for batch in batches
            for row in range(len(next(iter(batch.values()))))
        )
    return dataclasses.replace(samples, batches=batches[:most], held_out=(False,) * len(batches[:most]))


def survey(
    model: Path, said: Choices, calib: Path, tokenizer: Path | None, recipe: Path | None = None
) -> Survey:
    """Read a model and its calibration samples, and select what would be quantized.

    Raises:
        UserError: as `convert` does; or there is nothing to quantize.
    """
    check_byte_order()
    options = resolve(said, recipe, calibrated=True)
    require_onnxruntime()
    source = load(model)
    samples = read_samples(source, options, calib, tokenizer)
    assert samples is not None  # there is calibration data
    report = Report(options.describe(), requirements(source.model))
    selection = prepare(source, options, report, Dumps(None))
    with naming(source.path):
        found = Survey(
            source,
            options,
            samples,
            selection,
            source.model.clone(),
            (*samples.warnings, *report.warnings),
        )
        if not found.views:
            raise UserError("no linear layer to quantize", "one at least", "`zq2onnx inspect` says why not")
        return found
