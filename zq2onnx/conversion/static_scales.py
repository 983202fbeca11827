"""Static activation scales: calibration must tell them, and each is stored with its weight."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from zq2onnx.calibration.linears import Linear
from zq2onnx.conversion.placement import Compute
from zq2onnx.errors import UserError
from zq2onnx.passes.planned import Part, QuantizedWeight


def has_static_scale(task: Compute) -> bool:
    """Whether one scale, to be calibrated, serves all activations of a weight."""
    return any(part.part is Part.ACT_SCALE for part in task.parts)


def check_told(unreached: Iterable[Compute]) -> None:
    """Refuse static scales that nothing tells.

    Args:
        unreached: weights that calibration does not reach.

    Raises:
        UserError: one of them has such a scale.
    """
    for task in unreached:
        if has_static_scale(task):
            raise UserError(
                f"node {task.node!r}: calibration does not reach it, and nothing else tells the one scale of"
                " its activations",
                "a node outside of subgraphs that onnxruntime runs",
                f"leave it float: --exclude '^{re.escape(task.node)}$'",
            )


def check_shared(
    weights: Mapping[str, QuantizedWeight],
    tasks: Mapping[QuantizedWeight, Compute],
    linears: Mapping[str, Linear],
) -> None:
    """Refuse static scales of weights that are multiplied with several values: one is told of.

    Args:
        weights: by the name of the node that reads them.
        tasks: by weight.
        linears: what calibration reaches, by name.

    Raises:
        UserError: there is such a scale.
    """
    first: dict[QuantizedWeight, str] = {}
    for name, weight in weights.items():
        if weight.table or not has_static_scale(tasks[weight]):
            continue
        other = first.setdefault(weight, name)
        one, two = linears.get(other), linears.get(name)
        if other != name and (one is None or two is None or one.activation is not two.activation):
            raise UserError(
                f"nodes {other!r} and {name!r}: one weight behind two inputs, and one scale for all"
                " activations",
                "act-granularity token or block",
                f"or leave one of them float: --exclude '^{re.escape(name)}$'",
            )
