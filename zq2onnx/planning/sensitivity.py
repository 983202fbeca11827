"""Sensitivity: what quantizing each layer alone costs, measured, and how well estimates foretell it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zq2onnx.calibration.samples import Samples
from zq2onnx.conversion.choices import Choices
from zq2onnx.numerics.rank_correlation import spearman
from zq2onnx.pipeline import default_jobs
from zq2onnx.planning.alone import divergences
from zq2onnx.planning.costs import OTHER, LayerCost, Sensitivity
from zq2onnx.planning.layers import Place, find_places
from zq2onnx.planning.rounding import Loss, round_layers
from zq2onnx.planning.survey import WITHOUT_GRADIENTS, Steps, Survey, survey
from zq2onnx.scheme import Activation, Scheme, parse_scheme_name
from zq2onnx.storage.array_store import ArrayStore

WEIGHTS_ALONE = "what int8 activations lose is not measured: the costs are those of the weights' codes alone"

DEFAULT_WINDOWS = 16
DEFAULT_LENGTH = 256


def measure_sensitivity(
    model: str | Path,
    *,
    calib: str | Path,
    texts: Sequence[str | Path] = (),
    tokenizer: str | Path | None = None,
    schemes: Sequence[str] = ("w3a16",),
    length: int = DEFAULT_LENGTH,
    windows: int = DEFAULT_WINDOWS,
    steps: Steps | None = None,
    warnings: list[str] | None = None,
    **options: object,
) -> tuple[Sensitivity, ...]:
    """Quantize each layer of a model alone, and measure what that does to its predictions.

    Args:
        model: ONNX file.
        calib: what the codes are chosen on, as `convert` has it.
        texts: held-out texts, or an .npz of the model's inputs; without any, nothing but estimates is had.
        tokenizer: the model's `tokenizer.json`, or the folder that holds it.
        schemes: such as `w3a16`; one result each.
        length: tokens in a window of held-out text.
        windows: of each text, the first ones.
        steps: told of progress.
        warnings: is given one line for each thing that the user should know.
        **options: others of `convert` that say how a layer is quantized and which ones: `group_size`,
            `method`, `symmetric`, `lorc_rank`, `calib_samples`, `calib_length`, `only`, `exclude` and so on.

    Raises:
        UserError: as `convert` does, or the model has no output to measure on.
    """
    said = Choices(scheme=schemes[0], **options)  # type: ignore[arg-type]
    token_file = None if tokenizer is None else Path(tokenizer)
    found = survey(Path(model), said, Path(calib), token_file)
    held_out = [found.windows(Path(text), token_file, windows, length) for text in texts]
    asked = [_scheme(found, name) for name in dict.fromkeys(schemes)]
    notes = [] if warnings is None else warnings
    notes += found.warnings
    if any(scheme.activation is Activation.A8 for scheme in asked):
        notes.append(WEIGHTS_ALONE)
    return tuple(_measure(found, asked, _joined(held_out), steps or Steps(), notes))


def _scheme(found: Survey, name: str) -> Scheme:
    """The scheme of a name, with all other choices as they were made."""
    bits, activation = parse_scheme_name(name)
    return dataclasses.replace(found.options.policy.scheme, bits=bits, activation=activation)


def _joined(parts: Sequence[Samples]) -> Samples | None:
    """Several texts' windows as one run of batches."""
    if not parts:
        return None
    batches = tuple(batch for part in parts for batch in part.batches)
    return dataclasses.replace(parts[0], batches=batches, held_out=(False,) * len(batches))


def _measure(
    found: Survey, schemes: Sequence[Scheme], held_out: Samples | None, steps: Steps, notes: list[str]
) -> list[Sensitivity]:
    places = find_places(found.model)
    losses: dict[str, dict[str, Loss]] = {label_of(scheme): {} for scheme in schemes}
    with contextlib.ExitStack() as stack:
        gradients = found.gradients(steps.gradients)
        if gradients is None:
            notes.append(WITHOUT_GRADIENTS)
        else:
            stack.enter_context(gradients)
            notes += gradients.notes
        store = stack.enter_context(ArrayStore())
        rounded = round_layers(
            found.model,
            found.source.path,
            found.samples,
            found.views,
            lambda node: schemes,
            sorted({scheme.lorc_rank for scheme in schemes}),
            gradients,
            jobs=default_jobs(),
            progress=steps.layers,
        )
        for layer in rounded:
            label, rank = label_of(layer.scheme), layer.scheme.lorc_rank
            losses[label][layer.node] = layer.losses[rank]
            if held_out is not None:
                what = f"the quantized layer {layer.node!r}"
                store.save((label, layer.node), layer.effective(rank), what)
        return [
            _result(label, of_label, places, _measured(found, held_out, store, label, of_label, steps))
            for label, of_label in losses.items()
        ]


def _measured(
    found: Survey,
    held_out: Samples | None,
    store: ArrayStore,
    label: str,
    losses: dict[str, Loss],
    steps: Steps,
) -> dict[str, float]:
    """The divergence by node; nothing where there is no held-out text."""
    if held_out is None:
        return {}
    changes = {node: functools.partial(store.load, (label, node)) for node in losses}
    return divergences(found.model, found.source.path, held_out, changes, progress=steps.measured)


def _result(
    label: str, losses: dict[str, Loss], places: dict[str, Place], measured: dict[str, float]
) -> Sensitivity:
    layers = []
    for node, loss in losses.items():
        place = places.get(node, Place(OTHER, 0))
        layers.append(LayerCost(node, place.kind, place.block, measured.get(node), loss.model, loss.layer))
    return Sensitivity(
        label,
        tuple(layers),
        _agreement([(layer.kl, layer.estimate) for layer in layers]),
        _agreement([(layer.kl, layer.layer_error) for layer in layers]),
    )


def _agreement(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Spearman's correlation of the pairs that are known; None where it is not defined."""
    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    if len(known) < 2:
        return None
    found = spearman(*zip(*known, strict=True))
    return None if np.isnan(found) else found


def label_of(scheme: Scheme) -> str:
    """A scheme in words.

    >>> label_of(Scheme(bits=3, lorc_rank=8))
    'w3a16 g128 rtn rank 8'
    """
    size = str(scheme.granularity)
    words = [scheme.name, size if size == "row" else f"g{size}", scheme.method.value]
    return " ".join([*words, f"rank {scheme.lorc_rank}"] if scheme.lorc_rank else words)
