"""Budgets kept to, and what is written as a plan."""

from __future__ import annotations

import dataclasses
import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import zq2onnx
from tests import zoo
from tests.convert.calibrating import LENGTH, SAMPLES, TEXT
from zq2onnx.conversion.choices import Choices
from zq2onnx.errors import UserError
from zq2onnx.numerics.rank_correlation import spearman
from zq2onnx.planning.budget import Bits, Bytes
from zq2onnx.planning.planner import Planner
from zq2onnx.planning.survey import Steps

CALIBRATION = {"calib_samples": SAMPLES, "calib_length": LENGTH}


def planner_of(model: Path, folder: Path, recipe: str = "", **options: Any) -> Planner:
    """Sized up, by rounding to nearest unless another method is asked for."""
    file = None
    if recipe:
        file = folder / "given.toml"
        file.write_text(recipe)
    said = Choices(**{"method": "rtn", "lorc_rank": 8, **CALIBRATION, **options})
    planner = Planner(model, said, TEXT, model.parent, file, folder / "out.onnx")
    planner.size_up(Steps())
    return planner


def convert_by(plan: Any, model: Path, folder: Path) -> zq2onnx.Report:
    plan.save(folder / "plan.toml")
    return zq2onnx.convert(
        model,
        folder / "out.onnx",
        recipe=folder / "plan.toml",
        calib=TEXT,
        tokenizer=model.parent,
        check="none",
        force=True,
    )


@pytest.fixture(scope="module")
def opt() -> Path:
    return zoo.model("opt")


@pytest.fixture(scope="module")
def planner(opt: Path, tmp_path_factory: pytest.TempPathFactory) -> Planner:
    return planner_of(opt, tmp_path_factory.mktemp("planner"))


def test_a_profile_s_group_size_and_float_type_are_planned_with(opt: Path, tmp_path: Path) -> None:
    plan = planner_of(opt, tmp_path, profile="ort-cuda", lorc_rank=0).plan(Bits(4.5))
    report = convert_by(plan, opt, tmp_path)
    assert {node.group_size for node in report.quantized} == {"32"}
    assert report.scheme["dtype"] == "fp16" and report.bytes_after == plan.bytes
    assert report.effective_bits is not None and report.effective_bits <= plan.bits <= 4.5


@pytest.mark.parametrize("limit", [3.0, 4.4, 6.0])
def test_bits_are_kept_to_and_used(planner: Planner, opt: Path, tmp_path: Path, limit: float) -> None:
    plan = planner.plan(Bits(limit))
    report = convert_by(plan, opt, tmp_path)

    assert report.effective_bits is not None
    assert report.effective_bits <= plan.bits <= limit
    assert plan.bits > 0.9 * limit
    written = {node.name: (node.bits, node.group_size) for node in report.quantized}
    assert written == {
        layer.node: (layer.scheme.bits, str(layer.scheme.granularity)) for layer in plan.layers
    }


def test_foreseen_bytes_are_those_of_the_file(planner: Planner, opt: Path, tmp_path: Path) -> None:
    least, most = planner.extremes("any")
    limit = (least.bytes + most.bytes) // 2

    plan = planner.plan(Bytes(limit))
    report = convert_by(plan, opt, tmp_path)

    kept = all(node.rank == layer.scheme.lorc_rank for node, layer in _pairs(report, plan))
    assert report.bytes_after <= plan.bytes <= limit
    assert not kept or report.bytes_after == pytest.approx(plan.bytes, abs=64)


def _pairs(report: zq2onnx.Report, plan: Any) -> list[tuple[Any, Any]]:
    nodes = {node.name: node for node in report.quantized}
    return [(nodes[layer.node], layer) for layer in plan.layers]


def test_more_room_costs_less(planner: Planner) -> None:
    plans = [planner.plan(Bits(limit)) for limit in (3.0, 3.5, 4.0, 5.0, 7.0)]

    costs = [plan.cost for plan in plans]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0] / 10


def test_a_plan_is_a_recipe(planner: Planner, opt: Path, tmp_path: Path) -> None:
    plan = planner.plan(Bits(4.0))

    table = tomllib.loads(plan.to_toml("made of this"))

    assert table["method"] == "rtn"
    assert table["calib-samples"] == SAMPLES
    assert {node["match"] for node in table["node"]} >= {
        "^" + plan.layers[0].node.replace(".", r"\.") + r"\Z"
    }
    edited = plan.to_toml() + '\n[[node]]\nmatch = "fc1"\nkeep-float = true\n'
    (tmp_path / "plan.toml").write_text(edited)
    report = zq2onnx.convert(
        opt,
        tmp_path / "out.onnx",
        recipe=tmp_path / "plan.toml",
        calib=TEXT,
        tokenizer=opt.parent,
        check="none",
    )
    assert all("fc1" not in node.name for node in report.quantized)


def test_what_a_recipe_fixes_for_a_node_is_kept(opt: Path, tmp_path: Path) -> None:
    recipe = """
        [[node]]
        match = "fc2"
        scheme = "w8a16"
        lorc-rank = 4
        [[node]]
        match = "q_proj"
        keep-float = true
        """

    plan = planner_of(opt, tmp_path, recipe).plan(Bits(5.0))

    schemes = {layer.node: layer.scheme for layer in plan.layers}
    fixed = [scheme for node, scheme in schemes.items() if "fc2" in node]
    assert fixed
    assert all((scheme.bits, scheme.lorc_rank) == (8, 4) for scheme in fixed)
    assert not any("q_proj" in node for node in schemes)


