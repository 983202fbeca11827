"""A text makes every input of a graph, an empty cache whatever its axes are."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from zq2onnx.errors import UserError
from zq2onnx.feeds import feed_text, text_inputs

CONFIG = {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 30}


def model(declared: str) -> ir.Model:
    """A graph whose inputs are `float[b, 2, p, 4] past_0, ..`."""
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (int64[b, s] input_ids, {declared}) => (int64[b, s] y) {{ y = Identity (input_ids) }}"""
    )


def cache(declared: str, folder: Path, batch: int = 1) -> np.ndarray:
    inputs = text_inputs(model(declared), folder / "model.onnx", "do something else")
    return feed_text(inputs, np.zeros((batch, 4), np.int32))[inputs[-1].name]


@pytest.mark.parametrize(
    ("declared", "shape"),
    [
        ("float[b, 2, p, 4] past_key_values_0_key", (3, 2, 0, 4)),
        ("float[b, 2, past_length, 4] past_key_0", (3, 2, 0, 4)),
        ("float[b, 2, past_length, 4] cache_0_key", (3, 2, 0, 4)),
        ("float[b, past_sequence, 2, 4] cache_k_0", (3, 0, 2, 4)),
        ("float[b, 2, 4, past_sequence] past_key_0", (3, 2, 4, 0)),
        ("float[2, b, 7, p, 4] past_0", (2, 3, 7, 0, 4)),
        ("float[1, 2, 0, 4] past_0", (3, 2, 0, 4)),
    ],
)
def test_an_empty_cache_has_the_shape_that_the_graph_tells(
    tmp_path: Path, declared: str, shape: tuple[int, ...]
) -> None:
    found = cache(declared, tmp_path, batch=3)
    assert found.shape == shape
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("declared", "shape"),
    [
        ("float[b, heads, p, size] past_0", (1, 2, 0, 5)),
        ("float[b, heads, past_sequence, 7] past_0", (1, 2, 0, 7)),
        ("float[b, past_sequence, heads, size] past_0", (1, 0, 2, 5)),
        ("float[b, heads, past_sequence, kv_cache_dim] past_0", (1, 2, 0, 5)),
    ],
)
def test_what_the_graph_does_not_tell_is_in_the_config(
    tmp_path: Path, declared: str, shape: tuple[int, ...]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert cache(declared, tmp_path).shape == shape


@pytest.mark.parametrize(
    ("kind", "dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16), ("int8", np.int8)]
)
def test_a_cache_is_of_the_graphs_type(tmp_path: Path, kind: str, dtype: type) -> None:
    assert cache(f"{kind}[b, 2, p, 4] past_0", tmp_path).dtype == dtype


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ("float[b, h, p, 8] past_0", "heads that neither it nor config.json tells"),
        ("float[b, 2, 64, 8] past_0", "with a past of 64"),
        ("float[x, b, 2, p, 8] past_0", "heads that neither"),
        ("float[b, 2] past_0", r"past_0 of shape \[b,2\]"),
        ("int64[s] cache_position", r"cache_position of shape \[s\]"),
        ("float[b, 3, n, n] pixel_values", "pixel_values of shape"),
        ("int64[b, 1, s, s] attention_mask", "attention_mask of shape"),
    ],
)
def test_a_shape_that_is_not_told_is_one_line(tmp_path: Path, declared: str, found: str) -> None:
    with pytest.raises(UserError, match=rf"model.onnx: input .*{found}.*; do something else") as error:
        cache(declared, tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_not_attended_to_is_said_in_the_mask(tmp_path: Path) -> None:
    inputs = text_inputs(
        model("int32[b, s] attention_mask, int64[b, s] position_ids"), tmp_path / "m.onnx", ""
    )
    ids = np.arange(6, dtype=np.int32).reshape(2, 3)
    whole = feed_text(inputs, ids)
    np.testing.assert_array_equal(whole["attention_mask"], np.ones((2, 3)))
    np.testing.assert_array_equal(whole["position_ids"], [[0, 1, 2]] * 2)
    assert [whole[name].dtype for name in ("input_ids", "attention_mask")] == [np.int64, np.int32]
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(feed_text(inputs, ids, mask)["attention_mask"], mask)
