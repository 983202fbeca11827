"""Make one product of those that read the same input: query, key and value; gate and up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from zq2onnx.passes.candidates import EMBEDDING, MERGED_KEY, Candidate, find_candidates
from zq2onnx.passes.joined import JoinedTensor, joined
from zq2onnx.passes.lower_portable import is_vector_bias
from zq2onnx.passes.planned import WeightView
from zq2onnx.passes.rewrite import sweep
from zq2onnx.passes.select_nodes import Selection
from zq2onnx.passes.trace_weights import constant_tensor, is_standard, trace_constant
from zq2onnx.scheme import Scheme


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

    Gemms become MatMuls. Those merge whose weights are to be quantized in the same way and have one type;
    what keeps others from it is in `refused`. No weight is read (`JoinedTensor`). The merged node is named
    after all, and is found by the names of each. Runs before the selection that is rewritten.

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
        families: dict[tuple[ir.Value | None, int], list[Candidate]] = {}
        for each in candidates:
            if each.role != EMBEDDING:
                families.setdefault((each.node.inputs[0], id(each.node.graph)), []).append(each)
        modified = False
        for family in families.values():
            if len(family) > 1:
                for siblings in self._mergeable(family, readers):
                    _merge(siblings)
                    modified = True
        if modified:
            sweep(model)
        return ir.passes.PassResult(model, modified)

    def _mergeable(
        self, family: list[Candidate], readers: Counter[tuple[object, ...] | None]
    ) -> Iterator[list[_Sibling]]:
        """The products of one input that can be one, two or more at a time."""
        alike: dict[tuple[object, ...], list[_Sibling]] = {}
        for candidate in family:
            if candidate.node not in self.selection.chosen:
                continue  # its own reason is reported
            scheme = self.selection.chosen[candidate.node][1]
            found = _sibling(candidate, readers[candidate.storage] > 1)
            if isinstance(found, str):
                self.refused[candidate.node.name or ""] = found
            else:
                alike.setdefault((scheme, found.view.dtype, found.view.tensor.dtype), []).append(found)
        for siblings in alike.values():
            if len(siblings) > 1:
                yield siblings
            else:
                self.refused[siblings[0].name] = _alone(siblings[0], family, self.selection)


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


def _merge(siblings: list[_Sibling]) -> None:
    """Put one product and a Split in the place of several."""
    first = siblings[0].candidate.node
    graph = first.graph
    assert isinstance(graph, ir.Graph)
    name = joined([each.name for each in siblings])
    weight = JoinedTensor([each.view for each in siblings])
    product = ir.node("MatMul", [first.inputs[0], _initializer(graph, weight)], name=name)
    product.metadata_props.update(first.metadata_props)
    product.metadata_props[MERGED_KEY] = json.dumps([each.candidate.texts for each in siblings])
    nodes = [product]
    if any(each.bias is not None for each in siblings):
        bias = ir.tensor(np.concatenate([_bias(each) for each in siblings]), name=f"{weight.name}/bias")
        nodes.append(ir.node("Add", [product.outputs[0], _initializer(graph, bias)], name=f"{name}/bias"))
    sizes = ir.tensor(np.array([each.view.n for each in siblings]), name=f"{weight.name}/sizes")
    split = ir.node(
        "Split",
        [nodes[-1].outputs[0], _initializer(graph, sizes)],
        {"axis": -1},
        num_outputs=len(siblings),
        name=f"{name}/split",
    )
    for node in nodes:
        node.outputs[0].name = f"{node.name}/output"
        node.outputs[0].type = ir.TensorType(weight.dtype)
    graph.insert_before(first, [*nodes, split])
    for sibling, value in zip(siblings, split.outputs, strict=True):
        _take_over(sibling, value)


def _bias(sibling: _Sibling) -> np.ndarray:
    if sibling.bias is None:
        return np.zeros(sibling.view.n, sibling.view.dtype.numpy())
    return sibling.bias.numpy()


def _initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    while tensor.name in graph.initializers:
        tensor.name = f"{tensor.name}_"
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
