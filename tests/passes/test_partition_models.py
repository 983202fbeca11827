"""Exported models are cut into the halves of their layers, in whatever order their nodes are."""

from __future__ import annotations

import hashlib
import inspect
import random
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests import zoo
from tests.passes.piecewise import Feeds, check_whole, names
from zq2onnx.passes.normalize import NormalizePass
from zq2onnx.passes.partition import blocks, partition
from zq2onnx.passes.trace_hidden import trace_flow
from zq2onnx.passes.widen import WidenToFloat32Pass

# Products with a weight in each piece, of models of two layers.
OPT = [4, 2, 4, 2, 1]
TWO = [2, 2, 2, 2, 1]
LLAMA = [4, 3, 4, 3, 1]
EXPORTED = {
    "opt": OPT,
    "opt-torchscript-13": OPT,
    "opt-torchscript-17": OPT,
    "opt-fp16": OPT,
    "opt-bf16": OPT,
    "bloom": TWO,
    "gpt2": TWO,
    "llama": LLAMA,
    "bert": [4, 2, 4, 2],
    "minilm": [4, 2] * 6,
}
CACHED = {
    "opt-cache": OPT,
    "bloom-cache": TWO,
    "gpt2-cache": TWO,
    "llama-cache": LLAMA,
    "opt-torchscript": OPT,
    "bloom-torchscript": TWO,
    "gpt2-torchscript": TWO,
    "llama-torchscript": LLAMA,
}


def load(path: Path) -> ir.Model:
    model = ir.load(path)
    WidenToFloat32Pass((ir.DataType.BFLOAT16,))(model)  # which ONNX Runtime cannot run
    NormalizePass()(model)
    return model


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_model_is_cut_into_halves_of_layers(name: str) -> None:
    model = load(zoo.model(name))
    pieces = partition(model)
    assert [piece.products for piece in pieces] == EXPORTED[name]
    layers = 6 if name == "minilm" else 2
    assert [piece.attention for piece in pieces[: 2 * layers]] == [True, False] * layers
    head = [] if name in ("bert", "minilm") else [(pieces[-1],)]
    assert blocks(pieces) == [(pieces[2 * i], pieces[2 * i + 1]) for i in range(layers)] + head
    assert not any(piece.attention for (piece,) in head)


@pytest.mark.parametrize("name", EXPORTED)
def test_the_pieces_of_an_exported_model_compute_what_it_computes(name: str) -> None:
    path = zoo.model(name)
    check_whole(load(path), zoo.feeds(path))


def build_cached(architecture: str, folder: Path) -> None:
    """Export a causal model that takes past keys and values and gives the new ones, with the old exporter."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    from zq2onnx.models.checkpoint import silence

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            source = zoo.checkpoint(architecture)
            self.network = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")

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

    with silence():
        network = Wrapper().eval()
        config = network.network.config
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        sizes = (2, heads, 3, config.hidden_size // config.num_attention_heads)
        parts = [f"{i}.{part}" for i in range(config.num_hidden_layers) for part in ("key", "value")]
        names = ["input_ids", "attention_mask", *(f"past_key_values.{part}" for part in parts)]
        outputs = ["logits", *(f"present.{part}" for part in parts)]
        ids = torch.zeros(2, 5, dtype=torch.int64)
        example = (ids, torch.ones(2, 8, dtype=torch.int64), *(torch.randn(sizes) for _ in parts))
        path = folder / "model.onnx"
        text, cache = {0: "batch", 1: "tokens"}, {0: "batch", 2: "keys"}
        axes = {name: text if name in ("input_ids", "logits") else cache for name in [*names, *outputs]}
        axes["attention_mask"] = {0: "batch", 1: "all"}
        torch.onnx.export(
            network,
            example,
            path,
            dynamo=False,
            opset_version=17,
            input_names=names,
            output_names=outputs,
            dynamic_axes=axes,
        )


def cached_model(name: str) -> Path:
    if name in zoo.NAMES:
        return zoo.model(name)
    pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    architecture = name.removesuffix("-torchscript")
    key = hashlib.sha256(inspect.getsource(build_cached).encode()).hexdigest()[:8]
    folder = zoo._cached(f"past-{name}-{key}", lambda folder: build_cached(architecture, folder))
    return folder / "model.onnx"


def cached_feeds(model: ir.Model) -> Feeds:
    """Two texts of 4 tokens behind 3 that are in the cache; the second text's first two are padding."""
    sizes = {"input_ids": (2, 4), "attention_mask": (2, 7)}
    rng = np.random.default_rng(0)
    feeds: Feeds = {}
    for value in model.graph.inputs:
        assert value.name is not None and value.shape is not None
        if value.name == "input_ids":
            feeds[value.name] = rng.integers(4, zoo.VOCABULARY, sizes["input_ids"])
        elif value.name == "attention_mask":
            feeds[value.name] = np.array([[1] * 7, [0] * 2 + [1] * 5])
        elif value.name == "position_ids":
            feeds[value.name] = np.array([[3, 4, 5, 6], [1, 2, 3, 4]])
        else:
            heads, width = (int(value.shape[axis]) for axis in (1, 3))  # type: ignore[arg-type]
            feeds[value.name] = rng.standard_normal((2, heads, 3, width)).astype(np.float32)
    return feeds


