"""Bring a model into the one shape that the other passes expect."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from zq2onnx.opset import DOMAIN
from zq2onnx.passes.candidates import find_candidates
from zq2onnx.passes.planned import WeightView
from zq2onnx.passes.trace_weights import GRAPH_TYPES, all_nodes

FIRST_IR_WITH_DEFAULTS = 4
"""Until IR version 3 every initializer had to be an input; since 4, one that is has a default value."""

STANDARD = "ai.onnx"
"""The long name of the domain ""."""


class NormalizePass(ir.passes.InPlacePass):
    """Replaces calls of local functions with their bodies, and inputs that are weights with constants.

    Functions of `ai.zq2onnx` stay: they are operators. So do those that cannot be inlined: of another
    opset than the model, or with subgraphs as attributes. An initializer that is also listed as a
    graph input is a constant from here on if a MatMul, Gemm or Gather reads it as its weight, which is
    warned of; others stay inputs with a default. (Until IR version 3 all become constants: no model
    could do otherwise than list them.) Dead nodes go, for nobody could check what they compute.
    Every node has a name of its own afterwards: the first of several that share one keeps it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = _shorten_domain(model)
        calls = [node for function in model.functions.values() for node in function.all_nodes()]
        calls += all_nodes(model)
        kept = {id(function) for function in model.functions.values() if not _inlines(function, model, calls)}
        steps = [
            common.InlinePass(criteria=lambda function: id(function) not in kept),
            common.RemoveUnusedFunctionsPass(),
            common.RemoveUnusedNodesPass(),
        ]
        for step in steps:
            modified |= step(model).modified
        modified |= self._fix_weights(model)
        modified |= name_nodes(model)
        return ir.passes.PassResult(model, modified)

    def _fix_weights(self, model: ir.Model) -> bool:
        """Take the initializers that are weights from the inputs; whether there were any."""
        inputs = list(model.graph.inputs)
        defaults = [value for value in inputs if value.is_initializer()]
        if not defaults:
            return False
        free = [value for value in inputs if not value.is_initializer()]
        _set_inputs(model, free)
        if model.ir_version >= FIRST_IR_WITH_DEFAULTS:
            views = [candidate.view for candidate in find_candidates(model)]
            weights = {id(view.tensor) for view in views if isinstance(view, WeightView)}
            kept = [value for value in inputs if value in free or id(value.const_value) not in weights]
            _set_inputs(model, kept)
            self.warnings += [
                f"the input {value.name} is a weight with a default value: the output has it as a constant"
                for value in defaults
                if value not in kept
            ]
            return len(kept) < len(inputs)
        return True


def _set_inputs(model: ir.Model, values: list[ir.Value]) -> None:
    model.graph.inputs.clear()
    model.graph.inputs.extend(values)


def _shorten_domain(model: ir.Model) -> bool:
    """Call the standard domain by one name in all opset imports; nodes have it already."""
    modified = False
    for imports in (model.opset_imports, *(function.opset_imports for function in model.functions.values())):
        if STANDARD in imports:
            version = imports.pop(STANDARD)
            imports[""] = max(version, imports.get("", version))
            modified = True
    return modified


def _inlines(function: ir.Function, model: ir.Model, calls: list[ir.Node]) -> bool:
    imports = model.opset_imports
    if function.domain == DOMAIN:
        return False
    if any(imports.get(domain, version) != version for domain, version in function.opset_imports.items()):
        return False
    return not any(
        attribute.type in GRAPH_TYPES
        for node in calls
        if node.op_identifier() == function.identifier()
        for attribute in node.attributes.values()
    )


def name_nodes(model: ir.Model) -> bool:
    """Give every node that has no name, or another's, one of its own; whether there were any."""
    nodes = list(all_nodes(model))
    taken = {node.name for node in nodes}
    seen: set[str] = set()
    modified = False
    for number, node in enumerate(nodes):
        if not node.name or node.name in seen:
            stem = node.name or node.op_type
            while (name := f"{stem}_{number}") in taken:
                number += 1
            taken.add(name)
            node.name = name
            modified = True
        seen.add(node.name)
    return modified
