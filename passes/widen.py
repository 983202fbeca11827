"""Turn half-precision models into float32 ones, without reading their weights yet."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import TypeGuard

import onnx_ir as ir

from zq2onnx.passes.recast import recast

HALVES = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)

TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type", "softmax_precision")
"""The attributes by which operators name an element type: Cast, EyeLike and the random ones,
DequantizeLinear, LayerNormalization, Attention."""


class WidenToFloat32Pass(ir.passes.InPlacePass):
    """Replaces float16 and bfloat16 with float32, which holds every such number exactly.

    In initializers, constants, inputs, outputs, casts and value types of the graph, its subgraphs and
    local functions; all other tensors (codes, zero points, int8 factors) are left as they are. So the
    model computes what it means, less the rounding of its intermediates. A weight is read and widened
    anew whenever it is asked for, and not kept: two readers of one weight share nothing but its name.

    Args:
        types: what is replaced.
    """

    def __init__(self, types: Collection[ir.DataType] = HALVES) -> None:
        super().__init__()
        self.types = frozenset(types)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for value in _values(model):
            if self._is_half(value.type):
                value.type = _widened_type(value.type)
                modified = True
        for node in _nodes(model):
            for attribute in list(node.attributes.values()):
                if not attribute.is_ref():
                    modified |= self._widen_attribute(node, attribute)
        for value in _initializers(model):
            if value.const_value is not None and value.const_value.dtype in self.types:
                value.const_value = recast(value.const_value, ir.DataType.FLOAT)
                modified = True
        return ir.passes.PassResult(model, modified)

    def _is_half(self, type_: ir.TypeProtocol | None) -> TypeGuard[ir.TypeProtocol]:
        return type_ is not None and type_.dtype in self.types

    def _widen_attribute(self, node: ir.Node, attribute: ir.Attr) -> bool:
        """Widen a tensor, a type or the name of a type; whether there was anything to widen."""
        name, kind = attribute.name, attribute.type
        if kind is ir.AttributeType.TYPE_PROTO and self._is_half(attribute.value.type):
            known = ir.TypeAndShape(_widened_type(attribute.value.type), attribute.value.shape)
            node.attributes[name] = ir.AttrTypeProto(name, known)
            return True
        if kind is ir.AttributeType.INT and name in TYPE_ATTRIBUTES and attribute.value in self.types:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT.value)
            return True
        if kind is ir.AttributeType.TENSOR and attribute.value.dtype in self.types:
            node.attributes[name] = ir.AttrTensor(name, recast(attribute.value, ir.DataType.FLOAT))
            return True
        if kind is ir.AttributeType.TENSORS and any(tensor.dtype in self.types for tensor in attribute.value):
            tensors = [recast(t, ir.DataType.FLOAT) if t.dtype in self.types else t for t in attribute.value]
            node.attributes[name] = ir.AttrTensors(name, tensors)
            return True
        return False


def _widened_type(type_: ir.TypeProtocol) -> ir.TypeProtocol:
    """Another type object, of float32: a tensor's, or that of a sequence's or an optional's elements.

    A model and its clone share their type objects, so none is changed in place.
    """
    other = copy.deepcopy(type_)
    other.dtype = ir.DataType.FLOAT
    return other


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Every value of the model that may carry a type."""
    yield from _initializers(model)
    for graph in _graphs(model):
        yield from graph.inputs
    for function in model.functions.values():
        yield from function.inputs
    for node in _nodes(model):
        yield from node.outputs


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in _graphs(model):
        yield from graph.initializers.values()


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and every subgraph, functions' too."""
    yield from model.graphs()
    for function in model.functions.values():
        yield from function.subgraphs()


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the main graph, of subgraphs and of functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()
