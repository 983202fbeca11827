"""What quantizing each layer costs, by scheme and rank, in nats of the model's predictions."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping

from zq2onnx.calibration.moment_store import OutputMoments
from zq2onnx.calibration.samples import Samples
from zq2onnx.pipeline import default_jobs
from zq2onnx.planning.alone import divergences
from zq2onnx.planning.alternatives import Grid
from zq2onnx.planning.rounding import Loss, round_layers
from zq2onnx.planning.survey import Steps, Survey, single_samples
from zq2onnx.scheme import Scheme
from zq2onnx.storage.array_store import ArrayStore

PROBE_BITS = 3
"""Layers without gradients are changed one at a time, by codes of so many bits, to see what they matter."""

PROBE_SAMPLES = 16
"""What that is measured on, at most: of the held-out calibration samples."""

Costs = Mapping[tuple[str, Scheme], Mapping[int, float]]
"""By node and its scheme: the cost by rank of the branch."""


def estimate_costs(found: Survey, grid: Grid, steps: Steps, warnings: list[str]) -> Costs:
    """Estimate every cost.

    It is `tr(G E R Eᵀ) / 2` (K-FAC). Where the gradients' moment G is not known, it is `tr(E R Eᵀ)` times
    what one measured change of that layer gives for each unit of it.

    Args:
        found: the model.
        grid: what to try.
        steps: told of progress.
        warnings: is given one line for each thing that the user should know.

    Returns:
        Nothing for nodes that calibration does not reach.

    Raises:
        UserError: ONNX Runtime or torch cannot run the model, or a weight is not finite.
    """
    losses: dict[tuple[str, Scheme], Mapping[int, Loss]] = {}
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(ArrayStore())
        gradients = found.gradients(steps.gradients)
        if gradients is not None:
            stack.enter_context(gradients)
        probed: dict[str, Loss] = {}
        for layer in round_layers(
            found.model,
            found.source.path,
            found.samples,
            found.views,
            grid.schemes,
            grid.all_ranks,
            gradients,
            jobs=default_jobs(),
            progress=steps.layers,
        ):
            losses[layer.node, layer.scheme] = layer.losses
            if layer.losses[0].model is None and _is_probe(layer.scheme, layer.node, grid):
                probed[layer.node] = layer.losses[0]
                store.save(layer.node, layer.effective(0), f"the quantized layer {layer.node!r}")
        units = _measure_units(found, probed, store, steps)
        if probed:
            warnings.append(_told(probed, gradients))
    return {
        key: {rank: _cost(loss, units.get(key[0])) for rank, loss in of.items()} for key, of in losses.items()
    }


def _is_probe(scheme: Scheme, node: str, grid: Grid) -> bool:
    """Whether it is the scheme that a layer is changed by: the last of `PROBE_BITS`, or of what there is."""
    schemes = grid.schemes(node)
    wanted = [each for each in schemes if each.bits == PROBE_BITS] or list(schemes)
    return scheme == wanted[-1]


def _measure_units(
    found: Survey, probed: Mapping[str, Loss], store: ArrayStore, steps: Steps
) -> dict[str, float]:
    """The divergence for each unit of a layer's output error, by node."""
    if not probed:
        return {}
    changes = {node: functools.partial(store.load, node) for node in probed}
    samples = single_samples(found.model, _held_out(found.samples), PROBE_SAMPLES)
    measured = divergences(found.model, found.source.path, samples, changes, progress=steps.measured)
    return {
        node: max(0.0, measured[node]) / loss.layer if loss.layer > 0 else 0.0  # rounding may make it less
        for node, loss in probed.items()
        if node in measured
    }


def _held_out(samples: Samples) -> Samples:
    """The held-out samples, or all where none is."""
    batches = tuple(batch for batch, out in zip(samples.batches, samples.held_out, strict=True) if out)
    batches = batches or samples.batches
    return dataclasses.replace(samples, batches=batches, held_out=(False,) * len(batches))


def _cost(loss: Loss, unit: float | None) -> float:
    """In nats; 0 where the predictions do not depend on the layer."""
    if loss.model is not None:
        return loss.model
    return loss.layer * unit if unit is not None else 0.0


def _told(probed: Mapping[str, Loss], gradients: OutputMoments | None) -> str:
    why = "torch is not installed" if gradients is None else "; ".join(gradients.notes)
    return f"what {len(probed)} layers matter was measured once for each, not taken from gradients: {why}"
