"""Train the bundled language model, `models/tiny`: a four-layer OPT of 4.3 M parameters.

    python -m zq2onnx.models.train_tiny TEXT.txt [--epochs 3] [-o models/tiny]

Needs the `[torch]` extra. Writes a transformers folder (config.json, tokenizer.json, fp16
model.safetensors), `model.onnx`, which reads its weights from model.safetensors, and `heldout.txt`
(text the model has not seen); prints the held-out perplexity beside a unigram model's.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zq2onnx.models import capture
from zq2onnx.models.link_safetensors import link

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
CONTEXT = 256
VOCABULARY = 4096
ARCHITECTURE = {
    "hidden_size": 256,
    "word_embed_proj_dim": 256,
    "ffn_dim": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
BATCH = 16


def split_text(text: str, chunks: int = 64, heldout: float = 0.02) -> tuple[str, str]:
    """Cut `text` in `chunks` pieces and hold out the last `heldout` of each.

    The corpus is a concatenation of sources, so a held-out tail would be one source only.
    Cuts fall on line ends.
    """
    train, held = [], []
    lines = text.splitlines(keepends=True)
    for part in np.array_split(np.arange(len(lines)), chunks):
        cut = int(len(part) * (1 - heldout))
        train += [lines[i] for i in part[:cut]]
        held += [lines[i] for i in part[cut:]]
    return "".join(train), "".join(held)


def train_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE of `VOCABULARY` entries, special tokens first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def windows(ids: np.ndarray) -> np.ndarray:
    """`[n, CONTEXT]` non-overlapping windows; the tail is dropped."""
    return ids[: len(ids) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)


def perplexity(model: torch.nn.Module, ids: np.ndarray) -> float:
    """Mean over all scored positions; the first token of each window is unscored."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in np.array_split(windows(ids), max(1, len(ids) // CONTEXT // 16)):
            tokens = torch.from_numpy(batch)
            loss = model(input_ids=tokens, labels=tokens).loss
            total += float(loss) * len(batch)
            count += len(batch)
    return math.exp(total / count)


def unigram_perplexity(train: np.ndarray, heldout: np.ndarray) -> float:
    """Perplexity of add-one unigram frequencies of `train` on `heldout`."""
    counts = np.bincount(train, minlength=VOCABULARY) + 1.0
    return float(np.exp(-np.log(counts / counts.sum())[heldout].mean()))


def train(model: torch.nn.Module, ids: np.ndarray, epochs: int, seed: int) -> None:
    """AdamW with warm-up and cosine decay; every epoch cuts its windows at a new offset."""
    import torch

    rng = np.random.default_rng(seed)
    total = epochs * (len(windows(ids[CONTEXT:])) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=total, pct_start=0.05)
    model.train()
    step, start = 0, time.monotonic()
    for epoch in range(epochs):
        cut = windows(ids[rng.integers(CONTEXT) :])
        order = rng.permutation(len(cut))
        for first in range(0, len(order) - BATCH + 1, BATCH):
            if step == total:
                break
            tokens = torch.from_numpy(cut[order[first : first + BATCH]])
            loss = model(input_ids=tokens, labels=tokens).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step % 20 == 0:
                seconds = time.monotonic() - start
                print(f"epoch {epoch} step {step}/{total} loss {float(loss.detach()):.3f} {seconds:.0f} s")


def save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the transformers folder, weights in fp16, and the ONNX file that shares them."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half()
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written for its owner alone
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": CONTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    make_onnx(folder)


def make_onnx(folder: Path) -> None:
    """Export `folder` to its own `model.onnx`, in fp16, without a second copy of the weights."""
    capture.export(folder, folder / "model.onnx", cache=False, dtype="fp16", force=True)
    link(folder / "model.onnx", folder / "model.safetensors")


def main() -> None:
    """Train, measure and save, as the arguments say."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "tiny")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    train_text, heldout_text = split_text(options.text.read_text(encoding="utf-8"))
    tokenizer = train_tokenizer(train_text)
    train_ids = np.array(tokenizer.encode(train_text).ids)
    heldout_ids = np.array(tokenizer.encode(heldout_text).ids)

    model = OPTForCausalLM(OPTConfig(**ARCHITECTURE))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(train_ids):,} tokens")
    train(model, train_ids, options.epochs, options.seed)
    model.half().float()  # what is saved is what is measured
    unigram = unigram_perplexity(train_ids, heldout_ids)
    print(f"held-out perplexity {perplexity(model, heldout_ids):.2f}, unigram {unigram:.2f}")
    save(model, tokenizer, options.output)
    (options.output / "heldout.txt").write_text(heldout_text, encoding="utf-8")


if __name__ == "__main__":
    main()
