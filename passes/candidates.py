"""Find the nodes that carry a weight, what they are to the model, and why some cannot be rewritten."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from dataclasses import dataclass

import onnx_ir as ir

from zq2onnx.opset import DOMAIN, GROUP_KEY
from zq2onnx.passes.planned import WeightView
from zq2onnx.passes.trace_weights import (
    BOTH_ACTIVATIONS,
    STEP_OPS,
    all_nodes,
    constant_tensor,
    is_standard,
    trace_constant,
    trace_weight,
)

LM_HEAD = "lm_head"
EMBEDDING = "embedding"
SCOPES_KEY = "pkg.torch.onnx.name_scopes"
MERGED_KEY = "ai.zq2onnx.merged"
"""Key in a node's metadata: the `Candidate.texts` of each of the nodes that it was merged of, as JSON."""
LOGITS = "logits"
PASS_THROUGH = ("Add", "Mul", "Cast", "Reshape", "Identity")

ALREADY_QUANTIZED = {
    "DynamicQuantizeMatMul",
    "GatherBlockQuantized",
    "MatMulBnb4",
    "MatMulFpQ4",
    "MatMulInteger",
    "MatMulInteger16",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "MatMulNBitsQLoRA",
    "QAttention",
    "QGemm",
    "QLinearMatMul",
    "QMoE",
}
FUSED_PRODUCTS = {"FusedGemm", "FusedMatMul", "FusedMatMulActivation", "TransposeMatMul"}
"""com.microsoft operators that multiply as MatMul does, with a weight or without."""
FUSED = {
    "Attention",
    "DecoderAttention",
    "DecoderMaskedSelfAttention",
    "EmbedLayerNormalization",
    "LongformerAttention",
    "MoE",
    "PackedAttention",
}
"""com.microsoft operators that hold weights. (MultiHeadAttention and GroupQueryAttention hold none.)"""
MICROSOFT_DOMAINS = ("com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental")
OTHER_PRODUCTS = ("Conv", "ConvTranspose", "Einsum", "GRU", "LSTM", "RNN")


@dataclass(eq=False)
class Candidate:
    """A node that reads a weight, or might.

    Attributes:
        node: the node.
        view: its weight, or the reason why there is none to quantize.
        role: `lm_head`, `embedding` or "".
        tied: whether an embedding and a MatMul read the same bytes.
    """

    node: ir.Node
    view: WeightView | str
    role: str = ""
    tied: bool = False

    @property
    def texts(self) -> list[str]:
        """What regular expressions are searched in, its name first; of a merged node those of each, too."""
        weight = [] if isinstance(self.view, str) else [self.view.name]
        own = [self.node.name or "", *weight, module_path(self.node), self.role]
        return own + [text for texts in self._merged for text in texts]

    @property
    def merged(self) -> list[str]:
        """Names of the nodes that this one was merged of."""
        return [texts[0] for texts in self._merged]

    @property
    def _merged(self) -> list[list[str]]:
        texts: list[list[str]] = json.loads(self.node.metadata_props.get(MERGED_KEY, "[]"))
        return texts

    def matches(self, pattern: str) -> bool:
        """Whether a regular expression is found in any of `texts`."""
        return any(re.search(pattern, text) for text in self.texts)

    @property
    def storage(self) -> tuple[object, ...] | None:
        """Identity of its weight's bytes."""
        return None if isinstance(self.view, str) else self.view.storage


def module_path(node: ir.Node) -> str:
    """The module that made the node, from the exporter's metadata; "" where it says nothing.

    The exporter lists the scopes outermost first and the node's own name last.
    """
    text = node.metadata_props.get(SCOPES_KEY)
    if not text:
        return ""
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if not isinstance(scopes, list):
        return text
    return str(scopes[-2]) if len(scopes) > 1 else ""


