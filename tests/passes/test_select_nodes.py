from __future__ import annotations

import dataclasses
from typing import Any

import onnx_ir as ir
import pytest

from tests.passes.hand_made import SCHEME, graph, rand, reports, selected
from zq2onnx.errors import UserError
from zq2onnx.passes.candidates import SCOPES_KEY
from zq2onnx.passes.select_nodes import NodeRule, Policy
from zq2onnx.report import Status
from zq2onnx.scheme import PerBlock, PerChannel, Scheme

EMBEDDING = dataclasses.replace(SCHEME, bits=8)


def language_model(head: str = "MatMul(b, out)", more: str = "") -> ir.Model:
    """Embedding, two layers and an lm_head; `a` is of the module `layers.0.fc1`."""
    model = graph(
        "g (int64[2] ids, int64[2] position_ids) => (logits) { h = Gather(table, ids) a = MatMul(h, w1)"
        f" b = MatMul(a, w2) {more} logits = {head} }}",
        {"table": rand(30, 8), "w1": rand(8, 8), "w2": rand(8, 8), "out": rand(8, 30)},
    )
    for node in model.graph:
        if node.name == "a":
            node.metadata_props[SCOPES_KEY] = "['', 'layers.0', 'layers.0.fc1', 'linear']"
    return model


def chosen(model: ir.Model, policy: Policy | None = None, **said: Any) -> set[str]:
    return {node.name or "" for node in selected(model, policy, **said).chosen}


def test_lm_head_and_embedding_stay_float_by_default_and_say_so() -> None:
    found = reports(language_model())
    assert {name: report.reason for name, report in found.items()} == {
        "h": "embeddings are left float; --embedding-bits quantizes them",
        "a": "",
        "b": "",
        "logits": "lm_head is left float by default; --include lm_head quantizes it",
    }
    assert found["a"].status is Status.QUANTIZED and found["h"].status is Status.SKIPPED
    assert (found["a"].shape, found["a"].bits, found["a"].group_size, found["a"].rank) == ([8, 8], 4, "16", 0)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, {"a", "b"}),
        ({"exclude": ("^a$",)}, {"b"}),
        ({"exclude": ("w2",)}, {"a"}),
        ({"exclude": (r"layers\.0",)}, {"b"}),
        ({"only": ("fc1",)}, {"a"}),
        ({"only": ("lm_head",)}, {"logits"}),
        ({"include": ("lm_head",)}, {"a", "b", "logits"}),
        ({"include": ("logits",)}, {"a", "b", "logits"}),
        ({"only": ("^[ab]$",), "exclude": ("^b$",)}, {"a"}),
        ({"only": ("^a$",), "include": ("lm_head",)}, {"a"}),
        ({"include": ("lm_head",), "exclude": ("lm_head",)}, {"a", "b"}),
        ({"embedding": EMBEDDING}, {"a", "b", "h"}),
        ({"embedding": EMBEDDING, "exclude": ("embedding",)}, {"a", "b"}),
        ({"include": ("embedding",)}, {"a", "b"}),
        ({"rules": (NodeRule("^a$", keep_float=True),)}, {"b"}),
        ({"rules": (NodeRule("lm_head", keep_float=False),)}, {"a", "b", "logits"}),
        (
            {"rules": (NodeRule("."), NodeRule("^a$", keep_float=True), NodeRule("^a$", {}, False))},
            {"a", "b"},
        ),
        ({"rules": (NodeRule("^a$", keep_float=False), NodeRule("^a$", {}, True))}, {"b"}),
        ({"rules": (NodeRule("^a$", keep_float=False),), "exclude": ("^a$",)}, {"b"}),
    ],
)
def test_who_is_chosen(said: dict[str, Any], expected: set[str]) -> None:
    assert chosen(language_model(), **said) == expected


def test_reasons_name_the_expression() -> None:
    said: dict[str, Any] = {"exclude": ("w1",), "only": ("w1", "w2", "lm_head"), "rules": ()}
    said["rules"] = (NodeRule("w2", keep_float=True),)
    found = reports(language_model(), **said)
    assert found["a"].reason == "excluded by 'w1'"
    assert found["b"].reason == "kept float by the recipe's 'w2'"
    assert found["h"].reason == "not among --only"


