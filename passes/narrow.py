"""Turn float32 models into half-precision ones, without reading their weights yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from zq2onnx.passes.float_types import takes_type
from zq2onnx.passes.infer_types import infer_types
from zq2onnx.passes.recast import far, recast
from zq2onnx.passes.rewrite import unused
from zq2onnx.passes.trace_precision import Precision, is_float32, trace_precision
from zq2onnx.passes.trace_weights import all_nodes, constant_tensor, is_standard

FLOAT = ir.DataType.FLOAT
SUFFIXES = {FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
RESULT_TYPES = ("to", "dtype", "output_dtype")
"""The attributes by which operators name their result's type; stash_type, an intermediate's, stays."""
INDIFFERENT = ("Cast", "Shape", "Size")
"""What takes its input as it is."""


class NarrowFloatsPass(ir.passes.InPlacePass):
    """Replaces float32 with float16 or bfloat16, where that computes the same but for rounding.

    That is in inputs, outputs and weights, and in all nodes but those that `trace_precision` keeps in
    float32; a Cast is between. Inputs and outputs are then those of a model exported in that type. A
    float32 value that may be beyond the type's range, a mask, is clipped to half of it before it is
    cast: it stays finite when a score is added. Names stay; weights are converted when they are read
    (`RecastTensor`), and quantized ones never.

    (onnxruntime.transformers.float16 reads all weights, does not know bfloat16, and computes angles
    and variances in float16.)

    Args:
        dtype: float16 or bfloat16.

    Raises:
        UserError: the type of a value cannot be told.
    """

    def __init__(self, dtype: ir.DataType) -> None:
        super().__init__()
        self.dtype = dtype

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        infer_types(model)
        found = trace_precision(model, self.dtype)
        return ir.passes.PassResult(model, _Rewriting(model, found, self.dtype).run())


class _Rewriting:
    """One model's.

    Attributes:
        narrowed: values that are to be of the half type.
    """

    def __init__(self, model: ir.Model, found: Precision, dtype: ir.DataType) -> None:
        self.model = model
        self.found = found
        self.dtype = dtype
        self.version = model.opset_imports.get("", 1)
        values = _all_values(model)
        self.names = {value.name or "" for value in values}
        self.floats = {value for value in values if is_float32(value)}
        self.narrowed = {value for node in found.narrow for value in node.outputs if is_float32(value)}
        self.narrowed |= {value for value in model.graph.inputs if is_float32(value)}
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.bounds: dict[float, ir.Value] = {}

    def run(self) -> bool:
        """Rewrite; whether anything changed."""
        uses = [use for node in all_nodes(self.model) for use in self._uses(node)]
        self._narrow_constants(uses)
        stale = [
            (node, index, wanted) for node, index, wanted in uses if self._type(node.inputs[index]) != wanted
        ]
        for value in self.narrowed:
            self._retype(value)
        for node, index, wanted in stale:
            node.replace_input_with(index, self._as(node.inputs[index], wanted))
        for node in self.found.narrow:
            for name in RESULT_TYPES:
                if node.attributes.get_int(name, 0) == FLOAT.value:
                    node.attributes[name] = ir.AttrInt64(name, self.dtype.value)
        outputs = [self._narrow_outputs(graph) for graph in self._narrow_graphs()]
        return bool(self.narrowed or stale) or any(outputs)

    def _uses(self, node: ir.Node) -> Iterator[tuple[ir.Node, int, ir.DataType]]:
        """A node's float inputs, and the type in which it is to read each."""
        if is_standard(node, *INDIFFERENT):
            return
        takes = takes_type(node, self.version, self.dtype) if node in self.found.narrow else None
        for index, value in enumerate(node.inputs):
            if value in self.floats:
                yield node, index, self.dtype if takes is not None and takes[index] else FLOAT

    def _type(self, value: ir.Value | None) -> ir.DataType:
        return self.dtype if value in self.narrowed else FLOAT

    def _narrow_constants(self, uses: Sequence[tuple[ir.Node, int, ir.DataType]]) -> None:
        """Have the constants narrow that nobody reads as float32."""
        wanted: dict[ir.Value, set[ir.DataType]] = {}
        for node, index, dtype in uses:
            value = node.inputs[index]
            if value is not None and constant_tensor(value) is not None:
                wanted.setdefault(value, set()).add(dtype)
        for value, types in wanted.items():
            if types == {self.dtype} and not any(is_standard(node, "Cast") for node in value.consumers()):
                self.narrowed.add(value)

    def _retype(self, value: ir.Value) -> None:
        tensor, node = constant_tensor(value), value.producer()
        value.type = ir.TensorType(self.dtype)
        if value.const_value is not None:  # an initializer, or an input with a default
            value.const_value = recast(value.const_value, self.dtype)
        elif tensor is not None and node is not None:
            node.attributes.clear()
            node.attributes["value"] = ir.AttrTensor("value", recast(tensor, self.dtype))

    def _narrow_graphs(self) -> Iterator[ir.Graph]:
        """The graphs whose outputs are to be narrow: the main one, and branches of narrow Ifs."""
        yield self.model.graph
        for node in list(all_nodes(self.model)):
            for attribute in node.attributes.values() if node in self.found.narrow else ():
                if attribute.type is ir.AttributeType.GRAPH:
                    yield attribute.as_graph()

    def _narrow_outputs(self, graph: ir.Graph) -> bool:
        """Cast a graph's float32 outputs, each under its name; whether there are any."""
        stale = [i for i, value in enumerate(graph.outputs) if is_float32(value)]
        for index in stale:
            value = graph.outputs[index]
            cast = self._as(value, self.dtype)
            name, value.name = value.name, self._name(value, FLOAT)
            cast.name = name
            graph.outputs[index] = cast
        return bool(stale)

    def _as(self, value: ir.Value | None, dtype: ir.DataType) -> ir.Value:
        """A value in another type, made once."""
        assert value is not None
        key = (value, dtype)
        if key not in self.casts:
            tensor = constant_tensor(value)
            self.casts[key] = (
                self._cast(value, dtype) if tensor is None else self._constant(value, recast(tensor, dtype))
            )
        return self.casts[key]

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        name = self._name(value, tensor.dtype)
        made = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=value.shape, const_value=tensor)
        tensor.name = name
        graph = value.graph
        assert isinstance(graph, ir.Graph)
        graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        nodes = []
        source, name = value, self._name(value, dtype)
        if dtype is not FLOAT and value in self.found.huge:
            bounds = [self._bound(-far(dtype)), self._bound(far(dtype))]
            nodes.append(ir.node("Clip", [value, *bounds], name=f"{name}_clip"))
            source = nodes[0].outputs[0]
            source.name, source.type, source.shape = nodes[0].name, ir.TensorType(FLOAT), value.shape
        nodes.append(ir.node("Cast", [source], {"to": dtype.value}, name=name))
        made = nodes[-1].outputs[0]
        made.name, made.type, made.shape = name, ir.TensorType(dtype), value.shape
        _insert_behind(value, nodes)
        return made

    def _bound(self, limit: float) -> ir.Value:
        """A float32 scalar."""
        if limit not in self.bounds:
            label = f"zq2onnx/{SUFFIXES[self.dtype]}_{'upper' if limit > 0 else 'lower'}"
            tensor = ir.tensor(np.float32(limit), name=unused(label, self.names))
            made = ir.Value(
                name=tensor.name, type=ir.TensorType(FLOAT), shape=ir.Shape(()), const_value=tensor
            )
            self.model.graph.register_initializer(made)
            self.bounds[limit] = made
        return self.bounds[limit]

    def _name(self, value: ir.Value, dtype: ir.DataType) -> str:
        """A name of its own for a value in another type."""
        return unused(f"{value.name}_{SUFFIXES[dtype]}", self.names)


def _all_values(model: ir.Model) -> list[ir.Value]:
    graphs = list(model.graphs())
    known = [value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())]
    return known + [value for node in all_nodes(model) for value in node.outputs]


def _insert_behind(value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Put nodes where a value is there, and all who read it come later."""
    producer, graph = value.producer(), value.graph
    assert isinstance(graph, ir.Graph)
    if producer is not None:
        graph.insert_after(producer, nodes)
    else:
        graph.insert_before(graph[0], nodes)
