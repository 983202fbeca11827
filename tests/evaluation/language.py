"""Tiny language models, tokenizers and texts of known probabilities, made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

Array = np.ndarray[Any, Any]


def write_bigram(
    path: Path,
    logits: Array,
    *,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
    shape: tuple[int | str, ...] = ("batch", "length"),
    output: str = "logits",
    width: int | str | None = "vocabulary",
) -> Path:
    """A model whose logits after token i are row i of a table, whatever came before."""
    element = helper.np_dtype_to_tensor_dtype(logits.dtype)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], [output], name="embed")],
        "bigram",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in inputs],
        [helper.make_tensor_value_info(output, element, [*shape, width])],
        [numpy_helper.from_array(logits, "table")],
    )
    return save(path, graph)


def save(path: Path, graph: onnx.GraphProto) -> Path:
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, path)
    return path


def write_tokenizer(path: Path, words: int) -> Path:
    """A tokenizer that knows the words w0, w1, ...: word i is token i."""
    vocabulary = {f"w{i}": i for i in range(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))
    return path


def write_text(path: Path, tokens: Array | list[int]) -> Path:
    path.write_text(" ".join(f"w{token}" for token in tokens), encoding="utf-8")
    return path


def log_softmax(logits: Array) -> Array:
    exact = logits.astype(np.longdouble)
    return exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))
