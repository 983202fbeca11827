"""Rounding costs the trained OPT what it costs in an independent implementation.

Three windows of each text; `benchmarks/perplexity.py` runs the eighty of the published figures.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import zoo
from tests.acceptance.perplexity import gaps, write_texts

WINDOWS = 3
FLOAT = 105.1206
GAPS = {
    ("w4a16", "row"): 0.6671,
    ("w3a16", "row"): 2.9287,
    ("w3a16", "64"): 1.6759,
    ("w2a16", "64"): 10.7735,
}
"""Of transformers' own model, its linear layers rounded by a few lines of torch in float64."""

TOLERANCE = 0.02
"""Of a gap: where a quotient is near a half, float32 and float64 may round it to different codes."""


def test_gaps_are_those_of_an_independent_implementation(shared_data: Path, tmp_path: Path) -> None:
    texts = write_texts(shared_data, tmp_path / "texts")
    found = gaps(zoo.model("opt-17m"), texts, tmp_path, GAPS, WINDOWS)
    assert found.float_mean == pytest.approx(FLOAT, rel=1e-4)
    assert found.gaps == {setting: pytest.approx(gap, rel=TOLERANCE) for setting, gap in GAPS.items()}
