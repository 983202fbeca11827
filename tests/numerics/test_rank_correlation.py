"""Spearman's rank correlation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from zq2onnx.numerics.rank_correlation import spearman


def test_equals_the_textbook_formula_without_ties() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal((2, 30))
    difference = one.argsort().argsort() - other.argsort().argsort()
    expected = 1 - 6 * float((difference**2).sum()) / (30 * (30**2 - 1))

    assert spearman(one, other) == pytest.approx(expected, abs=1e-11)
    assert spearman(one, np.exp(one)) == 1
    assert spearman(one, -one) == -1


def test_values_that_are_all_equal_have_no_order() -> None:
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
