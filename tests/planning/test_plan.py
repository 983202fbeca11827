"""A plan as a file: names that mean something to TOML or to regular expressions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zq2onnx.conversion.recipe import read_recipe
from zq2onnx.planning.costs import OTHER
from zq2onnx.planning.layers import Place
from zq2onnx.planning.plan import Plan, PlannedLayer, exactly, read_origin
from zq2onnx.scheme import Scheme

NAMES = [
    "a.b",
    "axb",
    "a.b\n",
    "(x)[0]*+?|{2}^$",
    'it\'s "quoted" \\ back',
    "line\nbreak\r\n",
    "tab\tbell\x07del\x7f",
    "ünï→名 🙂",
    "separators \u2028\u2029\x85# made of: nothing",
    "",
]


def plan_of(names: list[str]) -> Plan:
    layers = tuple(PlannedLayer(name, Place(OTHER, 0), Scheme(bits=3), 3.5, 0.1) for name in names)
    return Plan("3bits", {"method": "rtn", "node": []}, layers, 10, 10, 20, 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_means_its_node_alone(name: str, tmp_path: Path) -> None:
    plan_of([name]).save(tmp_path / "plan.toml", "this")

    _, (rule,) = read_recipe(tmp_path / "plan.toml")

    assert rule.match == exactly(name)
    assert [other for other in NAMES if re.search(rule.match, other)] == [name]
    assert read_origin(tmp_path / "plan.toml") == "this"


def test_a_name_cannot_pass_for_the_origin(tmp_path: Path) -> None:
    plan_of(NAMES).save(tmp_path / "plan.toml")

    assert read_origin(tmp_path / "plan.toml") == ""
    assert read_origin(tmp_path / "absent.toml") == ""
