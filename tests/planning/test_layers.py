"""What each linear is to its block, on every architecture."""

from __future__ import annotations

from collections import Counter

import pytest

from tests import zoo
from tests.calibration.walking import from_text, normalized
from zq2onnx.planning.costs import ATTENTION_IN, ATTENTION_OUT, MLP_DOWN, MLP_UP, OTHER
from zq2onnx.planning.layers import find_places

EXPECTED = {
    "opt": (3, 1, 1, 1),
    "bloom": (1, 1, 1, 1),
    "gpt2": (1, 1, 1, 1),
    "llama": (3, 1, 2, 1),
    "bert": (3, 1, 1, 1),
}
"""Linears in a layer: attention in, attention out, MLP up, MLP down."""


@pytest.mark.parametrize("name", EXPECTED)
def test_kinds_are_those_of_the_architecture(name: str) -> None:
    places = find_places(normalized(zoo.model(name)))

    blocks = {place.block for place in places.values() if place.kind != OTHER}
    of_block = [Counter(place.kind for place in places.values() if place.block == block) for block in blocks]
    expected = dict(zip((ATTENTION_IN, ATTENTION_OUT, MLP_UP, MLP_DOWN), EXPECTED[name], strict=True))
    assert len(blocks) >= 2
    assert all(counts == expected for counts in of_block)
    others = [node for node, place in places.items() if place.kind == OTHER]
    assert len(others) == (0 if name == "bert" else 1)  # lm_head


def test_a_lone_product_is_nothing_to_a_block() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        lone (float[n, 4] x) => (float[n, 3] y) <float[4, 3] w = {1,2,3,4,5,6,7,8,9,10,11,12}>
        { [product] y = MatMul (x, w) }"""
    )

    (place,) = find_places(model).values()

    assert place.kind == OTHER
