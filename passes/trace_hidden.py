"""Tell the values that a transformer hands from layer to layer from those that its layers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from zq2onnx.opset import DOMAIN
from zq2onnx.passes.candidates import ALREADY_QUANTIZED, FUSED, FUSED_PRODUCTS, OTHER_PRODUCTS
from zq2onnx.passes.trace_weights import GRAPH_TYPES, constant_tensor, is_standard, trace_constant

LOOKUPS = {"Gather", "GatherBlockQuantized", "EmbedLayerNormalization"}
PRODUCTS = {
    "MatMul",
    "Gemm",
    "ConvInteger",
    "QLinearConv",
    *OTHER_PRODUCTS,
    *ALREADY_QUANTIZED,
    *FUSED,
    *FUSED_PRODUCTS,
} - LOOKUPS
"""Operators that multiply with a weight, if they read one."""
RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
SIZES = ("Shape", "Size")


@dataclass(frozen=True, eq=False)
class Flow:
    """What becomes of what in a graph. Nodes of subgraphs count as part of the node that owns them.

    Attributes:
        reads: what each node reads, its subgraphs included, each value once.
        readers: the nodes that read a value, in graph order.
        constant: values that depend on constants alone.
        products: nodes that multiply something with a weight.
        hidden: what descends from a product or is the *stream* that the first of them branches off.
            Only values are told from one another by it: a `Shape` ends the descent.
    """

    reads: Mapping[ir.Node, tuple[ir.Value, ...]]
    readers: Mapping[ir.Value, tuple[ir.Node, ...]]
    constant: frozenset[ir.Value]
    products: frozenset[ir.Node]
    hidden: frozenset[ir.Value]


def trace_flow(model: ir.Model) -> Flow:
    """Classify the values of the main graph, without reading any weight.

    A *weight* is a constant of two or more dimensions, not counting those of one: rotary frequencies
    and masks of one row are none. Products are found by it. The stream is what the token embedding
    has become where the first layer's products branch off and its residual sum reads it, too.
    (To count every lookup as hidden, as one would expect, would also hide the rotary tables and
    the position biases that some models look up once for all layers.)
    """
    reads = {node: tuple(dict.fromkeys(_reads(node))) for node in model.graph}
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node, values in reads.items():
        for value in values:
            readers.setdefault(value, []).append(node)
    constant, weights = _constants(reads)
    products = {
        node
        for node, values in reads.items()
        if not constant.issuperset(values) and _is_product(node, weights, model.functions)
    }
    known = constant | _descend(reads, products, set())
    stream = _stream(reads, readers, products, lambda value: value not in known, weights)
    return Flow(
        reads=reads,
        readers={value: tuple(nodes) for value, nodes in readers.items()},
        constant=frozenset(constant),
        products=frozenset(products),
        hidden=frozenset(_descend(reads, products, stream)),
    )


def multiplies_hidden(node: ir.Node, flow: Flow) -> bool:
    """Whether a node holds attention: a product of two hidden values, or a fused operator."""
    if any("Attention" in inner.op_type for inner in (node, *_inner_nodes(node))):
        return True
    if node.op_type in PRODUCTS:
        return sum(value in flow.hidden for value in flow.reads[node]) > 1
    return any(_multiplies_activations(inner) for inner in _inner_nodes(node))


def _multiplies_activations(node: ir.Node) -> bool:
    """Whether a node of a subgraph is a product without a constant among its operands."""
    return is_standard(node, "MatMul", "Einsum") and all(
        isinstance(trace_constant(value), str) for value in node.inputs
    )


def _inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of a node's subgraphs, at any depth."""
    for attribute in node.attributes.values():
        if attribute.type in GRAPH_TYPES and not attribute.is_ref():
            graphs = [attribute.value] if attribute.type is ir.AttributeType.GRAPH else attribute.value
            for graph in graphs:
                yield from graph.all_nodes()


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    for inner in _inner_nodes(node):
        yield from (value for value in inner.inputs if value is not None and value.graph is node.graph)


