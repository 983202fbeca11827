"""The whole chain of passes: what is legal after each, and that qdq is plain ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from tests import zoo
from tests.passes.hand_made import proto, rand, rounded
from tests.passes.test_odd_graphs import convert
from zq2onnx.conversion.choices import Choices
from zq2onnx.conversion.loading import load
from zq2onnx.conversion.options import resolve
from zq2onnx.passes.lower_embeddings import LowerEmbeddingsPass
from zq2onnx.passes.lower_portable import LowerToPortablePass
from zq2onnx.passes.merge_siblings import MergeSiblingsPass
from zq2onnx.passes.normalize import NormalizePass
from zq2onnx.passes.select_nodes import select_nodes
from zq2onnx.passes.spec import Stage, violations
from zq2onnx.pipeline import float_passes, passes_for, raise_opset
from zq2onnx.scheme import PerBlock, Scheme

MODELS = (*zoo.ARCHITECTURES, "opt-fp16", "opt-bf16", "opt-torchscript-13", "opt-torchscript-17")


@pytest.mark.parametrize("target", ["portable", "qdq"])
@pytest.mark.parametrize("name", MODELS)
def test_every_step_is_legal_and_done_once(name: str, target: str) -> None:
    """With branch, embeddings, lm_head and, in qdq, the narrow types of opset 25."""
    include = () if name == "bert" else ("lm_head",)
    options = resolve(Choices(scheme="w2a16", target=target, embedding_bits=4, include=include), None)
    model = load(zoo.model(name)).model
    for prepare in (NormalizePass(), raise_opset(options)):
        prepare(model)
    assert list(violations(model, Stage.NORMAL)) == []
    selection = select_nodes(model, options.policy)
    stage = Stage.QDQ
    for step in passes_for(options, selection, model):
        step(model)
        if isinstance(step, LowerToPortablePass):
            continue  # embeddings are lowered next
        stage = Stage.PORTABLE if isinstance(step, LowerEmbeddingsPass) else stage
        assert list(violations(model, stage)) == [], step
        assert not step(model).modified, step
    assert {report.name for report in selection.reports if not report.reason} == set(selection.weights)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["opt", "llama", "bloom"])
def test_merged_and_narrow_models_are_legal_too(name: str, dtype: str) -> None:
    options = resolve(Choices(merge=True, dtype=dtype, bias="outside"), None)
    model = load(zoo.model(name)).model
    for prepare in (NormalizePass(), raise_opset(options)):
        prepare(model)
    for step in (MergeSiblingsPass(select_nodes(model, options.policy)), *float_passes(options)):
        step(model)
        assert list(violations(model, Stage.NORMAL)) == [], step
        assert not step(model).modified, step
    selection = select_nodes(model, options.policy)
    for step in passes_for(options, selection, model):
        step(model)
    assert list(violations(model, Stage.PORTABLE)) == []
    expected = ir.DataType.FLOAT16 if dtype == "fp16" else ir.DataType.BFLOAT16
    assert {weight.view.dtype for weight in selection.weights.values()} == {expected}


SMALL = (
    "g (int64[2, 5] input_ids) => (float[2, 5, 12] y)"
    " { h = Gather(table, input_ids) a = MatMul(h, w1) b = Add(a, bias) r = Relu(b) y = MatMul(r, w2) }"
)


@pytest.mark.parametrize("group_size", [16, "row"])
@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w3a16", "w2a16"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_qdq_is_plain_onnx_that_the_reference_runs(
    scheme: str, group_size: int | str, symmetric: bool, tmp_path: Path
) -> None:
    """With branch, bias and embedding; K and the table's width divide by no block, N of one by 4."""
    weights = {
        "table": rand(30, 23),
        "w1": rand(23, 20, seed=1),
        "w2": rand(20, 12, seed=2),
        "bias": rand(20),
    }
    options = {"scheme": scheme, "group_size": group_size, "symmetric": symmetric}
    bits = 8 if scheme == "w8a16" else 4
    path, report = convert(proto(SMALL, weights), tmp_path, target="qdq", embedding_bits=bits, **options)
    assert len(report.quantized) == 3
    onnx.checker.check_model(str(path), full_check=True)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    feeds = {"input_ids": np.arange(10).reshape(2, 5)}
    (expected,) = zoo.run(path, feeds)
    (got,) = onnx.reference.ReferenceEvaluator(str(path)).run(None, feeds)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("target", ["portable", "qdq"])
def test_an_lm_head_tied_to_an_embedding(target: str, tmp_path: Path) -> None:
    """The table stays float, or is rounded along its rows as the lm_head is: both at once too."""
    text = (
        "g (int64[2, 5] input_ids) => (float[2, 5, 30] logits)"
        " { h = Gather(w, input_ids) r = Relu(h) t = Transpose(w) logits = MatMul(r, t) }"
    )
    model = proto(text, {"w": rand(30, 40)})
    _, plain = convert(model, tmp_path, target=target)
    assert plain.quantized == [] and "lm_head is left float" in plain.nodes[1].reason
    path, report = convert(model, tmp_path, target=target, include=["lm_head"])
    assert [node.name for node in report.quantized] == ["logits"] and "tied" in report.warnings[0]
    assert any(tensor.name == "w" for tensor in onnx.load(path).graph.initializer)
    path, report = convert(model, tmp_path, target=target, include=["lm_head"], embedding_bits=8)
    assert [node.name for node in report.quantized] == ["h", "logits"]
    assert not any("tied" in warning for warning in report.warnings)
    assert all(tensor.name != "w" for tensor in onnx.load(path).graph.initializer)


@pytest.mark.parametrize("target", ["portable", "qdq"])
def test_a_converted_model_can_be_converted_further(target: str, tmp_path: Path) -> None:
    """One reader of a shared weight first, the other later, in a scheme of the same name."""
    text = (
        "g (float[2, 40] x) => (float[2, 12] y)"
        " { a = MatMul(x, w) r = Relu(x) b = MatMul(r, w) y = Sub(a, b) }"
    )
    weight, x = rand(40, 12), rand(2, 40, seed=4)
    first, _ = convert(proto(text, {"w": weight}), tmp_path, target=target, only=["^a$"])
    second, report = convert(onnx.load(first), tmp_path, target=target, group_size=32, only=["^b$"])
    reasons = {node.name: node.reason for node in report.nodes}
    assert reasons["a"].startswith("already quantized") and reasons["b"] == ""
    schemes = [Scheme(granularity=PerBlock(size), lorc_rank=2) for size in (16, 32)]
    expected = x @ rounded(weight, schemes[0]) - np.maximum(x, 0) @ rounded(weight, schemes[1])
    (got,) = zoo.run(second, {"x": x})
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert convert(onnx.load(second), tmp_path, target=target)[1].quantized == []
