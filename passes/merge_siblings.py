"""Make one product of those that read the same input: query, key and value; gate and up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from zq2onnx.passes.candidates import EMBEDDING, MERGED_KEY, Candidate, find_candidates
from zq2onnx.passes.joined import JoinedTensor, joined
from zq2onnx.passes.lower_portable import is_vector_bias
from zq2onnx.passes.planned import WeightView
from zq2onnx.passes.rewrite import sweep, unused
from zq2onnx.passes.select_nodes import Selection
from zq2onnx.passes.trace_weights import all_nodes, constant_tensor, is_standard, trace_constant
from zq2onnx.scheme import Scheme

MOST = 4
"""So many at most become one: all have one branch of the same rank, which does the less for each."""


@dataclass(frozen=True, eq=False)
class _Sibling:
    """One of several products of one input.

    Attributes:
        candidate: it.
        view: its weight.
        bias: what is added to it, `[N]`; None for nothing.
        last: the node that has the result.
    """

    candidate: Candidate
    view: WeightView
    bias: ir.TensorProtocol | None
    last: ir.Node

    @property
    def name(self) -> str:
        """The product's name."""
        return self.candidate.node.name or ""


class MergeSiblingsPass(ir.passes.InPlacePass):
    """Replaces `MatMul(x, W1)`, `MatMul(x, W2)`, .. with `Split(MatMul(x, [W1 W2 ..]))`, biases along.

    Gemms become MatMuls. Those merge whose weights are to be quantized in the same way and have one type,
    `MOST` at a time, and that have no product of another input between them, as those of several layers have
    that all read one encoder; what keeps others from it is in `refused`. No weight is read (`JoinedTensor`).
    The merged node is named after all, and is found by the names of each. Runs before the selection that is
    rewritten.

    Args:
        selection: which nodes are to be quantized, and how.

    Attributes:
        refused: why a node that has siblings is merged with none of them, by its name.
    """

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        self.selection = selection
        self.refused: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        candidates = [each for each in find_candidates(model) if isinstance(each.view, WeightView)]
        readers = Counter(each.storage for each in candidates)
        taken = _names(model)
        modified = False
        for run in self._runs([each for each in candidates if each.role != EMBEDDING]):
            for siblings in self._mergeable(run, readers):
                _merge(siblings, taken)
                modified = True
        if modified:
            sweep(model)
        return ir.passes.PassResult(model, modified)

    def _runs(self, products: list[Candidate]) -> Iterator[list[Candidate]]:
        """The products of each input that follow one another; what is alone of several is refused."""
        families: dict[tuple[ir.Value | None, int], list[list[Candidate]]] = {}
        last = None
        for each in products:
            key = (each.node.inputs[0], id(each.node.graph))
            if key != last:
                families.setdefault(key, []).append([])
            families[key][-1].append(each)
            last = key
        for runs in families.values():
            for run in runs:
                if len(run) > 1:
                    yield run
                elif len(runs) > 1 and run[0].node in self.selection.chosen:
                    other = next(each[0].node.name for each in runs if each is not run)
                    reason = f"{other} reads the same input, but products of others are between them"
                    self.refused[run[0].node.name or ""] = reason

    def _mergeable(
        self, run: list[Candidate], readers: Counter[tuple[object, ...] | None]
    ) -> Iterator[list[_Sibling]]:
        """The products of one input that can be one, two or more at a time."""
        alike: dict[tuple[object, ...], list[_Sibling]] = {}
        for candidate in run:
            if candidate.node not in self.selection.chosen or candidate.merged:
                continue  # its own reason is reported
            scheme = self.selection.chosen[candidate.node][1]
            found = _sibling(candidate, readers[candidate.storage] > 1)
            if isinstance(found, str):
                self.refused[candidate.node.name or ""] = found
            else:
                alike.setdefault((scheme, found.view.dtype, found.view.tensor.dtype), []).append(found)
        for siblings in alike.values():
            if len(siblings) == 1:
                self.refused[siblings[0].name] = _alone(siblings[0], run, self.selection)
            else:
                yield from _parts(siblings)