def find_candidates(model: ir.Model) -> list[Candidate]:
    """Every node that reads a weight or might, in graph order, with its role."""
    logits = next((value for value in model.graph.outputs if value.name == LOGITS), None)
    candidates = []
    for node in all_nodes(model):
        group = node.metadata_props.get(GROUP_KEY)
        if group:
            if group == node.name:
                candidates.append(Candidate(node, f"already quantized ({node.op_type})"))
        elif is_standard(node, "Gather"):
            table = _table(node)
            if table is not None:
                candidates.append(Candidate(node, table, EMBEDDING))
        elif is_standard(node, "MatMul", "Gemm"):
            role = LM_HEAD if _reaches_logits(node.outputs[0], logits) else ""
            candidates.append(Candidate(node, _view_of(node), role))
        elif reason := _not_rewritten(node, model):
            candidates.append(Candidate(node, reason))
    _mark_tied(candidates)
    return candidates


def _view_of(node: ir.Node) -> WeightView | str:
    """The weight of a MatMul or Gemm; a string says why it has none."""
    view = trace_weight(node.inputs[1])
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    if isinstance(view, str):
        left_is_constant = not isinstance(trace_constant(node.inputs[0]), str)
        return "its constant is the left operand" if view == BOTH_ACTIVATIONS and left_is_constant else view
    if shape is not None and len(shape) == 1:
        return "its activation is a vector"
    if node.op_type == "Gemm":
        view = dataclasses.replace(view, scale=node.attributes.get_float("alpha", 1.0))
        if node.attributes.get_int("transB", 0) != 0:
            view = dataclasses.replace(view, k=view.n, n=view.k, transposed=not view.transposed)
    return view


def _table(node: ir.Node) -> WeightView | str | None:
    """The table of a Gather that looks up rows of a constant float matrix; None for any other Gather."""
    found = trace_constant(node.inputs[0])
    if isinstance(found, str):
        return found if found.startswith("already quantized") else None
    if len(found.shape) != 2 or node.attributes.get_int("axis", 0) not in (0, -2):
        return None
    ids = node.inputs[1]
    if constant_tensor(ids) is not None:
        return "its rows are chosen by constants: the lookup folds at load"
    if ids is not None and ids.shape is not None and len(ids.shape) == 0:
        return "it looks up a single row"
    return trace_weight(node.inputs[0])


def _reaches_logits(value: ir.Value, logits: ir.Value | None) -> bool:
    """Whether a value becomes the output `logits` through nothing but `PASS_THROUGH`."""
    while logits is not None:
        if value is logits:
            return True
        readers = value.consumers()
        if len(readers) != 1 or not is_standard(readers[0], *PASS_THROUGH):
            return False
        value = readers[0].outputs[0]
    return False


def _not_rewritten(node: ir.Node, model: ir.Model) -> str:
    """Why a node that is no MatMul, Gemm or Gather is left alone, or "" where it carries no weight."""
    if node.domain == DOMAIN or node.op_type in ALREADY_QUANTIZED:
        return f"already quantized ({node.op_type})"
    if node.op_identifier() in model.functions:
        return f"the local function {node.domain}::{node.op_type} cannot be inlined"
    if node.domain in MICROSOFT_DOMAINS:
        if node.op_type in FUSED_PRODUCTS:
            view = trace_weight(node.inputs[1])
            if isinstance(view, str):
                return view
        if node.op_type in FUSED | FUSED_PRODUCTS:
            return f"{node.domain}::{node.op_type} was fused before; export without fusion to quantize it"
    if is_standard(node, *OTHER_PRODUCTS) and any(_is_weight(value) for value in node.inputs):
        return f"{node.op_type} is not rewritten"
    return ""


def _is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a float constant of two dimensions or more."""
    found = trace_constant(value)
    return not isinstance(found, str) and len(found.shape) >= 2


def _mark_tied(candidates: list[Candidate]) -> None:
    """Find the MatMuls that read an embedding's bytes: they are the lm_head."""
    tables = {candidate.storage for candidate in candidates if candidate.role == EMBEDDING}
    products = {candidate.storage for candidate in candidates if candidate.role != EMBEDDING}
    tied = tables & products - {None}
    for candidate in candidates:
        if candidate.storage in tied:
            candidate.tied = True
            candidate.role = candidate.role or LM_HEAD


def is_fed(value: ir.Value | None) -> bool:
    """Whether a lookup's ids are a graph input, as tokens are, and not positions."""
    while value is not None and not value.is_graph_input():
        node = value.producer()
        if node is None or constant_tensor(value) is not None or not is_standard(node, *STEP_OPS):
            return False
        value = node.inputs[0]
    return value is not None and "position" not in (value.name or "")
