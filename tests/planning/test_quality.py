"""The least plan of a class, searched for with a stand-in for conversion and measurement."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import zoo
from tests.convert.calibrating import TEXT
from tests.planning.test_planner import planner_of
from zq2onnx.errors import UserError
from zq2onnx.evaluation import evaluate
from zq2onnx.evaluation.paper_class import PaperClass
from zq2onnx.planning.budget import Bits, Quality
from zq2onnx.planning.judge import JUDGED_WINDOWS, Judge
from zq2onnx.planning.plan import Plan
from zq2onnx.planning.planner import Planner
from zq2onnx.planning.quality import least_of_class

CLASS_1 = Quality(PaperClass.CLASS_1)


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    return planner_of(zoo.model("opt"), tmp_path_factory.mktemp("quality"))


def counted(gap: Callable[[Plan], float]) -> tuple[Callable[[Plan], float], list[float]]:
    measured: list[float] = []

    def measure(plan: Plan) -> float:
        measured.append(plan.bits)
        return gap(plan)

    return measure, measured


def test_what_is_found_is_of_the_class_and_little_less_is_not(planner: Planner) -> None:
    threshold = 4.7
    measure, measured = counted(lambda plan: 0.1 if plan.bits >= threshold else 0.11)

    plan = least_of_class(planner, CLASS_1, measure)

    assert threshold <= plan.bits <= threshold + 0.3  # small layers: plans are far apart
    assert plan.budget == "class-1"
    assert plan.bits in measured
    assert len(measured) <= 9


def test_the_smallest_plan_is_found_where_all_are_of_the_class(planner: Planner) -> None:
    measure, _ = counted(lambda plan: -0.2)

    plan = least_of_class(planner, CLASS_1, measure)

    assert plan.bits == planner.extremes("any")[0].bits


def test_a_class_out_of_reach_is_refused(planner: Planner) -> None:
    measure, measured = counted(lambda plan: 0.3)

    with pytest.raises(UserError, match=r"class-1: with [\d.]+ bits per weight perplexity is 0.300 above"):
        least_of_class(planner, CLASS_1, measure)
    assert len(measured) == 1


def test_a_gap_that_is_no_number_is_refused(planner: Planner) -> None:
    measure, _ = counted(lambda plan: float("nan"))

    with pytest.raises(UserError, match="perplexity is nan above"):
        least_of_class(planner, CLASS_1, measure)


def test_a_gap_has_a_standard_error_added(tmp_path: Path) -> None:
    model, text = TEXT.with_name("model.onnx"), tmp_path / "text.txt"
    text.write_text(TEXT.read_text()[:4000])
    planner = planner_of(model, tmp_path)
    plan = dataclasses.replace(planner.plan(Bits(4.0)), cost=0.08)
    judge = Judge(model, tmp_path / "out.onnx", TEXT, model.parent, [text])

    without = judge.gap(dataclasses.replace(plan, cost=0.0))

    positions = evaluate([model], [text], model.parent, windows=JUDGED_WINDOWS).positions
    expected = judge.reference * math.sqrt(2 * 0.08 / positions)
    assert judge.gap(plan) - without == pytest.approx(expected, rel=1e-6)
