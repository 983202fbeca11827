"""How large a conversion's output will be, to the byte, before any number of it is computed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zq2onnx.conversion.calibration import set_up
from zq2onnx.conversion.dumps import Dumps
from zq2onnx.conversion.finish import least_ir_version, place_tensors, to_proto
from zq2onnx.conversion.identity import stamp
from zq2onnx.conversion.options import Options
from zq2onnx.conversion.placement import Compute, plan_output
from zq2onnx.conversion.stream import Written
from zq2onnx.conversion.summary import requirements
from zq2onnx.passes.find_smoothable import Site
from zq2onnx.passes.planned import FACTORS
from zq2onnx.passes.smooth import SmoothPass
from zq2onnx.pipeline import passes_for, prepare
from zq2onnx.planning.survey import Survey
from zq2onnx.report import Report


@dataclass(frozen=True)
class Sizes:
    """What an output takes, all low-rank branches kept.

    Attributes:
        total: bytes of model file and data; a single file has a little less, for nothing is placed in it.
        stored: bytes of codes, scales, zero points and factors.
        weights: how many weights these stand for.
        codes: of them the bytes of codes, scales and zero points, by the name of a node; nodes that share
            a weight share the bytes.
        factors: the same of low-rank factors.
    """

    total: int
    stored: int
    weights: int
    codes: dict[str, int]
    factors: dict[str, int]


def foresee_sizes(found: Survey, options: Options, output: Path) -> Sizes:
    """The sizes of what a conversion of a surveyed model with these options would write to `output`."""
    source = dataclasses.replace(found.source, model=found.source.model.clone())
    graph = source.model
    selection = prepare(source, options, Report(options.describe(), requirements(graph)), Dumps(None))
    calibration = set_up(source, options, found.samples, selection, _silent, _silent)
    sites = () if calibration is None else calibration.sites
    for step in passes_for(options, selection, graph):
        step(graph)
    plan = plan_output(graph, inline={vector.constant.name for site in sites for vector in site.vectors})
    SmoothPass(sites, {site.norm: _any_scales(site) for site in sites})(graph)
    graph.ir_version = least_ir_version(graph)
    graph.metadata_props.update(stamp(source, options, Written({}, {}, 0), found.samples))
    codes, factors = {}, {}
    by_weight = {task.weight: task for task in plan.tasks if isinstance(task, Compute)}
    for name, weight in selection.weights.items():
        parts = by_weight[weight].parts
        codes[name] = sum(part.nbytes for part in parts if part.part not in FACTORS)
        factors[name] = sum(part.nbytes for part in parts if part.part in FACTORS)
    stored = sum(part.nbytes for task in by_weight.values() for part in task.parts)
    weights = sum(weight.view.k * weight.view.n for weight in by_weight)
    data = plan.data.size
    for _, region in place_tensors(graph, plan, output.with_name(output.name + ".data")):
        data = region.offset + region.length
    return Sizes(
        data + to_proto(graph).ByteSize(),
        stored,
        weights,
        codes,
        factors,
    )


def _any_scales(site: Site) -> np.ndarray:
    """Scales that change every vector of a site; the sizes do not depend on them."""
    return np.full(site.k, 2, np.float32)


def _silent(done: int, total: int) -> None:
    """No progress is told."""
