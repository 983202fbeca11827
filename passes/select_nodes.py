"""Decide for every node that carries a weight whether, and how, it is quantized."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.layout import PackedLayout, scheme_layout
from zq2onnx.passes.candidates import EMBEDDING, LM_HEAD, Candidate, find_candidates, is_fed
from zq2onnx.passes.planned import QuantizedWeight, WeightView
from zq2onnx.report import NodeReport, Status
from zq2onnx.scheme import Clip, Scheme

EMBEDDING_FIELDS = ("granularity", "symmetric", "clip")
"""What a rule may change of an embedding's scheme: its bits are `--embedding-bits`, it has no branch."""


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
class Selection:
    """Which nodes are rewritten, with which scheme, and a report for each that was looked at."""

    chosen: dict[ir.Node, tuple[Candidate, Scheme]] = field(default_factory=dict)
    reports: list[NodeReport] = field(default_factory=list)
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    """By the name of the node that was rewritten; filled by the passes that rewrite."""
    warnings: list[str] = field(default_factory=list)

    @property
    def layouts(self) -> list[PackedLayout]:
        """How each product's weight that is rewritten is packed in portable form."""
        return [
            scheme_layout(each.view.k, each.view.n, scheme)
            for each, scheme in self.chosen.values()
            if each.role != EMBEDDING and isinstance(each.view, WeightView)
        ]


def select_nodes(model: ir.Model, policy: Policy) -> Selection:
    """Choose a scheme or a reason for every candidate of the model, whose nodes have names of their own.

    Raises:
        UserError: a regular expression of the policy is malformed or matches nothing.
    """
    candidates = find_candidates(model)
    _check_patterns(policy, candidates)
    selection = Selection()
    for candidate in candidates:
        outcome = _scheme_or_reason(policy, candidate)
        selection.reports.append(_report(candidate, outcome))
        if isinstance(outcome, Scheme):
            selection.chosen[candidate.node] = (candidate, outcome)
    selection.warnings += _split_ties(selection, candidates)
    return selection


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
    for pattern in policy.exclude:
        if candidate.matches(pattern):
            return f"excluded by {pattern!r}"
    rules = [rule for rule in policy.rules if candidate.matches(rule.match)]
    kept = next((rule for rule in reversed(rules) if rule.keep_float is not None), None)
    if kept is not None and kept.keep_float:
        return f"kept float by the recipe's {kept.match!r}"
    if policy.only and not any(candidate.matches(pattern) for pattern in policy.only):
        return "not among --only"
    asked = kept is not None or any(candidate.matches(text) for text in (*policy.only, *policy.include))
    if candidate.role == EMBEDDING:
        return _embedding_scheme(policy, candidate, rules, asked)
    if candidate.role == LM_HEAD and not asked:
        return "lm_head is left float by default; --include lm_head quantizes it"
    scheme = policy.scheme
    for rule in rules:
        scheme = dataclasses.replace(scheme, **rule.overrides)
    return scheme


def _embedding_scheme(
    policy: Policy, candidate: Candidate, rules: list[NodeRule], asked: bool
) -> Scheme | str:
    if not asked and not is_fed(candidate.node.inputs[1]):
        return "its rows are chosen by position; --include with --embedding-bits quantizes it"
    if policy.embedding is None:
        return "embeddings are left float; --embedding-bits quantizes them"
    scheme = policy.embedding
    for rule in rules:
        fields = {
            key: value
            for key, value in rule.overrides.items()
            if key in EMBEDDING_FIELDS and value is not Clip.AUTO  # which is gptq's
        }
        scheme = dataclasses.replace(scheme, **fields)
    return scheme


def _report(candidate: Candidate, outcome: Scheme | str) -> NodeReport:
    shape = None
    if not isinstance(candidate.view, str):
        shape = [candidate.view.k, candidate.view.n]
    op = candidate.node.op_type
    name = candidate.node.name or ""
    if isinstance(outcome, str):
        return NodeReport(name, op, shape, Status.SKIPPED, outcome)
    return NodeReport(
        name,
        op,
        shape,
        Status.QUANTIZED,
        "",
        outcome.bits,
        str(outcome.granularity),
        outcome.lorc_rank,
        merged=candidate.merged,
    )


def _split_ties(selection: Selection, candidates: list[Candidate]) -> list[str]:
    """Say where quantizing one reader of a tied weight leaves another with a float copy."""
    warnings = []
    for head in candidates:
        if not head.tied or head.role == EMBEDDING:
            continue
        for table in candidates:
            if table.role != EMBEDDING or table.storage != head.storage:
                continue
            pair = (head, table) if head.node in selection.chosen else (table, head)
            if [candidate.node in selection.chosen for candidate in pair] == [True, False]:
                what = "embedding" if pair[1] is table else "MatMul"
                warnings.append(
                    f"{pair[0].node.name}: its weight is tied to the {what} {pair[1].node.name},"
                    " which stays float: the file holds both"
                    " (--embedding-bits and --include lm_head together quantize both)"
                )
    return warnings
