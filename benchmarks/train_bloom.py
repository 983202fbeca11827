"""Train a small BLOOM of 2.1 M parameters: an architecture that the bundled OPT does not cover.

    python benchmarks/train_bloom.py OUT_DIR [--text TEXT.txt] [--epochs 1] [--threads 2]

Takes some minutes on two cores, to a held-out perplexity of 110. ALiBi instead of learned positions, queries,
keys and values in one matrix, GELU instead of ReLU, a LayerNorm behind the embedding. Tokenizer and held-out
text are those of the bundled model, whose held-out lines are left out of training. Needs the `[torch]` extra.
Writes a transformers folder (fp32) and `OUT_DIR/model.onnx` (fp32); prints the held-out perplexity beside a
unigram model's.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

from zq2onnx.models import capture, train_tiny

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "models" / "tiny"
TEXT = ROOT.parent / "shared" / "data" / "train-small.txt"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
ARCHITECTURE = {
    "vocab_size": train_tiny.VOCABULARY,
    "hidden_size": 192,
    "n_layer": 3,
    "n_head": 4,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}


def encode(text: str) -> np.ndarray:
    """Ids of the bundled tokenizer, without special tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids)


def main() -> None:
    """Train, measure, save and export, as the arguments say."""
    import torch
    from transformers import BloomConfig, BloomForCausalLM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT_DIR")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    train_text, _ = train_tiny.split_text(options.text.read_text(encoding="utf-8"))
    train_ids = encode(train_text)
    heldout_ids = encode((TINY / "heldout.txt").read_text(encoding="utf-8"))

    model = BloomForCausalLM(BloomConfig(**ARCHITECTURE))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(train_ids):,} tokens", flush=True)
    train_tiny.train(model, train_ids, options.epochs, options.seed)
    unigram = train_tiny.unigram_perplexity(train_ids, heldout_ids)
    print(f"held-out perplexity {train_tiny.perplexity(model, heldout_ids):.2f}, unigram {unigram:.2f}")

    options.output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(options.output)
    for name in TOKENIZER_FILES:
        shutil.copyfile(TINY / name, options.output / name)
    made = capture.export(options.output, options.output / "model.onnx", cache=False, force=True)
    print(f"{made.path}: {made.bytes / 1e6:.1f} MB, opset {made.opset}")


if __name__ == "__main__":
    main()
