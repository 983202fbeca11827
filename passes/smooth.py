"""Move activation outliers into the weights, where the graph allows it (SmoothQuant)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from zq2onnx.numerics.grid import Float32Array
from zq2onnx.passes.find_smoothable import Site, Vector
from zq2onnx.passes.rewrite import sweep
from zq2onnx.passes.trace_weights import all_nodes, trace_constant

SUFFIX = "_smoothed"
"""What a divided constant's name is the old one's with."""


class SmoothPass(ir.passes.InPlacePass):
    """Replaces gamma and beta of a normalization with `gamma / s` and `beta / s`.

    The weights behind it must be multiplied by s, which is left to whoever quantizes them: no weight is read
    here. Nodes are found by name, so the pass works on a graph whose linears are rewritten. Constants
    that others read too stay for them.

    Args:
        sites: from `find_smoothable`, on this model or on the float one it was made of.
        scales: float32 `[K]`, by `Site.norm`; sites without are left as they are. See `Site.fit`.
    """

    def __init__(self, sites: Sequence[Site], scales: Mapping[str, Float32Array]) -> None:
        super().__init__()
        self.sites = sites
        self.scales = scales

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = {node.name: node for node in all_nodes(model)}
        names = {value.name for graph in model.graphs() for value in graph.initializers.values()}
        names.update(value.name for value in model.graph.inputs)
        names.update(value.name for node in nodes.values() for value in node.outputs)
        modified = False
        for site in self.sites:
            if site.norm in self.scales:
                for vector in site.vectors:
                    modified |= _divide(model, nodes[vector.node], vector, self.scales[site.norm], names)
        if modified:
            sweep(model)
        return ir.passes.PassResult(model, modified)


def _divide(
    model: ir.Model, node: ir.Node, vector: Vector, scales: Float32Array, names: set[str | None]
) -> bool:
    """Let a node read a vector over scales; whether it did not yet."""
    wanted = vector.divided(scales)
    current = trace_constant(node.inputs[vector.index])
    if not isinstance(current, str) and np.array_equal(Vector("", 0, current).values(), wanted):
        return False
    name = vector.constant.name + SUFFIX
    while name in names:
        name += "_"
    names.add(name)
    value = ir.Value(
        name=name,
        shape=ir.Shape(wanted.shape),
        type=ir.TensorType(vector.constant.dtype),
        const_value=ir.tensor(wanted, name=name),
    )
    model.graph.register_initializer(value)
    node.replace_input_with(vector.index, value)
    return True