def _constants(reads: Mapping[ir.Node, tuple[ir.Value, ...]]) -> tuple[set[ir.Value], set[ir.Value]]:
    """The values that depend on constants alone, and those of them that come from a weight."""
    constant: set[ir.Value] = set()
    weights: set[ir.Value] = set()
    for node, values in reads.items():
        for value in values:
            if value.producer() is None and constant_tensor(value) is not None:
                constant.add(value)
                if _is_matrix(constant_tensor(value)):
                    weights.add(value)
        if node.op_type not in RANDOM and constant.issuperset(values):
            constant.update(node.outputs)
            large = not weights.isdisjoint(values) or _is_matrix(constant_tensor(node.outputs[0]))
            if large and not is_standard(node, *SIZES):
                weights.update(node.outputs)
    return constant, weights


def _is_matrix(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and sum(size != 1 for size in tensor.shape.numpy()) >= 2


def _is_product(
    node: ir.Node, weights: set[ir.Value], functions: Mapping[ir.OperatorIdentifier, object]
) -> bool:
    """Whether a node, or one in its subgraphs, is of `PRODUCTS`, ours or a function, and reads a weight."""
    if any(_is_product(inner, weights, functions) for inner in _inner_nodes(node)):
        return True
    if node.op_type not in PRODUCTS and node.domain != DOMAIN and node.op_identifier() not in functions:
        return False
    return any(value in weights or _is_traced_matrix(value) for value in node.inputs if value is not None)


def _is_traced_matrix(value: ir.Value) -> bool:
    """Whether a value is a weight, where that was not found out before: in subgraphs."""
    found = trace_constant(value)
    return not isinstance(found, str) and sum(size != 1 for size in found.shape) >= 2


def _descend(
    reads: Mapping[ir.Node, tuple[ir.Value, ...]], products: set[ir.Node], stream: set[ir.Value]
) -> set[ir.Value]:
    """All that descends from the products' results and from the stream."""
    hidden = set(stream)
    for node, values in reads.items():
        if node in products or (not hidden.isdisjoint(values) and not is_standard(node, *SIZES)):
            hidden.update(node.outputs)
    return hidden


def _stream(
    reads: Mapping[ir.Node, tuple[ir.Value, ...]],
    readers: Mapping[ir.Value, list[ir.Node]],
    products: set[ir.Node],
    is_outer: Callable[[ir.Value], bool],
    weights: set[ir.Value],
) -> set[ir.Value]:
    """What both a product reads and a node that joins it with a product's result, as a residual sum does.

    Both by way of other nodes, perhaps; the last such values alone. A mask is read by the latter
    only, and an encoder's output, of which a decoder makes keys and values, by the former. Where
    nothing is joined, it is what several products read.
    """
    plain = {node for node in products if next(_inner_nodes(node), None) is None}
    joins = [
        node
        for node, values in reads.items()
        if node not in products and not all(map(is_outer, node.outputs)) and any(map(is_outer, values))
    ]
    common = _ancestors(reads, plain, is_outer, weights) & _ancestors(reads, joins, is_outer, weights)
    if common:
        return {v for v in common if all(common.isdisjoint(node.outputs) for node in readers.get(v, ()))}
    fed = {value for node in plain for value in reads[node] if is_outer(value)}
    return {value for value in fed if sum(node in plain for node in readers[value]) > 1}


def _ancestors(
    reads: Mapping[ir.Node, tuple[ir.Value, ...]],
    nodes: Iterable[ir.Node],
    is_outer: Callable[[ir.Value], bool],
    weights: set[ir.Value],
) -> set[ir.Value]:
    """The outer values that the nodes read, and what those are made of: no ids, no shapes."""
    found: set[ir.Value] = set()
    left = [value for node in nodes for value in reads[node] if is_outer(value)]
    while left:
        value = left.pop()
        if value in found:
            continue
        found.add(value)
        node = value.producer()
        is_lookup = node is not None and node.op_type in LOOKUPS and not weights.isdisjoint(reads[node])
        if node is not None and not is_lookup and not is_standard(node, *SIZES):
            left += [value for value in reads[node] if is_outer(value)]
    return found
