"""`evaluate` agrees within 0.01% with torch and transformers on the same windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import zoo
from zq2onnx.evaluation import evaluate


def torch_perplexity(checkpoint: Path, text: Path, length: int, windows: int) -> float:
    """As the definition says, by transformers alone: its tokenizer, its model, torch's cross entropy."""
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    network = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
    ids = tokenizer(
        text.read_text(encoding="utf-8"), add_special_tokens=False, return_tensors="pt"
    ).input_ids[0]
    count = min(len(ids) // length, windows)
    losses = []
    for start in range(0, count * length, length):
        window = ids[None, start : start + length]
        with torch.no_grad():
            logits = network(window).logits.double()
        losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], window[0, 1:], reduction="sum"))
    return float(torch.exp(sum(losses) / (count * (length - 1))))


@pytest.mark.parametrize("architecture", ["opt", "bloom", "gpt2", "llama"])
def test_perplexity_agrees_with_transformers(tmp_path: Path, architecture: str) -> None:
    texts = [tmp_path / "source.txt", tmp_path / "prose.txt"]
    texts[0].write_text(Path(zoo.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    texts[1].write_text("Plain words – with a dash, “quotes” and numbers: 3.14. " * 30, encoding="utf-8")
    path = zoo.model(architecture)
    result = evaluate([path], texts, path.parent, length=48, windows=4)
    checkpoint = zoo.checkpoint(architecture)
    expected = [torch_perplexity(checkpoint, text, 48, 4) for text in texts]
    np.testing.assert_allclose(list(result.models[0].perplexity.values()), expected, rtol=1e-4)
    assert result.models[0].mean == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_trained_model_agrees_with_transformers(
    shared_models: Path, shared_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    from zq2onnx.models.capture import export

    checkpoint = shared_models / "opt-17m"
    texts = [shared_data / "news.txt", shared_data / "web.txt"]
    export(checkpoint, tmp_path / "model.onnx")
    result = evaluate([tmp_path / "model.onnx"], texts, checkpoint, windows=2)
    assert result.length == 256
    for text in texts:
        expected = torch_perplexity(checkpoint, text, 256, 2)
        assert result.models[0].perplexity[str(text)] == pytest.approx(expected, rel=1e-4)
