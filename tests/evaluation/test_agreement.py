"""`evaluate` agrees within 0.01% with torch and transformers on the same windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import zoo
from zq2onnx.evaluation import evaluate


def torch_perplexity(
    checkpoint: Path, text: Path, length: int, windows: int, stride: int | None = None
) -> float:
    """By transformers alone: its tokenizer, its model, its loss, as its page on perplexity has them.

    https://huggingface.co/docs/transformers/perplexity, less the last window where it is shorter.
    """
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    network = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
    ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False, return_tensors="pt").input_ids
    nll_sum, n_tokens, prev_end_loc = 0.0, 0, 0
    for begin_loc in list(range(0, ids.size(1) - length + 1, stride or length))[:windows]:
        end_loc = begin_loc + length
        trg_len = end_loc - prev_end_loc
        input_ids = ids[:, begin_loc:end_loc]
        target_ids = input_ids.clone()
        target_ids[:, :-trg_len] = -100
        with torch.no_grad():
            loss = network(input_ids, labels=target_ids).loss.double().item()
        num_loss_tokens = int((target_ids[:, 1:] != -100).sum())
        nll_sum += loss * num_loss_tokens
        n_tokens += num_loss_tokens
        prev_end_loc = end_loc
    return float(np.exp(nll_sum / n_tokens))


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "source.txt", tmp_path / "prose.txt"]
    found[0].write_text(Path(zoo.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    found[1].write_text("Plain words – with a dash, “quotes” and numbers: 3.14. " * 30, encoding="utf-8")
    return found


@pytest.mark.parametrize("architecture", ["opt", "bloom", "gpt2", "llama"])
def test_perplexity_agrees_with_transformers(texts: list[Path], architecture: str) -> None:
    path = zoo.model(architecture)
    result = evaluate([path], texts, path.parent, length=48, windows=4)
    checkpoint = zoo.checkpoint(architecture)
    expected = [torch_perplexity(checkpoint, text, 48, 4) for text in texts]
    np.testing.assert_allclose(list(result.models[0].perplexity.values()), expected, rtol=1e-4)
    assert result.models[0].mean == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("stride", [1, 17, 47, 48])
def test_windows_that_overlap_agree_with_transformers(texts: list[Path], stride: int) -> None:
    path = zoo.model("opt")
    result = evaluate([path], texts[:1], path.parent, length=48, windows=5, stride=stride)
    expected = torch_perplexity(zoo.checkpoint("opt"), texts[0], 48, 5, stride)
    assert result.models[0].mean == pytest.approx(expected, rel=1e-4)
    assert result.positions == 47 + 4 * min(stride, 47)
    apart = torch_perplexity(zoo.checkpoint("opt"), texts[0], 48, 5)
    assert (result.models[0].mean == pytest.approx(apart, rel=1e-4)) == (stride == 48)


@pytest.mark.parametrize("architecture", ["opt", "llama"])
def test_a_model_with_a_cache_agrees_with_transformers(texts: list[Path], architecture: str) -> None:
    path = zoo.model(f"{architecture}-cache")
    result = evaluate([path], texts, path.parent, length=48, windows=3)
    for text in texts:
        expected = torch_perplexity(zoo.checkpoint(architecture), text, 48, 3)
        assert result.models[0].perplexity[str(text)] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("suffix", "kl"), [("", 1e-9), ("-fp16", 1e-4), ("-bf16", 1e-2)])
def test_a_model_without_a_cache_is_compared_with_one_that_has_it(
    texts: list[Path], suffix: str, kl: float
) -> None:
    """A cache of a narrow float is fed in its own type, or in that of its float32 copy."""
    path = zoo.model("opt")
    result = evaluate([path, zoo.model(f"opt-cache{suffix}")], texts, path.parent, length=48, windows=2)
    assert abs(result.models[1].kl) < kl
    if not suffix:
        assert result.models[1].mean == pytest.approx(result.models[0].mean, rel=1e-4)


@pytest.mark.parametrize("stride", [None, 64])
def test_the_bundled_model_agrees_with_transformers(tiny_model: Path, stride: int | None) -> None:
    text = tiny_model / "heldout.txt"
    result = evaluate([tiny_model / "model.onnx"], [text], tiny_model, length=128, windows=4, stride=stride)
    expected = torch_perplexity(tiny_model, text, 128, 4, stride)
    assert result.models[0].mean == pytest.approx(expected, rel=1e-4)


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
