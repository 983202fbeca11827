"""Architectures that are known to be captured with a cache, beside the zoo's; one layer each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import zoo
from tests.models.decoding import Decoder, padded
from zq2onnx.errors import UserError
from zq2onnx.exporting import export

pytest.importorskip("torch", reason="needs torch")
hf = pytest.importorskip("transformers", reason="needs transformers")

_SIZES: dict[str, Any] = {
    "vocab_size": zoo.VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": zoo.CONTEXT,
    **{"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
}
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2}
CONFIGURATIONS = {
    "gpt-neox": hf.GPTNeoXConfig(**_SIZES),
    "mistral": hf.MistralConfig(**_GROUPED, sliding_window=4),
    "qwen2": hf.Qwen2Config(**_GROUPED),
    "qwen3": hf.Qwen3Config(**_GROUPED, head_dim=16),
    "gemma": hf.GemmaConfig(**_GROUPED, head_dim=16),
    "phi": hf.PhiConfig(**_SIZES),
}


def made(config: Any, folder: Path) -> Any:
    """A model of random weights, saved in `folder`."""
    import torch

    from zq2onnx.models.checkpoint import silence

    with silence(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=1.5 / np.sqrt(parameter.shape[-1]))
        model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_padded_texts_are_continued_as_torch_would(name: str, tmp_path: Path) -> None:
    """Longer than Mistral's window of 4, in steps; positions count from the first token that is shown."""
    import torch

    model = made(CONFIGURATIONS[name], tmp_path / "hf")
    written = export(tmp_path / "hf", tmp_path / "model.onnx")
    assert written.cached and written.difference is not None
    ids, mask = padded([12, 7], 12)
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        logits = model(**{key: torch.from_numpy(value) for key, value in feeds.items()}).logits.numpy()
    decoder = Decoder(tmp_path / "model.onnx")
    for start, end in ((0, 8), (8, 11), (11, 12)):
        worst = np.abs(decoder(ids[:, start:end], mask[:, :end]) - logits[:, start:end])[
            mask[:, start:end] == 1
        ].max()
        assert worst <= 1e-4 * np.abs(logits).max(), f"tokens {start} to {end} are off by {worst:.3g}"


def test_states_are_no_cache(tmp_path: Path) -> None:
    made(hf.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1), tmp_path / "hf")
    with pytest.raises(UserError, match=r"MambaForCausalLM remembers .*Layer; required: keys and values"):
        export(tmp_path / "hf", tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
