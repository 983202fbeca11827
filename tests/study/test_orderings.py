"""Whether the paper's findings hold, on studies made by hand."""

from __future__ import annotations

from tests.study.made import result, study
from zq2onnx.study.orderings import comparisons, findings


def test_all_three_findings_hold() -> None:
    made = study(
        result("rtn", group_size="row", kl=0.8, gap=8),
        result("rtn", group_size="64", kl=0.4, gap=4),
        result("gptq", group_size="row", kl=0.2, gap=2),
        result("gptq", group_size="64", kl=0.1, gap=1),
        result("gptq", group_size="64", rank=8, kl=0.05, gap=0.5),
    )
    assert findings(made) == [
        "gptq beats rounding to nearest: holds on this model. With gptq instead of rtn, all else equal, KL is"
        " lower in 2 of 2 pairs (in the median, it is 0.25 of the other's), perplexity in 2.",
        "Low-rank compensation of rank 8 helps: holds on this model. With rank 8 instead of rank 0, all else"
        " equal, KL is lower in 1 of 1 pairs (in the median, it is 0.50 of the other's), perplexity in 1.",
        "Finer groups help (64 against row): holds on this model. With groups of 64 instead of whole rows,"
        " all else equal, KL is lower in 2 of 2 pairs (in the median, it is 0.50 of the other's),"
        " perplexity in 2.",
    ]


def test_exceptions_are_named_a_few_of_them() -> None:
    worse = [result("gptq", scheme, kl=0.5) for scheme in ("w8a16", "w4a16", "w3a16", "w2a16")]
    better = [result("gptq", scheme, "row", kl=0.1) for scheme in ("w8a8", "w4a8")]
    base = [result("rtn", each.cell.scheme, each.cell.group_size, kl=0.3) for each in (*worse, *better)]
    (method,) = [each for each in comparisons(study(*worse, *better, *base)) if each.worse == "rtn"]
    assert [each.cell.scheme for each in method.exceptions] == ["w8a16", "w4a16", "w3a16", "w2a16"]
    assert "holds in some cells only" in method.sentence()
    assert (
        "KL is not lower with w8a16 g64 gptq rank 0, w4a16 g64 gptq rank 0, w3a16 g64 gptq rank 0 and 1 more."
        in (method.sentence())
    )


def test_a_finding_that_fails_everywhere_is_said_to_fail() -> None:
    (said,) = findings(study(result(rank=0, kl=0.1), result(rank=8, kl=0.1)))
    assert "does not hold on this model" in said
    assert "0 of 1 pairs" in said and "not lower with" not in said


def test_one_exception_of_many_leaves_it_holding_for_the_most_part() -> None:
    pairs = [
        (result(scheme=scheme, kl=0.2), result(scheme=scheme, rank=8, kl=kl))
        for scheme, kl in (("w8a16", 0.3), ("w4a16", 0.1), ("w3a16", 0.1))
    ]
    (said,) = findings(study(*(each for pair in pairs for each in pair)))
    assert "holds for the most part" in said and said.endswith("KL is not lower with w8a16 g64 rtn rank 8.")


def test_each_group_size_is_beside_the_next_coarser() -> None:
    made = study(*(result(group_size=size) for size in ("row", "32", "128")))
    assert [(each.better, each.worse) for each in comparisons(made)] == [
        ("groups of 32", "groups of 128"),
        ("groups of 128", "whole rows"),
    ]


def test_without_pairs_nothing_is_claimed() -> None:
    assert findings(study(result("gptq"), result("rtn", rank=8))) == []


def test_divergences_of_zero_make_no_ratio() -> None:
    (said,) = findings(study(result(rank=0, kl=0.0), result(rank=8, kl=0.0)))
    assert "median" not in said
