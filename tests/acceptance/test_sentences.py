"""A converted encoder's sentence embeddings stay near the float one's; all 500 sentences are a benchmark."""

from __future__ import annotations

from pathlib import Path

import zq2onnx
from tests import zoo
from tests.acceptance.sentences import embed, read_sentences, similarity

SENTENCES = 40
LEAST = {"w8a16": 0.9998, "w4a16": 0.973}


def test_sentence_embeddings_stay_near(shared_data: Path, tmp_path: Path) -> None:
    model = zoo.model("minilm")
    tokenizer = model.parent / "tokenizer.json"
    sentences = read_sentences(shared_data / "wikitext2-test.txt", SENTENCES)
    expected = embed(model, tokenizer, sentences)
    assert similarity(expected[1:], expected[:-1]) < 0.7  # the sentences do differ
    for scheme, least in LEAST.items():
        output = tmp_path / f"{scheme}.onnx"
        zq2onnx.convert(model, output, scheme=scheme, group_size=32, lorc_rank=8)
        assert similarity(embed(output, tokenizer, sentences), expected) >= least
