"""Says which of a model's operators the library registers, and how far apart the two routes may be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from zq2onnx.benchmark.results import OperatorUse
from zq2onnx.errors import UserError
from zq2onnx.evaluation.model_file import all_nodes
from zq2onnx.opset import DOMAIN, OPERATORS
from zq2onnx.runtime.library import describe, library_file
from zq2onnx.scheme import Activation

Ops = Sequence[str] | str | None

_NOT_BUILT = "the operator library is not built: zq2onnx runtime info"
_NOT_KNOWN = "the library does not know it"

FLOAT, NARROW_FLOAT = 1e-3, 1e-2
INT8, NARROW_INT8 = 5e-2, 1e-1
"""Tolerances: see `tolerance_of`."""


def operator_uses(model: ir.Model, ops: Ops, provider: str = "cpu") -> tuple[OperatorUse, ...]:
    """Look up the operators of a model.

    Args:
        model: the graph.
        ops: names of operators to register; `"all"`; `"none"`; None: what `ZQ2ONNX_OPS` says, or those that
            are measured to pay.
        provider: what sessions run on, `cpu` or `cuda`.

    Returns:
        Each operator of `ai.zq2onnx` that is in the model, in the order of `OPERATORS`.

    Raises:
        UserError: a name is not known, or what is asked for needs the library, which is not built.
    """
    wish = _checked(ops)
    nodes = Counter(node.op_type for node in all_nodes(model) if node.domain == DOMAIN)
    if library_file() is None and wish in (None, "none"):
        choices = dict.fromkeys(OPERATORS, (False, _NOT_BUILT))
    else:
        choices = {each.name: (each.registered, each.why) for each in describe(wish, provider).operators}
    order = {name: at for at, name in enumerate(OPERATORS)}
    return tuple(
        OperatorUse(name, nodes[name], *choices.get(name, (False, _NOT_KNOWN)))
        for name in sorted(nodes, key=lambda name: (order.get(name, len(order)), name))
    )


def _checked(ops: Ops) -> str | None:
    """As the library takes it: names separated by commas, `all`, `none`, None."""
    if ops is None:
        return None
    names = [ops] if isinstance(ops, str) else list(ops)
    if names in (["all"], ["none"]):
        return names[0]
    for name in names:
        if name not in OPERATORS:
            raise UserError(f"operator {name!r}", f"all, none, or of {', '.join(OPERATORS)}")
    return ",".join(names) or "none"


def tolerance_of(model: ir.Model) -> float:
    """What the outputs of the two routes may differ by, as a part of the largest.

    Both compute the same sums in another order. In float32 that was 2e-6 at most over all schemes of seven
    models of up to 6 layers; int8 activations in place of float ones make 5e-3, and must not pass. In float16
    it was 2e-3. With int8 activations a sum that is off in its last bit may fall on the other side of a half,
    and a code is off by one: 2e-2, of float16 too. The rest is for more layers.
    """
    operators = [OPERATORS[node.op_type] for node in _nodes(model)]
    int8 = any(operator.activation is Activation.A8 for operator in operators)
    narrow = any(_scales_dtype(node) is ir.DataType.FLOAT16 for node in _nodes(model))
    if int8:
        return NARROW_INT8 if narrow else INT8
    return NARROW_FLOAT if narrow else FLOAT


def _nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in all_nodes(model) if node.domain == DOMAIN and node.op_type in OPERATORS]


def _scales_dtype(node: ir.Node) -> ir.DataType | None:
    """The type of the scales, which is that of the activations."""
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    return None if scales is None else scales.dtype
