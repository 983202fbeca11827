"""Names a graph of the dynamo exporter after the modules it came from, and cleans its metadata."""

from __future__ import annotations

import ast
from collections.abc import Container, Iterator

import onnx_ir as ir

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
"""Key of a node's modules, outermost first, and its fx node: `['', 'h.0', 'h.0.mlp', 'gelu']`."""
_FOLDED_FROM = "pkg.onnxscript.optimizer.folded_from"
_NO_MODULE = "_empty_nn_module_stack"
_WEIGHTED = frozenset({"MatMul", "Gemm", "Gather", "Conv", "LayerNormalization"})


def name_by_modules(model: ir.Model, wrapper: str) -> None:
    """Replace `node_MatMul_95` and `val_96` with `layers.0.fc1` and `layers.0.fc1.weight`, in place.

    A node that alone carries a weight of its module gets the module's path. Every other gets the
    path and its operator type, `layers.0.self_attn.Softmax`, with a number where that is taken.
    A folded transpose of a weight gets the weight's name.

    Of the metadata the name scopes alone are kept: stack traces and fx nodes hold paths and code of
    the exporting machine, and graph signatures name what is no longer there.

    Args:
        model: what the dynamo exporter made of a wrapper around a model.
        wrapper: the wrapper's attribute that holds the model; taken off every name.
    """
    for node in model.graph:
        _unwrap_scopes(node, wrapper)
    _name_initializers(model.graph, wrapper + ".")
    _name_nodes(model.graph)
    for holder in _holders(model):
        for key in [key for key in holder.metadata_props if key != NAME_SCOPES]:
            del holder.metadata_props[key]
        holder.doc_string = None


def _unwrap_scopes(node: ir.Node, wrapper: str) -> None:
    scopes = ast.literal_eval(node.metadata_props.get(NAME_SCOPES, "['']"))
    if scopes[:2] == ["", wrapper]:
        scopes = ["", *(scope.removeprefix(wrapper + ".") for scope in scopes[2:])]
    elif scopes[0].startswith(_NO_MODULE):
        scopes[0] = ""
    node.metadata_props[NAME_SCOPES] = repr(scopes)


def _name_initializers(graph: ir.Graph, prefix: str) -> None:
    for value in list(graph.initializers.values()):
        assert value.name is not None
        folded = ast.literal_eval(value.metadata_props.get(_FOLDED_FROM, "[]"))
        origin = folded[0] if len(folded) == 1 else value.name
        if origin.startswith(prefix):
            value.name = _unique(origin.removeprefix(prefix), graph.initializers)
            if value.const_value is not None:
                value.const_value.name = value.name


def _name_nodes(graph: ir.Graph) -> None:
    paths = {node: ast.literal_eval(node.metadata_props[NAME_SCOPES])[:-1] for node in graph}
    weighted: dict[str, list[ir.Node]] = {}
    for node, modules in paths.items():
        if modules and node.op_type in _WEIGHTED and _reads_weight(node):
            weighted.setdefault(modules[-1], []).append(node)
    taken: set[str] = set()
    # The bearers of weights first, so that no other node takes a module's plain path.
    for node in sorted(paths, key=lambda node: weighted.get("".join(paths[node][-1:])) != [node]):
        path = "".join(paths[node][-1:])
        plain = path != "" and weighted.get(path) == [node]
        node.name = _unique(path if plain else f"{path}.{node.op_type}".lstrip("."), taken)
        taken.add(node.name)


def _reads_weight(node: ir.Node) -> bool:
    """Whether an input is a float initializer of rank 1 or more, or the transpose of one."""
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "Transpose":
            value = producer.inputs[0]
        tensor = value.const_value if value is not None and value.is_initializer() else None
        if tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape) > 0:
            return True
    return False


def _unique(name: str, taken: Container[str]) -> str:
    """`name`, or `name_1`, `name_2`... where it is taken."""
    candidate, count = name, 0
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate


def _holders(model: ir.Model) -> Iterator[ir.Model | ir.Graph | ir.Node | ir.Value]:
    """Everything that has metadata and a doc string."""
    yield model
    yield model.graph
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph.all_nodes():
        yield node
        yield from node.outputs