def test_one_group_size_is_tried_where_one_is_asked_for(opt: Path, tmp_path: Path) -> None:
    plan = planner_of(opt, tmp_path, group_size=32, lorc_rank=0).plan(Bits(4.5))

    assert {str(layer.scheme.granularity) for layer in plan.layers} == {"32"}
    assert {layer.scheme.lorc_rank for layer in plan.layers} == {0}


def test_qdq_is_foreseen_to_the_byte(opt: Path, tmp_path: Path) -> None:
    plan = planner_of(opt, tmp_path, target="qdq", lorc_rank=0).plan(Bits(5.0))

    report = convert_by(plan, opt, tmp_path)

    assert report.bytes_after == pytest.approx(plan.bytes, abs=64)


def test_what_concerns_int8_activations_and_embeddings_is_foreseen(opt: Path, tmp_path: Path) -> None:
    recipe = """
        act-granularity = "block"
        embedding-bits = 8
        [[node]]
        match = "fc1"
        scheme = "w8a8"
        [[node]]
        match = "fc2"
        symmetric = true
        method = "gptq"
        [[node]]
        match = "k_proj"
        lorc-rank = 3
        lorc-dtype = "float"
        lorc = "plain"
        """

    plan = planner_of(opt, tmp_path, recipe).plan(Bits(5.5))
    report = convert_by(plan, opt, tmp_path)

    assert {str(layer.scheme.granularity) for layer in plan.layers} != {"128"}  # which embeddings have
    assert report.bytes_after == plan.bytes
    assert report.effective_bits == pytest.approx(plan.bits)
    operators = {
        node.op_type for node in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.node
    }
    assert any(name.startswith("MatMulW8A8Block") for name in operators)


def test_what_is_a_little_over_is_made_a_little_smaller(opt: Path, tmp_path: Path) -> None:
    planner = planner_of(opt, tmp_path, lorc_rank=128, lorc_dtype="float")
    least, most = planner.extremes("any")

    for share in np.linspace(0.05, 0.45, 9):
        limit = int(least.bytes + share * (most.bytes - least.bytes))
        assert 0.95 * limit < planner.plan(Bytes(limit)).bytes <= limit


def test_a_layer_named_as_the_weight_of_another_has_its_own_scheme(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal((128, 128)).astype(np.float32) / 8 for name in ("second", "first", "w")
    }
    weights["w"] /= 1000
    nodes = [  # torch has no counterpart of the last one here: layers are measured
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("MatMul", ["x", "second"], ["b"], "w"),
        helper.make_node("MatMul", ["x", "first"], ["c"], "last"),
        helper.make_node("Sum", ["a", "b", "c"], ["y"], "sum"),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 128]) for name in "xy"]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "named", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", x=rng.standard_normal((32, 128)).astype(np.float32))
    said = Choices(method="rtn", lorc_rank=0)
    planner = Planner(
        tmp_path / "model.onnx", said, tmp_path / "calib.npz", None, None, tmp_path / "out.onnx"
    )
    planner.size_up(Steps())

    plan = planner.plan(Bits(4.0))
    plan.save(tmp_path / "plan.toml")
    report = zq2onnx.convert(
        tmp_path / "model.onnx",
        tmp_path / "out.onnx",
        recipe=tmp_path / "plan.toml",
        calib=tmp_path / "calib.npz",
        check="none",
    )

    assert any("there are no gradients: node 'sum' (Sum)" in warning for warning in plan.warnings)
    chosen = {layer.node: layer.scheme.bits for layer in plan.layers}
    assert len(set(chosen.values())) > 1
    assert {node.name: node.bits for node in report.quantized} == chosen


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            Bits(1.9),
            r"--budget 1.9bits: \d+ bytes short, the smallest schemes come to [\d.]+ bits per weight",
        ),
        (Bytes(1000), r"--budget 0.001MB: \d+ bytes short, the smallest schemes come to [\d.]+ MB"),
        (Bits(32), "has 32 bits per weight; required: less than that"),
        (Bytes(10**9), "has [0-9.]+MB; required: less than that"),
    ],
)
def test_budgets_that_cannot_be_kept_are_refused(planner: Planner, budget: Any, message: str) -> None:
    for refuse in (planner.check, planner.plan):
        with pytest.raises(UserError, match=message):
            refuse(budget)


def test_without_torch_layers_are_measured(
    opt: Path, planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest)
    )

    measured = planner_of(opt, tmp_path)

    assert any("torch is not installed" in warning for warning in measured.warnings)
    assert not any("torch" in warning for warning in planner.warnings)
    pairs = list(zip(planner._alternatives, measured._alternatives, strict=True))
    for one, other in pairs:
        assert one.nodes == other.nodes
        np.testing.assert_array_equal(one.sizes, other.sizes)
    by_gradient, by_probe = ([float(each[side].costs[0]) for each in pairs] for side in (0, 1))
    assert spearman(by_gradient, by_probe) > 0.8


def test_origin_tells_options_apart(opt: Path, tmp_path: Path) -> None:
    def origin(**options: Any) -> str:
        said = Choices(**{"method": "rtn", **CALIBRATION, **options})
        return Planner(opt, said, TEXT, opt.parent, None, tmp_path / "out.onnx").origin

    assert origin() == origin()
    others = [{"group_size": 32}, {"lorc_rank": 4}, {"calib_samples": 4}, {"target": "qdq"}]
    assert len({origin(), *(origin(**other) for other in others)}) == 5


def test_plans_are_told_apart_by_nothing_but_their_choices(planner: Planner) -> None:
    one, other = planner.plan(Bits(4.0)), planner.plan(Bits(4.0), label="class-1")

    assert dataclasses.replace(other, budget=one.budget) == one
