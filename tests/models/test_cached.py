"""`capture.export` with a KV cache: text comes out as transformers computes it, padded or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import zoo
from zq2onnx.errors import UserError
from zq2onnx.models import capture

ARCHITECTURES = [name.removesuffix("-cache") for name in zoo.CACHED]
POSITIONED = {"gpt2", "llama"}
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


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


def test_an_encoder_has_no_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--cache: BertModel is no causal language model"):
        capture.export(zoo.checkpoint("bert"), tmp_path / "model.onnx", cache=True)
    assert not list(tmp_path.iterdir())
