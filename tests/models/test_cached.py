"""`capture.export` with a KV cache: text comes out as transformers computes it, padded or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import zoo
from tests.models.decoding import Decoder, padded
from zq2onnx.errors import UserError
from zq2onnx.models import capture

ARCHITECTURES = [name.removesuffix("-cache") for name in zoo.CACHED]
POSITIONED = {"gpt2", "llama"}
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def torch_logits(architecture: str, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What transformers computes of whole texts, with positions counted from the mask."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(zoo.checkpoint(architecture)).eval()
    feeds = {"input_ids": ids, "attention_mask": mask}
    if architecture in POSITIONED:
        feeds["position_ids"] = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    with torch.no_grad():
        logits = model(**{name: torch.from_numpy(value) for name, value in feeds.items()}).logits
    return np.asarray(logits.float().numpy())


@each_architecture
def test_signature(architecture: str) -> None:
    graph = onnx.load(zoo.model(f"{architecture}-cache"), load_external_data=False).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    parts = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert list(shapes) == [
        "input_ids",
        "attention_mask",
        *(["position_ids"] if architecture in POSITIONED else []),
        *(f"past_key_values.{part}" for part in parts),
        "logits",
        *(f"present.{part}" for part in parts),
    ]
    assert shapes["input_ids"] == shapes.get("position_ids", shapes["input_ids"]) == ["batch", "sequence"]
    assert shapes["attention_mask"] == ["batch", "past + sequence"]
    assert shapes["logits"] == ["batch", "sequence", zoo.VOCABULARY]
    for part in parts:
        batch, heads, past, width = shapes[f"past_key_values.{part}"]
        assert (batch, past) == ("batch", "past") and isinstance(heads, int) and isinstance(width, int)
        assert shapes[f"present.{part}"] == ["batch", heads, "past + sequence", width]


@each_architecture
def test_steps_equal_torch_on_padded_texts(architecture: str) -> None:
    """A prompt after nothing, then several tokens, then one: each as in the whole text."""
    ids, mask = padded([11, 4, 7], 11)
    expected = torch_logits(architecture, ids, mask)
    decoder = Decoder(zoo.model(f"{architecture}-cache"))
    for start, end in ((0, 7), (7, 10), (10, 11)):
        logits = decoder(ids[:, start:end], mask[:, :end])
        shown = mask[:, start:end] == 1
        worst = np.abs(logits - expected[:, start:end])[shown].max()
        assert worst <= 1e-4 * np.abs(expected).max(), f"tokens {start} to {end} are off by {worst:.3g}"


@each_architecture
def test_padded_texts_continue_as_if_alone(architecture: str) -> None:
    ids, mask = padded([9, 3, 6], 9)
    path = zoo.model(f"{architecture}-cache")

    def continuation(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        decoder, made = Decoder(path), []
        for _ in range(8):
            ids = decoder(ids, mask)[:, -1:].argmax(axis=-1)
            mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
            made.append(ids)
        return np.concatenate(made, axis=1)

    together = continuation(ids, mask)
    for row, length in enumerate((9, 3, 6)):
        alone = continuation(ids[row : row + 1, -length:], mask[row : row + 1, -length:])
        np.testing.assert_array_equal(together[row], alone[0])


def test_a_tied_weight_is_stored_once() -> None:
    graph = onnx.load(zoo.model("opt-cache"), load_external_data=False).graph
    tables = [tensor for tensor in graph.initializer if sorted(tensor.dims) == [96, zoo.VOCABULARY]]
    assert len(tables) == 1


def test_fp16_takes_two_bytes_a_parameter() -> None:
    """Of a tied and an untied model; the graph beside the weights is a few hundred kB of any model."""
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    for architecture in ("opt", "llama"):
        model = AutoModelForCausalLM.from_pretrained(zoo.checkpoint(architecture))
        count = sum(parameter.numel() for parameter in model.parameters())
        graph = onnx.load(zoo.model(f"{architecture}-cache-fp16"), load_external_data=False).graph
        kept = sum(
            onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * int(np.prod(tensor.dims))
            for tensor in graph.initializer
        )
        assert kept == pytest.approx(2 * count, rel=0.01)


def test_an_encoder_has_no_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--cache: BertModel is no causal language model"):
        capture.export(zoo.checkpoint("bert"), tmp_path / "model.onnx", cache=True)
    assert not list(tmp_path.iterdir())
