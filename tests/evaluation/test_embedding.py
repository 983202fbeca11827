"""Embeddings are those of transformers' own pooling, and their similarity what its definition says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, processors

from tests import zoo
from tests.evaluation.language import Array, save, write_text, write_tokenizer
from zq2onnx.errors import UserError
from zq2onnx.evaluation import EmbeddingEvaluation, plan_embedding
from zq2onnx.evaluation.sentences import SentenceEncoder

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

WORDS, WIDTH = 12, 5
FIRST, LAST = 10, 11
SENTENCES = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2], [3, 3]]


def write_encoder(
    path: Path,
    table: Array,
    *,
    shape: tuple[int | str, ...] = ("batch", "length"),
    output: str = "last_hidden_state",
    pooled: bool = False,
) -> Path:
    """A table's rows, poisoned where the mask hides them; or their greatest values, if pooled."""
    ids, mask = (
        helper.make_tensor_value_info(name, TensorProto.INT64, shape)
        for name in ("input_ids", "attention_mask")
    )
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["shown"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["shown", "last"], ["column"]),
        helper.make_node("Sub", ["column", "one"], ["hidden"]),
        helper.make_node("Mul", ["hidden", "poison"], ["poisoned"]),
        helper.make_node("Add", ["rows", "poisoned"], ["all" if pooled else output]),
    ]
    if pooled:
        nodes.append(helper.make_node("ReduceMax", ["all", "axis"], [output], keepdims=0))
    constants = {
        "table": table,
        "last": np.array([-1]),
        "axis": np.array([1]),
        "one": np.float32(1),
        "poison": np.float32(1000),
    }
    dims = [shape[0], WIDTH] if pooled else [*shape, WIDTH]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [ids, mask],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, dims)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return save(path, graph)


@pytest.fixture
def tables() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((WORDS, WIDTH)).astype(np.float32)
    return table, table + 0.5 * rng.standard_normal(table.shape).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, tables: tuple[Array, Array]) -> Path:
    """Two encoders, a tokenizer that puts w10 and w11 around every sentence, and a text with blank lines."""
    write_encoder(tmp_path / "float.onnx", tables[0])
    write_encoder(tmp_path / "quant.onnx", tables[1])
    tokenizer = Tokenizer.from_file(str(write_tokenizer(tmp_path / "tokenizer.json", WORDS)))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="w10 $A w11", special_tokens=[("w10", FIRST), ("w11", LAST)]
    )
    tokenizer.enable_padding(length=32, pad_id=7)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    lines = [" ".join(f"w{token}" for token in sentence) for sentence in SENTENCES]
    (tmp_path / "a.txt").write_text("\n\n".join(lines) + "\n  \n", encoding="utf-8")
    return tmp_path


def run(folder: Path, *names: str, text: str = "a.txt", **options: Any) -> EmbeddingEvaluation:
    models = [folder / name for name in names or ("float.onnx", "quant.onnx")]
    return plan_embedding(models, [folder / text], folder, **{"length": 16, **options}).run()


