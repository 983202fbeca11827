"""Gathers what the cause of one layer's error is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zq2onnx.diagnosis.effective_weight import (
    EffectiveWeight,
    StaticRange,
    effective_weight,
    static_range,
)
from zq2onnx.diagnosis.matching import Layer
from zq2onnx.diagnosis.measure import Feeds, energy, fed
from zq2onnx.diagnosis.running import Alone, Array, Opened, Tap
from zq2onnx.diagnosis.site import Site

MOST_TOKENS = 4096
"""Tokens that a layer is judged by at most."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Examination:
    """One layer, its weights in both models and what reaches it in the float one.

    Attributes:
        layer: which.
        x: float32 `[tokens, K]`, what the quantized layer is fed: the float model's input, smoothed.
        weight: float32 `[K, N]`, the float layer's, for `x` as it is here.
        rounded: the quantized layer's.
        own: energy of the error that it makes of `x`.
        by_weight: energy of `x @ (rounded - weight)`.
        by_activations: energy of what is left: of the rounding of `x` to integers.
        limits: the range of its int8 activations where it is constant.
    """

    layer: Layer
    x: Float32
    weight: Float32
    rounded: Float32
    own: float
    by_weight: float
    by_activations: float
    limits: StaticRange | None


def examine(
    layers: Sequence[Layer], of_float: Opened, quantized: Opened, feeds: Feeds
) -> dict[str, Examination]:
    """Examine layers, by name; those whose weights cannot be read off are left out.

    Raises:
        UserError: ONNX Runtime cannot load or run one of the models.
    """
    found = {}
    for layer in layers:
        site = layer.of_quantized
        if not isinstance(site, Site) or layer.embedding or layer.smoothing.obstacle:
            continue
        names = [layer.of_float.input.name or "", layer.of_float.output.name or ""]
        tap = Tap(of_float, names)
        alone = Alone(quantized, site)
        inputs, differences, wholes = [], [], []
        gathered = 0
        for sample in feeds:
            values = tap.run(sample)
            x = fed(layer, values[names[0]])
            made = alone.run(x)
            inputs.append(_rows(x))
            wholes.append(_rows(made))
            differences.append(_rows(made) - _rows(values[names[1]]))
            gathered += len(inputs[-1])
            if gathered >= MOST_TOKENS:
                break
        weights = _weights(layer, site, of_float, alone, x)
        if weights is not None:
            x_all = np.concatenate(inputs)
            if x_all.shape[1] == layer.shape[0]:
                found[layer.name] = _examination(
                    layer, site, x_all, np.concatenate(wholes), np.concatenate(differences), *weights
                )
    return found


def _examination(
    layer: Layer,
    site: Site,
    x: Float32,
    made: Float32,
    difference: Float32,
    mine: Float32,
    theirs: EffectiveWeight,
) -> Examination:
    rounded = theirs.matrix
    return Examination(
        layer=layer,
        x=x,
        weight=mine,
        rounded=rounded,
        own=energy(difference),
        by_weight=energy(x @ (rounded - mine)),
        by_activations=energy(made - (x @ rounded + theirs.bias)),
        limits=static_range(site),
    )


def _weights(
    layer: Layer, site: Site, of_float: Opened, alone: Alone, x: Array
) -> tuple[Float32, EffectiveWeight] | None:
    """Both layers' matrices for the same input; None where one cannot be read off."""
    k = layer.shape[0]
    mine = effective_weight(Alone(of_float, layer.of_float), layer.of_float, k, x)
    theirs = effective_weight(alone, site, k, x)
    if mine is None or theirs is None or mine.matrix.shape != theirs.matrix.shape:
        return None
    scales = layer.smoothing.scales
    return (mine.matrix if scales is None else mine.matrix * scales[:, None]), theirs


def _rows(array: Array) -> Float32:
    return array.reshape(-1, array.shape[-1]).astype(np.float32)
