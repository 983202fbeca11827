"""Runs a model with a KV cache step by step, as a server does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import zoo


def padded(lengths: list[int], longest: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random ids and their mask `[len(lengths), longest]`, padded on the left."""
    ids = np.random.default_rng(seed).integers(4, zoo.VOCABULARY, (len(lengths), longest))
    mask = np.array([[0] * (longest - length) + [1] * length for length in lengths])
    return ids, mask


class Decoder:
    """Feeds a cached model what is new, and keeps what it gives."""

    def __init__(self, path: Path) -> None:
        ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.outputs = [value.name for value in self.session.get_outputs()]
        empty = zoo.feeds(path, batch=1, length=0)
        self.past = {name: value for name, value in empty.items() if name.startswith("past")}

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Logits `[batch, new, vocabulary]` of the new `ids`, where `mask` is that of all tokens."""
        batch, new = ids.shape
        past = {
            name: value if len(value) == batch else np.repeat(value, batch, axis=0)
            for name, value in self.past.items()
        }
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -new:]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
        wanted = {value.name for value in self.session.get_inputs()}
        values = self.session.run(None, {name: feeds[name] for name in wanted})
        present = dict(zip(self.outputs, values, strict=True))
        logits = present.pop("logits")
        self.past = {name.replace("present", "past_key_values"): value for name, value in present.items()}
        return np.asarray(logits)
