"""What quantizing each layer alone costs: measured, and as it is estimated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.lines import Line2D

from zq2onnx.pages.figure import Plot, house_style, new_figure, series_colour
from zq2onnx.pages.inline_svg import to_svg
from zq2onnx.pages.marks import SHAPES, draw_legend, marker
from zq2onnx.pages.rows import Row, draw_rows, height_of, second_entry
from zq2onnx.planning.costs import LayerCost, Sensitivity

_KINDS = ("attention in", "attention out", "MLP up", "MLP down", "other")
_AXES = {
    "kl": "KL, nats",
    "estimate": "estimated KL, nats",
    "layer_error": "energy of the output's error",
}


@dataclass(frozen=True)
class KindCost:
    """What the layers of a kind cost, each quantized alone; `share` is that of all, 0 to 1."""

    kind: str
    layers: int
    sum: float
    share: float


def plot_costs(sensitivity: Sensitivity, index: int) -> Plot:
    """Draw the best measure there is of each layer, and the estimate beside what was measured.

    Args:
        sensitivity: of one scheme.
        index: which it is in its study: ids are distinct in a page.
    """
    heading = f"Cost of each layer alone: {sensitivity.label}"
    measure = next(
        (name for name in _AXES if any(_finite(getattr(each, name)) for each in sensitivity.layers)), ""
    )
    if not measure:
        return Plot(heading, "", "Nothing was measured and nothing estimated.")
    layers = [layer for layer in sensitivity.layers if _finite(getattr(layer, measure))]
    rows = [_row(layer, measure) for layer in layers]
    caption = _caption(sensitivity, layers, measure)
    with house_style():
        figure, axes = new_figure(height_of(len(rows)) + 16)
        axes.set_xlabel(_AXES[measure])
        draw_rows(axes, rows)
        kinds = [kind for kind in _KINDS if any(_known(layer.kind) == kind for layer in layers)]
        entries = [Line2D([], [], linestyle="none", label=kind, **_style(kind)) for kind in kinds]
        if any(math.isfinite(row.second) for row in rows):
            entries.append(second_entry("estimate"))
        draw_legend(figure, entries)
        label = f"{heading}, a bar for each of {len(rows)} layers. {caption}"
        return Plot(heading, to_svg(figure, f"sensitivity-{index}", label), caption)


def costs_by_kind(sensitivity: Sensitivity) -> list[KindCost]:
    """Sums over the layers of a kind, the costliest first; empty where nothing is known in nats."""
    if not any(_finite(layer.kl) or _finite(layer.estimate) for layer in sensitivity.layers):
        return []
    sums = sensitivity.by_kind()
    total = math.fsum(sums.values())
    counts = {kind: sum(layer.kind == kind for layer in sensitivity.layers) for kind in sums}
    found = [
        KindCost(kind, counts[kind], cost, cost / total if total else 0.0) for kind, cost in sums.items()
    ]
    return sorted(found, key=lambda each: -each.sum)


def _row(layer: LayerCost, measure: str) -> Row:
    estimate = layer.estimate if measure == "kl" and layer.estimate is not None else math.nan
    known = "not measured" if layer.kl is None else f"KL {layer.kl:.3g}"
    tip = f"{layer.kind}, {known}" + ("" if layer.estimate is None else f", estimate {layer.estimate:.3g}")
    return Row(layer.node, getattr(layer, measure), estimate, tip, _style(layer.kind))


def _known(kind: str) -> str:
    return kind if kind in _KINDS else _KINDS[-1]


def _style(kind: str) -> dict[str, Any]:
    index = _KINDS.index(_known(kind))
    return marker(SHAPES[index], series_colour(index), "full")


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _caption(sensitivity: Sensitivity, layers: Sequence[LayerCost], measure: str) -> str:
    worst = max(layers, key=lambda layer: float(getattr(layer, measure)))
    unit = "" if measure == "layer_error" else " nats"
    said = [f"The costliest is {worst.node} ({worst.kind}), {getattr(worst, measure):.3g}{unit}."]
    if _finite(sensitivity.spearman):
        said.append(
            "The estimate, tr(G E R Eᵀ)/2, ranks the layers as they were measured to a Spearman"
            f" correlation of {sensitivity.spearman:.2f}."
        )
    if _finite(sensitivity.spearman_of_layer_error):
        said.append(
            "The weaker estimate, tr(E R Eᵀ), which knows no gradients, ranks them to"
            f" {sensitivity.spearman_of_layer_error:.2f}."
        )
    if measure == "estimate":
        said.append("Nothing was measured: this is the estimate tr(G E R Eᵀ)/2.")
    if measure == "layer_error":
        said.append(
            "Nothing was measured, and without gradients only the weaker estimate tr(E R Eᵀ) is known."
        )
    return " ".join(said)
