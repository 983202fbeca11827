"""Decide for every node that carries a weight whether, and how, it is quantized."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.opset import DOMAIN, GROUP_KEY
from zq2onnx.passes.planned import QuantizedWeight, WeightView
from zq2onnx.passes.trace_weights import FLOAT_TYPES, STEP_OPS, constant_tensor, is_standard, trace_weight
from zq2onnx.report import NodeReport, Status
from zq2onnx.scheme import Scheme

LM_HEAD = "lm_head"
EMBEDDING = "embedding"
SCOPES_KEY = "pkg.torch.onnx.name_scopes"
LOGITS = "logits"
PASS_THROUGH = ("Add", "Mul", "Cast", "Reshape", "Identity")

ALREADY_QUANTIZED = {
    "MatMulNBits",
    "GatherBlockQuantized",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
    "QMoE",
    "MatMulBnb4",
    "MatMulFpQ4",
}
FUSED = {
    "FusedMatMul",
    "FusedGemm",
    "Attention",
    "MultiHeadAttention",
    "MoE",
    "FusedMatMulActivation",
    "BiasGelu",
    "EmbedLayerNormalization",
}


@dataclass(frozen=True)
class NodeRule:
    """A recipe's `[[node]]` table: what holds for the nodes that `match` finds.

    Attributes:
        match: regular expression.
        overrides: fields of `Scheme` to replace.
        keep_float: True leaves the nodes float, False quantizes also what is float by default.
    """

    match: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    keep_float: bool | None = None


@dataclass(frozen=True)
class Policy:
    """What the user asked for.

    Attributes:
        scheme: for every node that nothing else speaks of.
        only, include, exclude: regular expressions, searched in a node's name, its weight's
            name, its module path and its role (`lm_head`, `embedding`).
        rules: refine `scheme` node by node; later rules win.
        embedding: how embedding tables are quantized; None leaves them float.
    """

    scheme: Scheme = Scheme()
    only: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rules: tuple[NodeRule, ...] = ()
    embedding: Scheme | None = None

    def patterns(self) -> list[str]:
        """Every regular expression of the policy."""
        return [*self.only, *self.include, *self.exclude, *(rule.match for rule in self.rules)]


@dataclass
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
        """What regular expressions are searched in."""
        weight = [] if isinstance(self.view, str) else [self.view.name]
        return [self.node.name or "", *weight, *module_path(self.node), self.role]

    def matches(self, pattern: str) -> bool:
        """Whether a regular expression is found in any of `texts`."""
        return any(re.search(pattern, text) for text in self.texts)


@dataclass
class Selection:
    """Which nodes are rewritten, with which scheme, and a report for each that was looked at."""

    chosen: dict[ir.Node, tuple[Candidate, Scheme]] = field(default_factory=dict)
    reports: list[NodeReport] = field(default_factory=list)
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    """By the name of the node that was rewritten; filled by the passes that rewrite."""
    warnings: list[str] = field(default_factory=list)


def module_path(node: ir.Node) -> list[str]:
    """The modules that made the node, outermost first, from the exporter's metadata."""
    text = node.metadata_props.get(SCOPES_KEY)
    if not text:
        return []
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return [text]
    return [str(scope) for scope in scopes][-2:] if isinstance(scopes, list) else [text]


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the main graph and of its control-flow subgraphs."""
    return iter(ir.traversal.RecursiveGraphIterator(model.graph))


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


def _view_of(node: ir.Node) -> WeightView | str:
    """The weight of a MatMul, Gemm or Gather; a string says why it has none."""
    if node.op_type == "Gather":
        return trace_weight(node.inputs[0])
    view = trace_weight(node.inputs[1])
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    if shape is not None and len(shape) == 1:
        return "its activation is a vector"
    if isinstance(view, str):
        if not isinstance(trace_weight(node.inputs[0]), str) and view.startswith("both"):
            return "its constant is the left operand"
        return view
    if node.op_type == "Gemm":
        view = dataclasses.replace(view, scale=node.attributes.get_float("alpha", 1.0))
        if node.attributes.get_int("transB", 0):
            view = dataclasses.replace(view, k=view.n, n=view.k, transposed=not view.transposed)
    return view


def _is_table(node: ir.Node) -> bool:
    """Whether a Gather looks up rows of a constant float matrix."""
    if not is_standard(node, "Gather") or node.attributes.get_int("axis", 0) != 0:
        return False
    tensor = constant_tensor(node.inputs[0])
    return tensor is not None and tensor.dtype in FLOAT_TYPES and len(tensor.shape) == 2


def _foreign(node: ir.Node) -> str:
    """Why a node outside the standard domain is left alone, or "" where it carries no weight."""
    if node.domain == DOMAIN or node.op_type in ALREADY_QUANTIZED:
        return f"already quantized ({node.op_type})"
    if node.op_type in FUSED and not node.domain.startswith("pkg."):
        return f"{node.domain}::{node.op_type} was fused before; export without fusion to quantize it"
    if is_standard(node, "Conv", "Einsum") and any(
        not isinstance(trace_weight(value), str) for value in node.inputs[1:2]
    ):
        return f"{node.op_type} is not rewritten"
    return ""


def find_candidates(model: ir.Model) -> list[Candidate]:
    """Every node that reads a weight or might, in graph order, with its role."""
    logits = next((value for value in model.graph.outputs if value.name == LOGITS), None)
    candidates = []
    for node in all_nodes(model):
        if node.metadata_props.get(GROUP_KEY):
            if node.metadata_props[GROUP_KEY] == node.name:
                candidates.append(Candidate(node, f"already quantized ({node.op_type})"))
        elif _is_table(node):
            candidates.append(Candidate(node, _view_of(node), EMBEDDING))
        elif is_standard(node, "MatMul", "Gemm"):
            role = LM_HEAD if _reaches_logits(node.outputs[0], logits) else ""
            candidates.append(Candidate(node, _view_of(node), role))
        elif reason := _foreign(node):
            candidates.append(Candidate(node, reason))
    _mark_tied(candidates)
    return candidates


def _mark_tied(candidates: list[Candidate]) -> None:
    """Find the MatMuls that read an embedding's bytes: they are the lm_head."""

    def bytes_of(candidate: Candidate) -> object:
        return None if isinstance(candidate.view, str) else candidate.view.storage

    tables = {bytes_of(c) for c in candidates if c.role == EMBEDDING}
    tied = {bytes_of(c) for c in candidates if c.role != EMBEDDING} & tables - {None}
    for candidate in candidates:
        if bytes_of(candidate) in tied:
            candidate.tied = True
            candidate.role = candidate.role or LM_HEAD