@pytest.mark.parametrize("name", CACHED)
def test_a_cache_of_keys_and_values_changes_nothing(name: str) -> None:
    model = load(cached_model(name))
    pieces = partition(model)
    assert [piece.products for piece in pieces] == CACHED[name]
    assert [len(block) for block in blocks(pieces)] == [2, 2, 1]
    for layer in range(2):
        present = {f"present.{layer}.key", f"present.{layer}.value"}
        assert present <= names(pieces[2 * layer].outputs)
        assert any(name and name.startswith("past") for name in names(pieces[2 * layer].inputs))
    check_whole(model, cached_feeds(model))


def reordered(path: Path, seed: int) -> ir.Model:
    """The model with its nodes in another order: one of those whose inputs are there, at random."""
    model = load(path)
    rng = random.Random(seed)
    left = list(model.graph)
    order: list[ir.Node] = []
    done: set[ir.Node] = set()
    reads = trace_flow(model).reads
    while left:
        ready = [n for n in left if all(v.producer() is None or v.producer() in done for v in reads[n])]
        order.append(rng.choice(ready))
        done.add(order[-1])
        left.remove(order[-1])
    for node in order:
        model.graph.remove(node)
        model.graph.append(node)
    return model


@pytest.mark.parametrize("name", ["opt", "llama", "opt-torchscript-17"])
def test_the_order_of_the_nodes_is_of_no_concern(name: str) -> None:
    path = zoo.model(name)
    expected = [names(piece.nodes) for piece in partition(load(path))]
    model = load(path)
    for seed in range(4):
        model = reordered(path, seed)
        assert [names(piece.nodes) for piece in partition(model)] == expected
    check_whole(model, zoo.feeds(path))


def test_no_name_is_read() -> None:
    path = zoo.model("llama")
    model = load(path)
    expected = [piece.products for piece in partition(model)]
    values = [v for node in model.graph for v in node.outputs] + list(model.graph.inputs)
    values += list(model.graph.initializers.values())
    for number, value in enumerate(values):
        value.name = f"v{number}"
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
        node.metadata_props.clear()
    assert [piece.products for piece in partition(model)] == expected


def test_no_weight_is_read(tmp_path: Path) -> None:
    copy = tmp_path / "model.onnx"
    copy.write_bytes(zoo.model("opt").read_bytes())  # without its data file
    model = ir.load(copy)
    assert isinstance(
        model.graph.initializers["model.decoder.layers.0.fc1.weight"].const_value, ir.ExternalTensor
    )
    assert [piece.products for piece in partition(model)] == OPT
