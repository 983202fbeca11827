"""Finds by what the inputs of a quantized model's layers were divided (SmoothQuant)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from zq2onnx.passes.find_smoothable import Site, Vector, find_smoothable
from zq2onnx.passes.trace_weights import all_nodes, trace_constant

_TOLERANCE = 0.02
"""How far two vectors that were divided by the same factors may disagree about them: they are rounded in
the model's own type."""


@dataclass(frozen=True, eq=False)
class Smoothing:
    """What became of a layer's input.

    Attributes:
        scales: float32 `[K]`, by which the quantized model's input is smaller; None where it is the same.
        obstacle: why that cannot be told; "" where it can.
    """

    scales: npt.NDArray[np.float32] | None = None
    obstacle: str = ""


def find_smoothing(model: ir.Model, quantized: ir.Model) -> dict[str, Smoothing]:
    """Compare the norms before the layers of two models.

    Only a norm that linear layers alone read can have been divided without changing what the model means.

    Args:
        model: the float model, normalized.
        quantized: what was made of it; nodes are found by name.

    Returns:
        By the name of a layer's node, where its norm differs.
    """
    names = {node.name or "" for node in all_nodes(model)}
    theirs = {node.name: node for node in all_nodes(quantized)}
    found: dict[str, Smoothing] = {}
    for site in find_smoothable(model, names).sites:
        smoothing = _compare(site, theirs)
        if smoothing is not None:
            found.update(dict.fromkeys(site.linears, smoothing))
    return found


def _compare(site: Site, theirs: dict[str | None, ir.Node]) -> Smoothing | None:
    """None where the vectors are the same, or the other model has no such node."""
    ratios = []
    for vector in site.vectors:
        node = theirs.get(vector.node)
        if node is None or vector.index >= len(node.inputs):
            return None
        constant = trace_constant(node.inputs[vector.index])
        if isinstance(constant, str) or constant.shape != vector.constant.shape:
            return None
        mine = vector.values().astype(np.float32).reshape(-1)
        ratios.append(
            (mine, Vector(vector.node, vector.index, constant).values().astype(np.float32).reshape(-1))
        )
    if all(np.array_equal(mine, other) for mine, other in ratios):
        return None
    gamma, divided = ratios[0]
    scales = np.divide(gamma, divided, out=np.ones_like(gamma), where=divided != 0)
    for mine, other in ratios[1:]:
        # A shift's own rounding is that of its greatest numbers.
        if np.abs(other * scales - mine).max() > _TOLERANCE * max(np.abs(mine).max(), 1e-30):
            return Smoothing(obstacle=f"the norm {site.norm} before it differs, by no factor per channel")
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        return Smoothing(obstacle=f"the norm {site.norm} before it differs in sign, or is not finite")
    return Smoothing(scales.astype(np.float32))
