"""Make the nodes that take another node's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from zq2onnx.opset import GROUP_KEY


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
        assert anchor.graph is not None
        source = source or anchor
        self.anchor = anchor
        self.graph = anchor.graph
        self.root = model.graph
        self.name = source.metadata_props.get(GROUP_KEY) or source.name or source.outputs[0].name or ""
        self.metadata = {**source.metadata_props, GROUP_KEY: self.name}

    def constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        """The initializer of a tensor in the main graph, shared by all who name it."""
        assert tensor.name
        existing = self.root.initializers.get(tensor.name)
        if existing is not None:
            return existing
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(tensor.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.root.register_initializer(value)
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, object] | None = None,
        *,
        suffix: str = "",
        domain: str = "",
        dtype: ir.DataType | None = None,
    ) -> ir.Value:
        """Insert a node and return its output. `suffix` tells it from the group's others."""
        name = f"{self.name}/{suffix}" if suffix else self.name
        made = ir.node(op_type, inputs, attributes or {}, domain=domain, name=name)
        made.metadata_props.update(self.metadata)
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
