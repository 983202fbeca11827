"""Sentence embeddings of an encoder, and how near a converted model's are to the float one's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

LONGEST = 128
"""Tokens of a sentence that are read, the two special ones included."""

BATCH = 20


def read_sentences(text: Path, count: int) -> list[str]:
    """The first sentences of a WikiText file: its paragraphs cut at full stops, of five words and more.

    Raises:
        ValueError: there are fewer.
    """
    paragraphs = (line.strip() for line in text.read_text(encoding="utf-8").splitlines())
    found = [
        sentence.strip()
        for paragraph in paragraphs
        if not paragraph.startswith("=")
        for sentence in paragraph.split(" . ")
        if len(sentence.split()) >= 5
    ]
    if len(found) < count:
        raise ValueError(f"{text} holds {len(found)} sentences, not {count}")
    return found[:count]


def embed(model: Path, tokenizer: Path, sentences: Sequence[str]) -> NDArray[np.float64]:
    """Mean of `last_hidden_state` over the attention mask, normalised: float64 `[sentences, width]`."""
    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.enable_truncation(LONGEST)
    encoder.enable_padding()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.concatenate([_embed_batch(session, feeds) for feeds in _batches(encoder, sentences)])


def _batches(encoder: Tokenizer, sentences: Sequence[str]) -> Iterator[dict[str, NDArray[np.int64]]]:
    for start in range(0, len(sentences), BATCH):
        encoded = encoder.encode_batch(list(sentences[start : start + BATCH]))
        yield {
            "input_ids": np.array([item.ids for item in encoded]),
            "attention_mask": np.array([item.attention_mask for item in encoded]),
        }


def _embed_batch(session: Any, feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float64]:
    hidden = session.run(["last_hidden_state"], feeds)[0].astype(np.float64)
    mask = feeds["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def similarity(embeddings: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Mean cosine of the angles between rows of unit length."""
    return float((embeddings * others).sum(-1).mean())