def _check_patterns(policy: Policy, candidates: list[Candidate]) -> None:
    for pattern in policy.patterns():
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{pattern!r} is not a regular expression: {error}") from None
        if not any(candidate.matches(pattern) for candidate in candidates):
            raise UserError(
                f"{pattern!r} matches no node",
                "a regular expression found in a node's name, weight, module path or role",
                "`zq2onnx inspect MODEL` lists them",
            )


def _scheme_or_reason(policy: Policy, candidate: Candidate) -> Scheme | str:
    """The scheme for a candidate, or why it stays float."""
    if isinstance(candidate.view, str):
        return candidate.view
    rules = [rule for rule in policy.rules if candidate.matches(rule.match)]
    kept = next((rule for rule in reversed(rules) if rule.keep_float is not None), None)
    for pattern in policy.exclude:
        if candidate.matches(pattern):
            return f"excluded by {pattern!r}"
    if kept is not None and kept.keep_float:
        return f"kept float by the recipe's {kept.match!r}"
    if policy.only and not any(candidate.matches(pattern) for pattern in policy.only):
        return "not among --only"
    asked = any(candidate.matches(pattern) for pattern in (*policy.only, *policy.include))
    asked = asked or kept is not None
    scheme = policy.embedding if candidate.role == EMBEDDING else policy.scheme
    if scheme is None:
        return "embeddings are left float; --embedding-bits quantizes them"
    if candidate.role == LM_HEAD and not asked:
        return "lm_head is left float by default; --include lm_head quantizes it"
    if candidate.role == EMBEDDING:
        fed = _is_fed(candidate.node.inputs[1])
        return scheme if fed or asked else "its rows are chosen by position; --include quantizes it"
    for rule in rules:
        scheme = dataclasses.replace(scheme, **rule.overrides)
    return scheme


def _is_fed(value: ir.Value | None) -> bool:
    """Whether a lookup's ids are a graph input, as tokens are and positions mostly are not."""
    while value is not None and not value.is_graph_input():
        node = value.producer()
        if node is None or not is_standard(node, *STEP_OPS):
            return False
        value = node.inputs[0]
    return value is not None


def _report(candidate: Candidate, outcome: Scheme | str) -> NodeReport:
    shape = None
    if not isinstance(candidate.view, str):
        shape = [candidate.view.k, candidate.view.n]
    op = candidate.node.op_type
    name = candidate.node.name or ""
    if isinstance(outcome, str):
        return NodeReport(name, op, shape, Status.SKIPPED, outcome)
    return NodeReport(
        name, op, shape, Status.QUANTIZED, "", outcome.bits, str(outcome.granularity), outcome.lorc_rank
    )


def select_nodes(model: ir.Model, policy: Policy) -> Selection:
    """Choose a scheme or a reason for every candidate of the model.

    Raises:
        UserError: a regular expression of the policy is malformed or matches nothing.
    """
    candidates = find_candidates(model)
    _check_patterns(policy, candidates)
    selection = Selection()
    for candidate in candidates:
        outcome = _scheme_or_reason(policy, candidate)
        report = _report(candidate, outcome)
        selection.reports.append(report)
        if isinstance(outcome, Scheme):
            selection.chosen[candidate.node] = (candidate, outcome)
    selection.warnings += _split_ties(selection, candidates)
    return selection


def _split_ties(selection: Selection, candidates: list[Candidate]) -> list[str]:
    """Say where quantizing one reader of a tied weight leaves the other with a float copy."""
    warnings = []
    for candidate in candidates:
        if candidate.tied and candidate.role == LM_HEAD and candidate.node in selection.chosen:
            stays = [c for c in candidates if c.tied and c.node not in selection.chosen]
            if stays:
                warnings.append(
                    f"{candidate.node.name}: its weight is tied to the embedding {stays[0].node.name},"
                    " which stays float: the file holds both"
                )
    return warnings
