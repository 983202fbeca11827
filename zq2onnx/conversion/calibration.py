"""What a calibrated conversion starts from: samples, the float graph, and where it can be smoothed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from zq2onnx.calibration.samples import Samples, load_samples
from zq2onnx.conversion.loading import Source
from zq2onnx.conversion.options import CalibrationOptions, Options, Smooth
from zq2onnx.errors import UserError
from zq2onnx.passes.candidates import EMBEDDING
from zq2onnx.passes.find_smoothable import Site, find_smoothable
from zq2onnx.passes.planned import QuantizedWeight
from zq2onnx.passes.select_nodes import Selection
from zq2onnx.scheme import Activation, Method

BlockProgress = Callable[[int, int], None]
"""Called with the number of blocks, or of steps, done and of all: with 0 first, then once for each."""

SMOOTHING_IS_OFF = "--smooth off"


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a calibrated conversion works with.

    Attributes:
        model: the float graph, a copy of its own. It is widened to float32 in place.
        source: where it comes from.
        samples: what it is run on.
        options: how.
        weights: by the name of every node that is rewritten.
        sites: where activation outliers can be moved into the weights, and are to be.
        rough: why linears with int8 activations belong to no site, by their names.
        progress: told of blocks.
        gradient_progress: told of steps of the pass that gathers gradients.
    """

    model: ir.Model
    source: Source
    samples: Samples
    options: CalibrationOptions
    weights: Mapping[str, QuantizedWeight]
    sites: Sequence[Site]
    rough: Mapping[str, str]
    progress: BlockProgress
    gradient_progress: BlockProgress


def read_samples(
    source: Source, options: Options, calib: Path | None, tokenizer: Path | None
) -> Samples | None:
    """What the model is to be calibrated on; None where nothing is given.

    Raises:
        UserError: the samples cannot be read, or do not fit the model.
    """
    if calib is None or options.calibration is None:
        if tokenizer is not None:
            raise UserError(f"--tokenizer {tokenizer}", "a text that it is for", "give --calib FILE.txt")
        return None
    given = options.calibration
    return load_samples(source.model, source.path, calib, tokenizer, given.samples, given.length)


def set_up(
    source: Source,
    options: Options,
    samples: Samples | None,
    selection: Selection,
    progress: BlockProgress,
    gradient_progress: BlockProgress,
) -> Calibration | None:
    """Copy the float graph, before passes rewrite it, and find where it can be smoothed.

    Args:
        source: the model, normalized.
        options: of the conversion.
        samples: what it is to be calibrated on; without them there is no calibration.
        selection: its weights are filled in later, by the passes.
        progress: told of blocks.
        gradient_progress: told of steps of the pass that gathers gradients.
    """
    if samples is None or options.calibration is None:
        return None
    sites, rough = _smoothing(options.calibration, selection, source.model)
    return Calibration(
        source.model.clone(),
        source,
        samples,
        options.calibration,
        selection.weights,
        sites,
        rough,
        progress,
        gradient_progress,
    )


def _smoothing(
    options: CalibrationOptions, selection: Selection, model: ir.Model
) -> tuple[tuple[Site, ...], dict[str, str]]:
    """Where outliers are to be moved into the weights, in front of int8 activations; why not elsewhere."""
    schemes = {
        node.name or "": scheme
        for node, (candidate, scheme) in selection.chosen.items()
        if candidate.role != EMBEDDING
    }
    int8 = [name for name, scheme in schemes.items() if scheme.activation is Activation.A8]
    if options.smooth is Smooth.OFF:
        return (), dict.fromkeys(int8, SMOOTHING_IS_OFF)
    found = find_smoothable(model, schemes)
    rough = {name: found.refused[name] for name in int8 if name in found.refused}
    sites = []
    for site in found.sites:
        if by_block := [name for name in site.linears if schemes[name].method is Method.ZQ_GLOBAL]:
            why = f"method zq-global chooses the codes of {by_block[0]} for the input as it is"
            rough |= {name: why for name in site.linears if name in int8}
        elif any(name in int8 for name in site.linears):
            sites.append(site)
    return tuple(sites), rough
