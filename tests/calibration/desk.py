"""A language model of one lookup, its tokenizer, a text, and what is loaded of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from tests.calibration.walking import from_text
from tests.evaluation.language import write_text, write_tokenizer
from zq2onnx.calibration import Samples, load_samples

WORDS = 50
TABLE = np.zeros((WORDS, 4), np.float32)
IDS = "int64[b, s] input_ids"


def language_model(inputs: str = IDS, output: str = "e = Gather(table, input_ids)") -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => (float[b, s, 4] e)
        <float[{WORDS}, 4] table> {{ {output} }}"""
    return from_text(text, table=TABLE)


class Desk:
    """A folder with a model's tokenizer and texts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "model.onnx"
        self.tokenizer = write_tokenizer(folder / "tokenizer.json", WORDS)
        self.text = write_text(folder / "a.txt", list(range(WORDS)))

    def config(self, **values: Any) -> None:
        (self.folder / "config.json").write_text(json.dumps(values))

    def archive(self, **arrays: Any) -> Path:
        np.savez(self.folder / "a.npz", **arrays)
        return self.folder / "a.npz"

    def load(self, model: ir.Model | None = None, calib: Path | None = None, **changes: Any) -> Samples:
        given = {"tokenizer": self.tokenizer, "samples": 128, "length": 4, **changes}
        return load_samples(model or language_model(), self.path, calib or self.text, **given)


def fed(samples: Samples, name: str = "input_ids") -> np.ndarray:
    return np.concatenate([batch[name] for batch in samples.batches])
