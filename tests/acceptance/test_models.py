"""Converted models compute what their stored weights mean: every node, and the whole model.

A cell for every model and for every kind of weight; `benchmarks/acceptance.py` runs all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import zoo
from tests.acceptance.matrix import (
    LOGITS_TOLERANCE,
    SCHEMES,
    TARGETS,
    Cell,
    feeds_of,
    measure,
    relative_error,
)

SIZE_OVERHEAD = 0.03

TRAINED = [
    Cell("opt-17m", scheme, target, group, rank)
    for scheme in SCHEMES
    for target, group, rank in ((TARGETS[0], 64, 8), (TARGETS[1], "row", 0))
]
OTHERS = [
    Cell("opt-17m", "w2a16", "qdq", 64, 8),
    Cell("opt-17m", "w3a16", "portable", "row", 0),
    Cell("bloom", "w4a16", "portable", "row", 8, {"include": ["lm_head"]}),
    Cell("bloom", "w2a16", "qdq", 32, 0),
    Cell("gpt2", "w3a16", "portable", 32, 8),
    Cell("gpt2", "w8a16", "qdq", "row", 8),
    Cell("llama", "w8a16", "portable", 32, 0),
    Cell("llama", "w4a16", "qdq", 32, 8),
    Cell("bert", "w4a16", "portable", 32, 8, {"embedding_bits": 4}),
    Cell("bert", "w3a16", "qdq", 32, 8, {"embedding_bits": 8}),
    Cell("minilm", "w4a16", "portable", 32, 8),
    Cell("opt-torchscript-13", "w4a16", "portable", 32, 8),
    Cell("opt-torchscript-13", "w2a16", "qdq", "row", 8),
    Cell("opt-torchscript-17", "w8a16", "qdq", 32, 0),
    Cell("opt-fp16", "w4a16", "portable", 32, 8),
    Cell("opt-fp16", "w8a16", "qdq", "row", 0, {"symmetric": True}),
    Cell("opt-bf16", "w4a16", "portable", 32, 8),
    Cell("opt-bf16", "w3a16", "qdq", 32, 8, {"lorc_dtype": "float"}),
]


@pytest.mark.parametrize("cell", TRAINED + OTHERS, ids=str)
def test_nodes_and_logits_agree_with_what_is_stored(cell: Cell, tmp_path: Path) -> None:
    outcome = measure(cell, tmp_path)
    assert list(outcome.faults()) == []
    if cell.model == "opt-17m":
        # Beside this model's weights, its graph and the operators' bodies are small.
        assert outcome.overhead <= SIZE_OVERHEAD


def test_the_oracle_tells_a_wrong_weight_from_a_right_one(tmp_path: Path) -> None:
    """What two bits lose is far beyond the tolerance: the oracle is not the float model."""
    measure(Cell("bert", "w2a16", "portable", 32, 0), tmp_path)
    path = zoo.model("bert")
    feeds = feeds_of(path)
    lost = relative_error(zoo.run(path, feeds)[0], zoo.run(tmp_path / "oracle.onnx", feeds)[0])
    assert lost > 100 * LOGITS_TOLERANCE["float32"]
