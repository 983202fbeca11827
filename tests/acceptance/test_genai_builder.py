"""Models that onnxruntime-genai's model builder writes: its fused nodes stay, its MatMuls are rewritten.

pip install --no-deps onnxruntime-genai && pytest tests/acceptance/test_genai_builder.py
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

import zq2onnx
from tests import zoo
from tests.acceptance.matrix import LOGITS_TOLERANCE, NODE_TOLERANCE, SCHEMES, TARGETS, relative_error
from tests.acceptance.oracle import write_reference
from zq2onnx.opset import MICROSOFT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_genai") is None,
    reason="needs onnxruntime-genai: pip install --no-deps onnxruntime-genai",
)

FUSED = {"GroupQueryAttention", "SkipSimplifiedLayerNormalization"}


def build(checkpoint: Path, folder: Path, precision: str) -> Path:
    """Run the builder as its users do."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", precision]
    command += ["-i", str(checkpoint), "-o", str(folder), "-c", str(folder / "cache")]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(zoo.checkpoint("llama"), tmp_path_factory.mktemp("genai") / "llama", "fp32")


def kinds(path: Path) -> Counter[tuple[str, str]]:
    model = onnx.load(path, load_external_data=False)
    return Counter((node.domain, node.op_type) for node in model.graph.node)


def logits(path: Path, ids: np.ndarray, ends: Sequence[int]) -> list[np.ndarray]:
    """What a model answers to tokens in portions, each on the cache of those before.

    Args:
        path: the model.
        ids: int64 `[batch, length]`.
        ends: where each portion ends.
    """
    graph = onnx.load(path, load_external_data=False).graph
    config = json.loads((zoo.checkpoint("llama") / "config.json").read_text(encoding="utf-8"))
    heads, width = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
    past = [value.name for value in graph.input if value.name.startswith("past_key_values")]
    cache: dict[str, np.ndarray] = {name: np.zeros((len(ids), heads, 0, width), np.float32) for name in past}
    answers = []
    for start, end in itertools.pairwise((0, *ends)):
        mask = np.ones((len(ids), end), np.int64)
        outputs = zoo.run(path, {"input_ids": ids[:, start:end], "attention_mask": mask, **cache})
        named = dict(zip((value.name for value in graph.output), outputs, strict=True))
        cache = {name: named[name.replace("past_key_values", "present")] for name in past}
        answers.append(named["logits"])
    return answers


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_prompt_and_step_agree_with_what_is_stored(
    built: Path, tmp_path: Path, scheme: str, target: str
) -> None:
    output = tmp_path / "out" / "model.onnx"
    report = zq2onnx.convert(built, output, scheme=scheme, group_size=32, target=target, check="full")
    assert len(report.quantized) == 10  # five in each layer: Q, K and V are one
    assert report.check is not None
    assert report.check.nodes_checked == 10
    assert report.check.worst_error <= NODE_TOLERANCE
    assert write_reference(built, output, tmp_path / "oracle.onnx") == 10
    ids = np.random.default_rng(0).integers(4, zoo.VOCABULARY, (2, 7))
    answers = (logits(path, ids, (6, 7)) for path in (output, tmp_path / "oracle.onnx"))
    for found, expected in zip(*answers, strict=True):
        assert relative_error(found, expected) <= LOGITS_TOLERANCE["float32"]


def test_fused_nodes_and_opset_stay(built: Path, tmp_path: Path) -> None:
    before = kinds(built)
    zq2onnx.convert(built, tmp_path / "model.onnx", check="none")
    after = kinds(tmp_path / "model.onnx")
    assert {op for domain, op in before if domain == MICROSOFT} >= FUSED
    assert {kind: n for kind, n in after.items() if kind[0] == MICROSOFT} == {
        kind: n for kind, n in before.items() if kind[0] == MICROSOFT
    }
    opsets = [
        {item.domain: item.version for item in onnx.load(path, load_external_data=False).opset_import}
        for path in (built, tmp_path / "model.onnx")
    ]
    assert opsets[1][""] == opsets[0][""]


def test_genai_generates_from_the_converted_model(built: Path, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")

    path = tmp_path / "out" / "model.onnx"
    zq2onnx.convert(built, path, scheme="w4a16", group_size=32, check="none")  # copies genai_config.json
    model = genai.Model(str(path.parent))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=12, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([[5, 9, 33, 70]], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    tokens = np.array(generator.get_sequence(0), np.int64)
    assert len(tokens) == 12
    (answer,) = logits(path, tokens[None, :-1], [11])
    assert answer[0, 3:].argmax(-1).tolist() == tokens[4:].tolist()


def test_a_model_built_in_four_bits_is_left_alone(tmp_path: Path) -> None:
    built = build(zoo.checkpoint("llama"), tmp_path / "int4", "int4")
    report = zq2onnx.convert(built, tmp_path / "out" / "model.onnx", check="none")
    assert report.quantized == []
    reasons = {node.reason for node in report.skipped if node.op == "MatMulNBits"}
    assert reasons == {"already quantized (MatMulNBits)"}
    assert kinds(tmp_path / "out" / "model.onnx") == kinds(built)
