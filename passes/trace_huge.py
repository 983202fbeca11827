"""Find the values that may be beyond a half type's range: masks, above all."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import ml_dtypes
import numpy as np
import onnx_ir as ir

from zq2onnx.passes.trace_weights import GRAPH_TYPES, constant_tensor, is_standard

READ_AT_MOST = 1 << 12
"""A constant of more numbers is no mask's filling, and is not read to see how large they are."""
BOUNDED = {"Cos", "Sigmoid", "Sin", "Softmax", "Tanh"}
"""What is never large, whatever it is made of."""


def trace_huge(graph: ir.Graph, narrow: Collection[ir.Node], dtype: ir.DataType) -> set[ir.Value]:
    """The float values that are made, in nodes that stay float32, of numbers beyond a half type's range.

    The type's greatest number counts as one beyond: whoever writes that means a mask. Infinities, which are
    so on purpose, do not.

    Args:
        graph: the main one; types of all values known.
        narrow: the nodes whose results are of the half type.
        dtype: float16 or bfloat16.
    """
    tracer = _Tracer(narrow, float(ml_dtypes.finfo(dtype.numpy()).max))
    tracer.visit(graph)
    return tracer.huge


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """A node's own graphs: branches, bodies."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type in GRAPH_TYPES and not attribute.is_ref():
            found += [attribute.value] if attribute.type is ir.AttributeType.GRAPH else attribute.value
    return found


def reads(node: ir.Node) -> list[ir.Value]:
    """What a node reads, in its subgraphs too."""
    inner = [each for graph in subgraphs(node) for each in graph.all_nodes()]
    return [value for each in (node, *inner) for value in each.inputs if value is not None]


class _Tracer:
    def __init__(self, narrow: Collection[ir.Node], limit: float) -> None:
        self.narrow = narrow
        self.limit = limit
        self.huge: set[ir.Value] = set()

    def visit(self, graph: ir.Graph) -> None:
        """Go through a graph in its order."""
        for node in graph:
            for inner in subgraphs(node):
                self.visit(inner)
            if node not in self.narrow:
                self.huge.update(value for value in self._made(node) if _is_float(value))

    def _made(self, node: ir.Node) -> Iterable[ir.Value]:
        """The results of a node that are huge."""
        inner = subgraphs(node)
        if is_standard(node, "If"):  # its branches have as many outputs as it has
            columns = zip(node.outputs, *(graph.outputs for graph in inner), strict=True)
            return [value for value, *made in columns if any(map(self._is_huge, made))]
        if is_standard(node, "ConstantOfShape"):
            filling = node.attributes.get("value")
            return node.outputs if filling is not None and self._is_beyond(filling.as_tensor()) else ()
        given = [*reads(node), *(value for graph in inner for value in graph.outputs)]
        found = not is_standard(node, *BOUNDED) and any(map(self._is_huge, given))
        return node.outputs if found else ()

    def _is_huge(self, value: ir.Value) -> bool:
        tensor = constant_tensor(value)
        if tensor is None or tensor.size > READ_AT_MOST:
            return value in self.huge
        return self._is_beyond(tensor)

    def _is_beyond(self, tensor: ir.TensorProtocol) -> bool:
        if not tensor.dtype.is_floating_point():
            return False
        with np.errstate(over="ignore"):
            size = np.abs(tensor.numpy().astype(np.float32))
        return bool(np.any((size >= self.limit) & np.isfinite(size)))


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()
