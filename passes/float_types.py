"""Which float types an operator takes, by its schema."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import onnx
import onnx.defs
import onnx_ir as ir

from zq2onnx.passes.trace_weights import is_standard

CONTRIBUTED = {
    "Attention",
    "BiasGelu",
    "DecoderMaskedMultiHeadAttention",
    "EmbedLayerNormalization",
    "FastGelu",
    "FusedMatMul",
    "GatherBlockQuantized",
    "Gelu",
    "GroupQueryAttention",
    "MatMulNBits",
    "MultiHeadAttention",
    "PackedMultiHeadAttention",
    "QuickGelu",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
}
"""ONNX Runtime's own operators, of which onnx knows no schema: these take all floats in float16 and bfloat16.
(SimplifiedLayerNormalization it has in ONNX's domain.)"""


CONTRIBUTED_DOMAIN = "com.microsoft"


def is_contributed(node: ir.Node) -> bool:
    """Whether a node is an operator of `CONTRIBUTED`; one of that name may be a function of the model."""
    inner = is_standard(node, "SimplifiedLayerNormalization")
    return inner or (node.domain == CONTRIBUTED_DOMAIN and node.op_type in CONTRIBUTED)


@functools.cache
def _schema(domain: str, op_type: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


def takes_type(node: ir.Node, version: int, dtype: ir.DataType) -> tuple[bool, ...] | None:
    """Which float inputs of a node may be of another float type; None where it cannot compute in that.

    Args:
        node: an operator of any domain; of those that are neither ONNX's nor in `CONTRIBUTED` nothing is
            known.
        version: the opset of ONNX's domain.
        dtype: float16 or bfloat16.
    """
    schema = _schema(node.domain.removeprefix("ai.onnx"), node.op_type, version)
    if schema is None:
        return (True,) * len(node.inputs) if is_contributed(node) else None
    allowed = {each.type_param_str: set(each.allowed_type_strs) for each in schema.type_constraints}
    name = f"tensor({dtype.name.lower()})"

    def takes(formal: onnx.defs.OpSchema.FormalParameter) -> bool:
        kinds = allowed.get(formal.type_str, {formal.type_str})
        return name in kinds or "tensor(float)" not in kinds

    inputs = tuple(map(takes, _formals(schema.inputs, len(node.inputs))))
    outputs = all(map(takes, _formals(schema.outputs, len(node.outputs))))
    return inputs if outputs and any(inputs) else None


def _formals(
    declared: Sequence[onnx.defs.OpSchema.FormalParameter], count: int
) -> Iterator[onnx.defs.OpSchema.FormalParameter]:
    """The declaration of each of a node's inputs or outputs; the last may stand for several."""
    return (declared[min(index, len(declared) - 1)] for index in range(count if declared else 0))