def test_later_rules_win_and_refine_the_scheme() -> None:
    rules = (
        NodeRule(".", {"bits": 3, "symmetric": True}),
        NodeRule("^b$", {"bits": 8}),
        NodeRule("^b$", {"granularity": PerChannel()}),
    )
    selection = selected(language_model(), rules=rules)
    schemes = {node.name: scheme for node, (_, scheme) in selection.chosen.items()}
    assert schemes == {
        "a": dataclasses.replace(SCHEME, bits=3, symmetric=True),
        "b": dataclasses.replace(SCHEME, bits=8, symmetric=True, granularity=PerChannel()),
    }


def test_rules_refine_an_embedding_but_not_its_bits_or_branch() -> None:
    rules = (NodeRule("embedding", {"bits": 3, "lorc_rank": 4, "granularity": PerBlock(32)}),)
    selection = selected(language_model(), embedding=EMBEDDING, rules=rules)
    found = {node.name: scheme for node, (_, scheme) in selection.chosen.items()}
    assert found["h"] == dataclasses.replace(EMBEDDING, granularity=PerBlock(32))


@pytest.mark.parametrize("field", ["only", "include", "exclude", "rules"])
def test_an_expression_that_matches_nothing_is_an_error(field: str) -> None:
    said: dict[str, Any] = {field: ("layers.7",) if field != "rules" else (NodeRule("layers.7"),)}
    with pytest.raises(UserError, match="'layers.7' matches no node"):
        selected(language_model(), **said)


def test_a_malformed_expression_is_an_error() -> None:
    with pytest.raises(UserError, match=r"'\(' is not a regular expression: missing \)"):
        selected(language_model(), exclude=("(",))


def test_the_exporters_own_node_name_is_no_module() -> None:
    """`linear` ends the list of scopes of every linear layer."""
    with pytest.raises(UserError, match="matches no node"):
        selected(language_model(), only=("linear",))


@pytest.mark.parametrize(
    ("ids", "steps"),
    [
        ("position_ids", ""),
        ("p", "p = Add(ids, position_ids)"),
    ],
)
def test_positions_are_quantized_only_when_asked_for(ids: str, steps: str) -> None:
    more = f"{steps} e = Gather(table, {ids})"
    found = reports(language_model("Add(b, e)", more), embedding=EMBEDDING)
    assert (
        found["e"].reason == "its rows are chosen by position; --include with --embedding-bits quantizes it"
    )
    assert "e" in chosen(language_model("Add(b, e)", more), embedding=EMBEDDING, include=("^e$",))


def test_a_lookup_of_constants_folds_and_is_left_alone() -> None:
    more = "p = Constant <value_ints = [0, 1]> () e = Gather(table, p)"
    found = reports(language_model("Add(b, e)", more), embedding=EMBEDDING, include=("^e$",))
    assert found["e"].reason == "its rows are chosen by constants: the lookup folds at load"


def test_tokens_may_be_cast_and_reshaped() -> None:
    more = (
        "c = Cast <to = 6> (ids) s = Constant <value_ints = [-1]> () r = Reshape(c, s) e = Gather(table, r)"
    )
    assert "e" in chosen(language_model("Add(b, e)", more), embedding=EMBEDDING)


def tied() -> ir.Model:
    return language_model("MatMul(b, t)", "t = Transpose(table)")


def test_a_tie_that_is_torn_is_told() -> None:
    assert selected(tied()).warnings == []
    (warning,) = selected(tied(), include=("lm_head",)).warnings
    assert warning.startswith("logits: its weight is tied to the embedding h, which stays float")
    (warning,) = selected(tied(), embedding=EMBEDDING).warnings
    assert warning.startswith("h: its weight is tied to the MatMul logits, which stays float")
    assert "--embedding-bits and --include lm_head together" in warning
    assert selected(tied(), embedding=EMBEDDING, include=("lm_head",)).warnings == []


def test_policy_defaults_to_the_schemes() -> None:
    assert Policy().scheme == Scheme() and Policy().patterns() == []