def cosines(tables: tuple[Array, Array], length: int = 16) -> Array:
    found = []
    for sentence in SENTENCES:
        ids = [FIRST, *sentence[: length - 2], LAST]
        first, second = (table[ids].astype(np.float64).mean(axis=0) for table in tables)
        found.append(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    return np.array(found)


@pytest.mark.parametrize("length", [16, 5, 3])
def test_similarity_is_the_cosine_of_means_over_tokens(
    folder: Path, tables: tuple[Array, Array], length: int
) -> None:
    result = run(folder, length=length)
    expected = cosines(tables, length)
    first, second = result.models
    assert (first.mean_cosine, first.least_cosine) == (pytest.approx(1, abs=1e-12),) * 2
    assert second.cosine == {str(folder / "a.txt"): pytest.approx(float(expected.mean()), abs=1e-6)}
    assert second.mean_cosine == pytest.approx(float(expected.mean()), abs=1e-6)
    assert second.least_cosine == pytest.approx(float(expected.min()), abs=1e-6)
    assert second.percentile_1 == pytest.approx(float(np.percentile(expected, 1)), abs=1e-6)
    assert (result.sentences, result.length, result.output) == (4, length, "last_hidden_state")
    assert expected.min() < 0.99


def test_a_graph_of_fixed_length_is_filled_up_with_what_is_not_attended_to(
    folder: Path, tables: tuple[Array, Array]
) -> None:
    for name, table in zip(("float", "quant"), tables, strict=True):
        write_encoder(folder / f"{name}.onnx", table, shape=(1, 12))
    result = run(folder, length=None)
    assert result.length == 12
    assert result.models[1].mean_cosine == pytest.approx(float(cosines(tables).mean()), abs=1e-6)


def test_an_output_that_is_pooled_is_taken_as_it_is(folder: Path, tables: tuple[Array, Array]) -> None:
    for name, table in zip(("float", "quant"), tables, strict=True):
        write_encoder(folder / f"{name}.onnx", table, output="sentence_embedding", pooled=True)
    result = run(folder)
    first, second = (table[[FIRST, 4, LAST]].astype(np.float64).max(axis=0) for table in tables)
    expected = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    write_text(folder / "one.txt", [4])
    assert run(folder, text="one.txt").models[1].least_cosine == pytest.approx(expected, abs=1e-6)
    assert result.output == "sentence_embedding"


def test_the_first_sentences_are_taken(folder: Path, tables: tuple[Array, Array]) -> None:
    result = run(folder, sentences=2)
    assert result.sentences == 2
    assert result.models[1].mean_cosine == pytest.approx(float(cosines(tables)[:2].mean()), abs=1e-6)


def test_the_length_is_the_tokenizers_own_where_none_is_given(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(6)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"max_position_embeddings": 64}')
    assert run(folder, length=None).length == 6
    tokenizer.no_truncation()
    tokenizer.save(str(folder / "tokenizer.json"))
    assert run(folder, length=None).length == 64


def test_names_in_json(folder: Path) -> None:
    (first, _) = json.loads(run(folder).to_json())["models"]
    measures = ["cosine", "mean_cosine", "percentile_1", "least_cosine"]
    assert list(first) == ["path", "bytes", "bits_per_weight", *measures]


def test_a_long_line_and_many_are_read(folder: Path) -> None:
    sentences = [" ".join(["w1"] * 40_000), *(f"w{i % 9}" for i in range(500))]
    (folder / "long.txt").write_text("\n".join(sentences), encoding="utf-8")
    read = SentenceEncoder(folder).read(folder / "long.txt", 50_000, None)
    assert len(read) == 501
    assert len(read.sentence(0)) == 40_002
    assert read.sentence(500).tolist() == [FIRST, 499 % 9, LAST]


def refuse(folder: Path, message: str, *names: str, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(folder, *names, **options)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_compared_is_refused(folder: Path, tables: tuple[Array, Array]) -> None:
    refuse(folder, r"float.onnx: one model, with nothing to compare it with", "float.onnx")
    (folder / "empty.txt").write_text("\n  \n\n")
    refuse(folder, r"empty.txt: no sentences; required: at least one line", text="empty.txt")
    refuse(folder, r"--length 2; required: more than the 2 special tokens", length=2)
    refuse(folder, r"--windows 0", sentences=0)
    write_encoder(folder / "logits.onnx", tables[0], output="logits")
    refuse(folder, r"logits.onnx: none of its outputs is an embedding: logits", "float.onnx", "logits.onnx")
    write_encoder(folder / "pooled.onnx", tables[0], output="pooler_output", pooled=True)
    refuse(
        folder,
        r"pooled.onnx: its embedding is pooler_output, that of .*float.onnx is",
        "float.onnx",
        "pooled.onnx",
    )
    write_encoder(folder / "few.onnx", tables[0][:6])
    refuse(folder, r"ids up to 11, and .*few.onnx knows 6 tokens", "float.onnx", "few.onnx")
    model = onnx.load(write_encoder(folder / "wide.onnx", np.pad(tables[0], ((0, 0), (0, 2)))))
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "width"
    onnx.save(model, folder / "wide.onnx")
    refuse(folder, r"wide.onnx: embeddings of 7 numbers, 5 in those of", "float.onnx", "wide.onnx")


def test_an_encoder_agrees_with_transformers(tmp_path: Path) -> None:
    """The means that transformers' BERT gives, compared with those of a twin whose weights are rounded."""
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    from zq2onnx.models.capture import export

    checkpoint = zoo.checkpoint("bert")
    network = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rounded = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim == 2:
                step = parameter.abs().amax(dim=1, keepdim=True) / 3
                parameter.copy_((parameter / step).round() * step)
    rounded.save_pretrained(tmp_path / "rounded")
    (tmp_path / "rounded" / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    export(tmp_path / "rounded", tmp_path / "quant.onnx")
    lines = ["One sentence.", "Another one, rather longer than the first.", "3.14", "x" * 40]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    plan = plan_embedding(
        [zoo.model("bert"), tmp_path / "quant.onnx"], [tmp_path / "a.txt"], checkpoint, length=32
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
    expected = []
    for line in lines:
        encoded = tokenizer(line, truncation=True, max_length=32, return_tensors="pt")
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            first, second = (each(**inputs).last_hidden_state[0].mean(0) for each in (network, rounded))
        expected.append(torch.nn.functional.cosine_similarity(first, second, dim=0).item())
    found = plan.run().models[1]
    assert found.mean_cosine == pytest.approx(np.mean(expected), abs=1e-5)
    assert found.least_cosine == pytest.approx(min(expected), abs=1e-5)
    assert min(expected) < 0.999