def _parts(siblings: list[_Sibling]) -> Iterator[list[_Sibling]]:
    """As few parts as hold `MOST` each, all of about one size."""
    count = -(-len(siblings) // MOST)
    bounds = [len(siblings) * part // count for part in range(count + 1)]
    return (siblings[start:end] for start, end in pairwise(bounds))


def _names(model: ir.Model) -> set[str]:
    """The names of all nodes and values."""
    names = {
        value.name for graph in model.graphs() for value in (*graph.inputs, *graph.initializers.values())
    }
    for node in all_nodes(model):
        names |= {node.name, *(value.name for value in node.outputs)}
    return {name or "" for name in names}


def _alone(sibling: _Sibling, family: list[Candidate], selection: Selection) -> str:
    """Why none of a product's siblings is like it."""
    others = [each for each in family if each is not sibling.candidate]
    scheme = selection.chosen[sibling.candidate.node][1]
    for other in others:
        if other.node not in selection.chosen:
            continue
        theirs: Scheme = selection.chosen[other.node][1]
        if theirs != scheme:
            return f"{other.node.name} reads the same input, and is quantized in another way"
        return f"{other.node.name} reads the same input, and cannot be merged"
    return f"{others[0].node.name} reads the same input, and stays float"


def _sibling(candidate: Candidate, shared: bool) -> _Sibling | str:
    """What of a product is merged; a string says why it cannot be."""
    node, view = candidate.node, candidate.view
    assert isinstance(view, WeightView)
    operand = trace_constant(node.inputs[1])
    if candidate.role:
        return f"it is the {candidate.role}"
    if shared:
        return "its weight is read by other nodes too"
    if isinstance(operand, str) or len(operand.shape) != 2:
        return "its weight has leading dimensions"
    if node.op_type == "Gemm":
        return _gemm(candidate, view)
    readers = node.outputs[0].consumers()
    if len(readers) == 1 and is_standard(readers[0], "Add") and not node.outputs[0].is_graph_output():
        add = readers[0]
        bias = next((value for value in add.inputs if value is not node.outputs[0]), None)
        if add.graph is node.graph and is_vector_bias(bias, view.n):
            tensor = constant_tensor(bias)
            if tensor is not None and tensor.dtype == view.dtype:
                return _Sibling(candidate, view, tensor, add)
    return _Sibling(candidate, view, None, node)


def _gemm(candidate: Candidate, view: WeightView) -> _Sibling | str:
    node = candidate.node
    if node.attributes.get_int("transA", 0) != 0:
        return "its input is transposed"
    if view.scale != 1.0 or node.attributes.get_float("beta", 1.0) != 1.0:
        return "its alpha or beta is not 1"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return _Sibling(candidate, view, None, node)
    if not is_vector_bias(bias, view.n):
        return "what it adds is no constant vector"
    return _Sibling(candidate, view, constant_tensor(bias), node)


def _merge(siblings: list[_Sibling], taken: set[str]) -> None:
    """Put one product and a Split in the place of several, under names that nothing else has."""
    first = siblings[0].candidate.node
    graph = first.graph
    assert isinstance(graph, ir.Graph)
    name = unused(joined([each.name for each in siblings]), taken)
    weight = JoinedTensor([each.view for each in siblings])
    weight.name = stem = unused(weight.name or "", taken)
    product = ir.node("MatMul", [first.inputs[0], _initializer(graph, weight)], name=name)
    product.metadata_props.update(first.metadata_props)
    product.metadata_props[MERGED_KEY] = json.dumps([each.candidate.texts for each in siblings])
    nodes = [product]
    if any(each.bias is not None for each in siblings):
        bias = ir.tensor(
            np.concatenate([_bias(each) for each in siblings]), name=unused(f"{stem}/bias", taken)
        )
        inputs = [product.outputs[0], _initializer(graph, bias)]
        nodes.append(ir.node("Add", inputs, name=unused(f"{name}/bias", taken)))
    sizes = ir.tensor(np.array([each.view.n for each in siblings]), name=unused(f"{stem}/sizes", taken))
    split = ir.node(
        "Split",
        [nodes[-1].outputs[0], _initializer(graph, sizes)],
        {"axis": -1},
        num_outputs=len(siblings),
        name=unused(f"{name}/split", taken),
    )
    for node in nodes:
        node.outputs[0].name = unused(f"{node.name}/output", taken)
        node.outputs[0].type = ir.TensorType(weight.dtype)
    graph.insert_before(first, [*nodes, split])
    for sibling, value in zip(siblings, split.outputs, strict=True):
        _take_over(sibling, value)


def _bias(sibling: _Sibling) -> np.ndarray:
    if sibling.bias is None:
        return np.zeros(sibling.view.n, sibling.view.dtype.numpy())
    return sibling.bias.numpy()


def _initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _take_over(sibling: _Sibling, value: ir.Value) -> None:
    """Give a value the place of a product's result, and remove the product."""
    old, graph = sibling.last.outputs[0], sibling.last.graph
    assert graph is not None
    name, old.name = old.name, None
    value.name, value.type, value.shape = name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(sibling.last, safe=True)
    if sibling.last is not sibling.candidate.node:
        graph.remove(sibling.candidate.node, safe=True)
