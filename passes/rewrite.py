"""Make the nodes that take another node's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from zq2onnx.opset import GROUP_KEY
from zq2onnx.passes.planned import PlannedTensor

Attributes = Mapping[str, int | float | str | Sequence[int]]


class Group:
    """The nodes that replace one node: named after it, marked with `GROUP_KEY`.

    They are inserted before `anchor`, whose output value's name, type, shape and readers go to
    the group's result.

    Args:
        anchor: the node to replace.
        model: the model it is in.
        source: the node to be named after and to take metadata from, if another.
    """

    def __init__(self, anchor: ir.Node, model: ir.Model, source: ir.Node | None = None) -> None:
        source = source or anchor
        self.anchor = anchor
        assert isinstance(anchor.graph, ir.Graph)
        self.graph = anchor.graph
        self.root = model.graph
        self.name = source.metadata_props.get(GROUP_KEY) or source.name or source.outputs[0].name or ""
        self.metadata = source.metadata_props

    def constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        """The initializer of a tensor, shared by all who name it.

        Planned tensors are their graph's own, for ONNX Runtime fuses no DequantizeLinear in a subgraph
        that reads the outer graph's; others are the main graph's.
        """
        assert tensor.name
        owner = self.graph if isinstance(tensor, PlannedTensor) else self.root
        while (existing := owner.initializers.get(tensor.name)) is not None:
            if _same(existing.const_value, tensor):
                return existing
            tensor.name += "_"  # the model has another tensor of this name
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        owner.register_initializer(value)
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Attributes | None = None,
        *,
        suffix: str = "",
        domain: str = "",
        dtype: ir.DataType | None = None,
        marked: bool = True,
    ) -> ir.Value:
        """Insert a node and return its output.

        Args:
            suffix: tells it from the group's others; without one it is the group's main node, which
                takes over the source's metadata.
            dtype: its output's, which ONNX cannot infer for other domains than its own.
            marked: whether it belongs to what the group computes of its one activation.
        """
        name = f"{self.name}/{suffix}" if suffix else self.name
        made = ir.node(op_type, inputs, attributes or {}, domain=domain, name=name)
        if not suffix:
            made.metadata_props.update(self.metadata)
        if marked:
            made.metadata_props[GROUP_KEY] = self.name
        made.outputs[0].name = f"{name}/output"
        made.outputs[0].type = None if dtype is None else ir.TensorType(dtype)
        self.graph.insert_before(self.anchor, made)
        return made.outputs[0]

    def finish(self, result: ir.Value) -> None:
        """Give `result` the place of the anchor's output and remove the anchor.

        What only the anchor read is dead then; the pass that rewrites sweeps it up.
        """
        old = self.anchor.outputs[0]
        name, old.name = old.name, None
        result.name, result.type, result.shape = name, old.type or result.type, old.shape
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        self.graph.remove(self.anchor, safe=True)


def unused(name: str, taken: set[str]) -> str:
    """The name, with as many underscores behind it as make it a new one; it is taken then.

    >>> unused("w", {"w", "w_"})
    'w__'
    """
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _same(one: ir.TensorProtocol | None, other: ir.TensorProtocol) -> bool:
    if isinstance(one, PlannedTensor) and isinstance(other, PlannedTensor):
        return one.key == other.key
    if one is None or isinstance(one, PlannedTensor) or isinstance(other, PlannedTensor):
        return False
    alike = one.dtype == other.dtype and tuple(one.shape.numpy()) == tuple(other.shape.numpy())
    return alike and np.array_equal(one.numpy(), other.numpy())


def sweep(model: ir.Model) -> None:
    """Remove nodes and initializers that nobody reads, those of subgraphs too."""
    common.RemoveUnusedNodesPass()(model)
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_input() or value.is_graph_output()):
                del graph.initializers[name]
