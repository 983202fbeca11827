"""`zq2onnx.models.capture`: the graph computes what torch computes, and is named after its modules."""

from __future__ import annotations

import ast
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import zoo
from zq2onnx.models import capture
from zq2onnx.models.naming import NAME_SCOPES

WEIGHTED = {
    "opt": [
        *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
        "fc1",
        "fc2",
    ],
    "bloom": [
        "self_attention.query_key_value",
        "self_attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "llama": [
        *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
        *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
    ],
    "bert": [
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ],
}
LAYERS = {
    "opt": "model.decoder.layers",
    "bloom": "transformer.h",
    "gpt2": "transformer.h",
    "llama": "model.layers",
    "bert": "encoder.layer",
}
each_architecture = pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)


def reference(architecture: str, feeds: dict[str, np.ndarray], dtype: str = "float32") -> np.ndarray:
    """What transformers computes for the zoo's checkpoint."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModel if architecture == "bert" else AutoModelForCausalLM
    model = kind.from_pretrained(zoo.checkpoint(architecture), dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        outputs = model(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    return (outputs.last_hidden_state if architecture == "bert" else outputs.logits).float().numpy()


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert actual.shape == expected.shape
    worst = np.abs(actual - expected).max()
    limit = tolerance * np.abs(expected).max()
    assert worst <= limit, f"worst element is off by {worst:.3g}, allowed {limit:.3g}"


@each_architecture
def test_equals_torch_at_any_batch_and_length(architecture: str) -> None:
    path = zoo.model(architecture)
    for batch, length in ((1, 1), (3, 11), (2, zoo.CONTEXT)):
        feeds = zoo.feeds(path, batch, length, seed=length)
        assert_close(zoo.run(path, feeds)[0], reference(architecture, feeds), 1e-4)


@each_architecture
def test_padding_is_masked(architecture: str) -> None:
    path = zoo.model(architecture)
    feeds = zoo.feeds(path, batch=2, length=9)
    feeds["attention_mask"][1, 5:] = 0
    actual = zoo.run(path, feeds)[0]
    assert_close(actual[0], reference(architecture, feeds)[0], 1e-4)
    assert_close(actual[1, :5], reference(architecture, feeds)[1, :5], 1e-4)
    feeds["input_ids"][1, 5:] = 7
    assert_close(zoo.run(path, feeds)[0][1, :5], actual[1, :5], 1e-6)


@each_architecture
def test_signature(architecture: str) -> None:
    graph = onnx.load(zoo.model(architecture), load_external_data=False).graph
    shapes = {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in (*graph.input, *graph.output)
    }
    ids = (onnx.TensorProto.INT64, ["batch", "sequence"])
    output, width = ("last_hidden_state", 96) if architecture == "bert" else ("logits", zoo.VOCABULARY)
    assert shapes == {
        "input_ids": ids,
        "attention_mask": ids,
        output: (onnx.TensorProto.FLOAT, ["batch", "sequence", width]),
    }


@each_architecture
def test_nodes_and_weights_are_named_after_modules(architecture: str) -> None:
    graph = onnx.load(zoo.model(architecture), load_external_data=False).graph
    names = Counter(node.name for node in graph.node)
    assert max(names.values()) == 1 and "" not in names
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    by_name = {node.name: node for node in graph.node}
    paths = [f"{LAYERS[architecture]}.{n}.{name}" for n in range(2) for name in WEIGHTED[architecture]]
    for path in paths:
        assert by_name[path].op_type in ("MatMul", "Gemm")
        assert by_name[path].input[1] == f"{path}.weight"
        assert f"{path}.weight" in matrices
        scopes = next(prop.value for prop in by_name[path].metadata_props if prop.key == NAME_SCOPES)
        assert ast.literal_eval(scopes)[-2] == path
    if architecture != "bert":
        assert by_name["lm_head"].op_type == "MatMul"


def test_tied_weight_is_stored_once() -> None:
    graph = onnx.load(zoo.model("opt"), load_external_data=False).graph
    tables = [tensor for tensor in graph.initializer if sorted(tensor.dims) == [96, zoo.VOCABULARY]]
    assert len(tables) == 1
    assert {node.op_type for node in graph.node if tables[0].name in node.input} == {"Gather", "Transpose"}


@pytest.mark.parametrize("name", [*zoo.ARCHITECTURES, "opt-fp16", "opt-bf16"])
def test_file_tells_nothing_of_the_machine(name: str) -> None:
    path = zoo.model(name)
    model = onnx.load(path, load_external_data=False)
    keys = {prop.key for node in model.graph.node for prop in node.metadata_props}
    assert keys == {NAME_SCOPES}
    assert not model.metadata_props and not model.graph.metadata_props
    data = path.read_bytes()
    private = (b"site-packages", b"/home", b"modeling_", b"captured", b"Wrapper", b".py")
    local = (tempfile.gettempdir().encode(), sys.prefix.encode(), str(Path.cwd()).encode())
    assert [word for word in (*private, *local) if word in data] == []


@each_architecture
def test_checker_accepts_it(architecture: str) -> None:
    onnx.checker.check_model(zoo.model(architecture), full_check=True)


def test_fp16_follows_torch() -> None:
    path = zoo.model("opt-fp16")
    feeds = zoo.feeds(path, batch=2, length=9)
    logits = zoo.run(path, feeds)[0]
    assert logits.dtype == np.float16
    assert_close(logits.astype(np.float32), reference("opt", feeds), 1e-2)


@pytest.mark.parametrize(
    ("name", "dtype"), [("opt-fp16", onnx.TensorProto.FLOAT16), ("opt-bf16", onnx.TensorProto.BFLOAT16)]
)
def test_dtype_is_that_of_every_float_weight(name: str, dtype: int) -> None:
    model = onnx.load(zoo.model(name), load_external_data=False)
    weights = {t.name: t.data_type for t in model.graph.initializer if t.name.endswith((".weight", ".bias"))}
    assert set(weights.values()) == {dtype}
    assert model.graph.output[0].type.tensor_type.elem_type == dtype


def test_weights_and_companions_lie_beside_the_model() -> None:
    path = zoo.model("opt")
    names = {file.name for file in path.parent.iterdir()}
    companions = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == {"model.onnx", "model.onnx.data", *companions}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        external = {entry.key: entry.value for entry in tensor.external_data}
        assert external.get("location", "model.onnx.data") == "model.onnx.data"
        assert len(tensor.raw_data) <= capture.INLINE_BYTES


def test_published_encoder_is_captured() -> None:
    path = zoo.model("minilm")
    feeds = zoo.feeds(path, batch=2, length=12)
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    with torch.no_grad():
        inputs = {name: torch.from_numpy(value) for name, value in feeds.items()}
        expected = AutoModel.from_pretrained(zoo.minilm()).eval()(**inputs).last_hidden_state.numpy()
    assert_close(zoo.run(path, feeds)[0], expected, 1e-4)
