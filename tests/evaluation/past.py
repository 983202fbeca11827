"""Exports of causal models with a KV cache among inputs and outputs, made once per machine."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

import pytest

from tests import zoo


def cached_model(architecture: str, dtype: str = "float32") -> Path:
    """The zoo's model of that name with `past_key_values.N.key|value` and `present.N.key|value`."""
    pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    key = hashlib.sha256(inspect.getsource(_export).encode()).hexdigest()[:8]
    name = f"kv-{architecture}-{dtype}-{key}"
    return zoo._cached(name, lambda folder: _export(architecture, dtype, folder)) / "model.onnx"


def _export(architecture: str, dtype: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    from zq2onnx.models.checkpoint import silence
    from zq2onnx.storage.companions import copy_companions

    source, kind = zoo.checkpoint(architecture), getattr(torch, dtype)

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = AutoModelForCausalLM.from_pretrained(
                source, attn_implementation="eager", dtype=kind
            )

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            cache = DynamicCache()
            for i in range(len(past) // 2):
                cache.update(past[2 * i], past[2 * i + 1], i)
            outputs = self.network(
                input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True
            )
            return (outputs.logits, *(t for layer in cache.layers for t in (layer.keys, layer.values)))

    copy_companions(source, folder, force=False)
    with silence():
        network = Wrapper().eval()
        config = network.network.config
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        sizes = (2, heads, 3, config.hidden_size // config.num_attention_heads)
        parts = [f"{i}.{part}" for i in range(config.num_hidden_layers) for part in ("key", "value")]
        ids = torch.zeros(2, 5, dtype=torch.int64)
        free = torch.export.Dim.DYNAMIC
        torch.onnx.export(
            network,
            (ids, torch.ones(2, 8, dtype=torch.int64), *(torch.randn(sizes).to(kind) for _ in parts)),
            folder / "model.onnx",
            dynamo=True,
            input_names=["input_ids", "attention_mask", *(f"past_key_values.{part}" for part in parts)],
            output_names=["logits", *(f"present.{part}" for part in parts)],
            dynamic_shapes=({0: free, 1: free}, {0: free, 1: free}, tuple({0: free, 2: free} for _ in parts)),
            verbose=False,
        )
