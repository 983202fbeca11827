"""What is recommended, on studies made by hand."""

from __future__ import annotations

import shlex
from typing import Literal

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from tests.study.made import result, study
from zq2onnx.evaluation.paper_class import PaperClass
from zq2onnx.study.recommendation import (
    SAME_SIZE,
    best,
    command,
    commands,
    pareto,
    recommended,
    sentences,
    smallest,
    uncertainty,
)

LARGE = result("gptq", rank=8, megabytes=5, gap=0.02, kl=0.001)
MIDDLE = result("gptq", megabytes=4, gap=0.09, kl=0.004)
SMALL = result("gptq", "w3a16", megabytes=3, gap=0.4, kl=0.02)
TINY = result("rtn", "w2a16", megabytes=2, gap=6.0, kl=0.3)


def test_smallest_of_each_class() -> None:
    found = study(TINY, LARGE, SMALL, MIDDLE)
    assert smallest(found, PaperClass.CLASS_1) == MIDDLE
    assert smallest(found, PaperClass.CLASS_2) == SMALL
    assert smallest(found, PaperClass.CLASS_3) == TINY
    assert smallest(study(TINY), PaperClass.CLASS_2) is None


def test_a_small_file_of_a_better_class_is_the_smallest_of_the_worse_one() -> None:
    tight = result("gptq", "w3a16", megabytes=2.5, gap=0.05)
    found = study(SMALL, tight)
    assert smallest(found, PaperClass.CLASS_2) == tight
    assert recommended(found) == (tight,)
    assert sentences(found)[1] == "No smaller file is Class-2."


def test_bounds_belong_to_the_class() -> None:
    on_bound = result(gap=0.1)
    assert smallest(study(on_bound), PaperClass.CLASS_1) == on_bound
    assert smallest(study(result(gap=0.1000001)), PaperClass.CLASS_1) is None


def test_of_files_equal_but_for_metadata_the_nearer_one_is_chosen() -> None:
    rounded = result("rtn", megabytes=4, kl=0.01)
    calibrated = result("gptq", megabytes=4.0003, kl=0.001)
    found = study(rounded, calibrated)
    assert smallest(found, PaperClass.CLASS_1) == calibrated
    assert pareto(found) == (calibrated,)


def test_sentences_name_both_files_with_their_numbers() -> None:
    assert sentences(study(TINY, LARGE, SMALL, MIDDLE)) == [
        "The smallest Class-1 file (perplexity at most 0.1 above the float model's) is w4a16 g64 gptq rank 0,"
        " 4.00 MB of 12.50 MB (3.12x smaller), +0.090 in perplexity, KL 0.00400.",
        "The smallest Class-2 file (at most 0.5 above the float model's) is w3a16 g64 gptq rank 0,"
        " 3.00 MB of 12.50 MB (4.17x smaller), +0.400 in perplexity, KL 0.02000.",
    ]


def test_without_a_class_1_file_that_is_said() -> None:
    said = sentences(study(SMALL, TINY))
    assert said[0] == "No file is Class-1 (perplexity at most 0.1 above the float model's)."
    assert "w3a16 g64 gptq rank 0" in said[1]


def test_without_either_class_the_best_is_told() -> None:
    worse = result("rtn", "w2a16", "row", megabytes=1, gap=9.0)
    found = study(worse, TINY)
    assert best(found) == TINY and recommended(found) == (TINY,)
    said = sentences(found)
    assert said[0].startswith("No file is Class-1 or Class-2")
    assert "w2a16 g64 rtn rank 0" in said[1] and "+6.000" in said[1]


def test_without_any_result_there_is_nothing_to_recommend() -> None:
    found = study()
    assert pareto(found) == () and recommended(found) == () and best(found) is None
    assert sentences(found) == ["No cell of the study gave a result: there is nothing to recommend."]


def test_few_tokens_are_told() -> None:
    doubtful = sentences(study(MIDDLE, positions=1000))
    assert doubtful[-1].startswith("With 1000 tokens predicted, the gap of w4a16 g64 gptq rank 0 is known")
    assert len(doubtful) == len(sentences(study(MIDDLE))) + 1


def test_uncertainty_is_the_spread_of_perplexities_over_samples_of_tokens() -> None:
    """Tokens drawn of the float model's own predictions, scored by it and by a model near to it."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((400, 50))
    p, q = (
        np.exp(each) / np.exp(each).sum(1, keepdims=True)
        for each in (logits, logits + 0.1 * rng.standard_normal((400, 50)))
    )
    kl = float((p * np.log(p / q)).sum(1).mean())
    rows = np.arange(400)
    gaps, means = [], []
    for _ in range(800):
        drawn = (p.cumsum(1) > rng.random((400, 1))).argmax(1)
        mean, other = (np.exp(-np.log(each[rows, drawn]).mean()) for each in (p, q))
        gaps.append(other - mean)
        means.append(mean)
    made = study(result(kl=kl), positions=400)
    told = uncertainty(made, made.cells[0]) * np.mean(means) / made.mean
    assert told == pytest.approx(np.std(gaps), rel=0.1)


costs = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12)


@given(costs, st.sampled_from(["kl", "gap"]))
def test_front_is_what_nothing_beats(points: list[tuple[int, int]], measure: Literal["kl", "gap"]) -> None:
    cells = [
        result(rank=rank, megabytes=size, **{measure: cost / 8}) for rank, (size, cost) in enumerate(points)
    ]
    front = pareto(study(*cells), measure)
    expected = {
        (size, cost)
        for size, cost in points
        if not any(s <= size and c <= cost and (s, c) != (size, cost) for s, c in points)
    }
    assert {(each.bytes / 1e6, 8 * getattr(each, measure)) for each in front} == expected
    assert [each.bytes for each in front] == sorted(each.bytes for each in front)


def test_sizes_as_good_as_equal_are_within_a_thousandth() -> None:
    near, far = result("rtn", megabytes=4, kl=0.5), result("gptq", megabytes=4 * SAME_SIZE + 0.001, kl=0.1)
    assert pareto(study(near, far)) == (near, far)


def test_two_files_of_one_scheme_are_not_made_under_one_name() -> None:
    best, smaller = (
        result("gptq", megabytes=4, gap=0.05),
        result("gptq", "w4a16", "row", megabytes=3, gap=0.3),
    )
    lines = [shlex.split(line) for _, line in commands(study(best, smaller))]
    assert [line[line.index("-o") + 1] for line in lines] == [
        "model.w4a16-g64-gptq-r0.onnx",
        "model.w4a16-row-gptq-r0.onnx",
    ]
    other = result("gptq", "w3a16", megabytes=3, gap=0.3)
    assert [line for _, line in commands(study(best, other))] == [
        command(study(), best),
        command(study(), other),
    ]


def test_command_makes_the_file() -> None:
    made = study(calibration="calib text.txt", tokenizer="tok", calib_samples=16, calib_length=64)
    assert shlex.split(command(made, LARGE, "out.onnx")) == [
        *("zq2onnx", "convert", "model.onnx", "-o", "out.onnx", "--scheme", "w4a16", "--group-size", "64"),
        *("--method", "gptq", "--lorc-rank", "8", "--calib", "calib text.txt", "--tokenizer", "tok"),
        *("--calib-samples", "16", "--calib-length", "64"),
    ]
    assert "--calib" not in command(made, TINY), "rtn is converted without calibration"
