"""`evaluate` on models whose probabilities are known, and on what it must refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.evaluation.language import log_softmax, save, write_bigram, write_text, write_tokenizer
from zq2onnx.errors import UserError
from zq2onnx.evaluation import evaluate, plan_evaluation

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

WORDS, LENGTH = 20, 8
Array = np.ndarray[Any, Any]


@pytest.fixture
def tables() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    table = (3 * rng.standard_normal((WORDS, WORDS))).astype(np.float32)
    return table, table + rng.standard_normal(table.shape).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, tables: tuple[Array, Array]) -> Path:
    """Two models, a tokenizer and two texts; the second text is shorter than the first."""
    rng = np.random.default_rng(1)
    write_bigram(tmp_path / "float.onnx", tables[0])
    write_bigram(tmp_path / "quant.onnx", tables[1])
    write_tokenizer(tmp_path / "tokenizer.json", WORDS)
    write_text(tmp_path / "a.txt", rng.integers(0, WORDS, 5 * LENGTH + 3))
    write_text(tmp_path / "b.txt", rng.integers(0, WORDS, 2 * LENGTH))
    return tmp_path


def read_tokens(text: Path) -> Array:
    tokens = np.array([int(word[1:]) for word in text.read_text().split()])
    return tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH)


def test_measures_match_the_known_probabilities(folder: Path, tables: tuple[Array, Array]) -> None:
    texts = [folder / "a.txt", folder / "b.txt"]
    steps: list[float] = []
    result = evaluate(
        [folder / "float.onnx", folder / "quant.onnx"], texts, folder, length=LENGTH, progress=steps.append
    )
    log_p, log_q = (log_softmax(table) for table in tables)
    ids = [read_tokens(text) for text in texts]
    for model, log in zip(result.models, (log_p, log_q), strict=True):
        for text, tokens in zip(texts, ids, strict=True):
            expected = np.exp(-log[tokens[:, :-1], tokens[:, 1:]].mean())
            assert model.perplexity[str(text)] == pytest.approx(float(expected), rel=1e-6)
        assert model.mean == pytest.approx(sum(model.perplexity.values()) / 2, rel=1e-12)
    first, second = result.models
    context = np.concatenate([tokens[:, :-1].ravel() for tokens in ids])
    assert (first.gap, first.top1, first.kl) == (0, 1, 0)
    assert second.gap == pytest.approx(second.mean - first.mean, rel=1e-12)
    assert second.top1 == pytest.approx((log_p.argmax(-1) == log_q.argmax(-1))[context].mean(), rel=1e-12)
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1)[context].mean()
    assert second.kl == pytest.approx(float(divergence), rel=1e-6)
    assert 0 < second.top1 < 1
    assert result.positions == context.size == 7 * (LENGTH - 1)
    assert sum(steps) == 2 * 7


def test_identical_models_agree_exactly(folder: Path) -> None:
    copy = folder / "copy.onnx"
    copy.write_bytes((folder / "float.onnx").read_bytes())
    result = evaluate([folder / "float.onnx", copy], [folder / "a.txt"], folder, length=LENGTH)
    assert (result.models[1].gap, result.models[1].top1, result.models[1].kl) == (0.0, 1.0, 0.0)
    assert result.models[0].perplexity == result.models[1].perplexity


def test_json_holds_what_the_contract_names(folder: Path) -> None:
    text = folder / "b.txt"
    result = evaluate([folder / "float.onnx"], [text], folder, length=LENGTH)
    data = json.loads(result.to_json())
    assert list(data) == ["models"]
    (model,) = data["models"]
    names = ["path", "bytes", "bits_per_weight", "perplexity", "mean", "gap", "top1", "kl", "class"]
    assert list(model) == names
    assert model["class"] is None  # nothing that it could be above
    assert model["path"] == str(folder / "float.onnx")
    assert model["bytes"] == (folder / "float.onnx").stat().st_size
    assert model["bits_per_weight"] is None  # a table alone: no linear layer
    assert list(model["perplexity"]) == [str(text)]


@pytest.mark.parametrize(("factor", "name"), [(1.0, "Class-1"), (0.9, "Class-2"), (0.5, "Class-3")])
def test_the_class_of_the_paper_goes_by_the_gap(
    folder: Path, tables: tuple[Array, Array], factor: float, name: str
) -> None:
    text = folder / "a.txt"
    good = write_bigram(folder / "good.onnx", 4 * np.roll(np.eye(WORDS, dtype=np.float32), 1, axis=1))
    write_text(text, np.arange(64) % WORDS)
    worse = write_bigram(
        folder / "worse.onnx", factor * 4 * np.roll(np.eye(WORDS, dtype=np.float32), 1, axis=1)
    )
    result = evaluate([good, worse], [text], folder, length=LENGTH)
    low, high = {"Class-1": (0.0, 0.1), "Class-2": (0.1, 0.5), "Class-3": (0.5, math.inf)}[name]
    assert low <= result.models[1].gap <= high
    assert [model["class"] for model in json.loads(result.to_json())["models"]] == [None, name]


def test_a_stride_is_within_a_window(folder: Path) -> None:
    for stride in (0, -1, LENGTH + 1):
        refuse(folder, rf"--stride {stride}; required: 1 to the 8 tokens of a window", stride=stride)


def test_numbers_that_are_not_finite_are_null(folder: Path, tables: tuple[Array, Array]) -> None:
    broken = write_bigram(folder / "broken.onnx", np.full_like(tables[0], np.nan))
    result = evaluate([folder / "float.onnx", broken], [folder / "b.txt"], folder, length=LENGTH)
    model = json.loads(result.to_json())["models"][1]
    assert math.isnan(result.models[1].mean)
    assert model["mean"] is None
    assert model["perplexity"][str(folder / "b.txt")] is None


def test_every_known_input_is_fed(folder: Path) -> None:
    """Logits are what the inputs say: masks of ones, positions from 0, types of zero."""
    names = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
    nodes = [
        helper.make_node("Concat", ["mask", "positions", "types", "ids"], ["joined"], axis=-1),
        helper.make_node("Cast", ["joined"], ["logits"], to=TensorProto.FLOAT),
        helper.make_node("Constant", [], ["last"], value_ints=[-1]),
    ]
    short = dict(zip(names, ("ids", "mask", "positions", "types"), strict=True))
    unsqueeze = [helper.make_node("Unsqueeze", [name, "last"], [short[name]]) for name in names]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in names]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", 4])
    model = save(
        folder / "inputs.onnx",
        helper.make_graph([nodes[2], *unsqueeze, *nodes[:2]], "inputs", inputs, [output]),
    )
    text = write_text(folder / "c.txt", [3, 2, 1, 0])
    result = evaluate([model], [text], folder, length=4)
    logits = np.array([[1, 0, 0, 3], [1, 1, 0, 2], [1, 2, 0, 1]])
    expected = np.exp(-log_softmax(logits)[[0, 1, 2], [2, 1, 0]].mean())
    assert result.models[0].mean == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 6}, 6),
        ({"n_positions": 5}, 5),
        ({"n_ctx": 4}, 4),
        ({"seq_length": 7}, 7),
        ({"text_config": {"max_position_embeddings": 3}}, 3),
        ({"max_position_embeddings": 131072}, 2048),
    ],
)
def test_length_defaults_to_the_context(folder: Path, config: dict[str, Any], length: int) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    text = write_text(folder / "long.txt", np.arange(2100) % WORDS)
    assert plan_evaluation([folder / "float.onnx"], [text], folder).length == length


def test_length_is_the_graphs_own_where_that_is_fixed(folder: Path, tables: tuple[Array, Array]) -> None:
    model = write_bigram(folder / "fixed.onnx", tables[0], shape=(1, 4))
    (folder / "config.json").write_text('{"max_position_embeddings": 6}')
    assert evaluate([model], [folder / "a.txt"], folder).length == 4
    with pytest.raises(UserError, match=r"fixed.onnx: its graph takes 4 tokens, not 8; --length 4"):
        evaluate([model], [folder / "a.txt"], folder, length=8)


def refuse(folder: Path, message: str, *models: Path, **options: Any) -> None:
    texts = options.pop("texts", [folder / "a.txt"])
    with pytest.raises(UserError, match=message) as caught:
        evaluate(list(models) or [folder / "float.onnx"], texts, folder, **{"length": LENGTH, **options})
    assert "\n" not in str(caught.value)


def test_requests_that_make_no_sense(folder: Path) -> None:
    text = folder / "a.txt"
    refuse(folder, "0 texts; .*at least one", texts=[])
    refuse(folder, "a.txt: given twice", texts=[text, folder / "b.txt", text])
    refuse(folder, "--length 1; .*at least 2", length=1)
    refuse(folder, "--windows 0; .*at least 1", windows=0)
    refuse(folder, r"config.json: not found.*give --length", length=None)
    (folder / "config.json").write_text("[1]")
    refuse(folder, r"config.json: not a JSON object", length=None)
    (folder / "config.json").write_text("{")
    refuse(folder, r"config.json: not a JSON file", length=None)


def test_files_that_are_no_models(folder: Path) -> None:
    refuse(folder, r"none.onnx: no such file", folder / "none.onnx")
    (folder / "text.onnx").write_text("not a model, although it is named so")
    refuse(folder, r"text.onnx: not an ONNX model", folder / "text.onnx")
    (folder / "rows.json").write_text('{"rows": 1}')
    refuse(folder, r"rows.json: not an ONNX model", folder / "rows.json")
    (folder / "empty.onnx").write_bytes(b"")
    refuse(folder, r"empty.onnx: not an ONNX model", folder / "empty.onnx")


def test_absent_and_truncated_external_data(folder: Path) -> None:
    path = folder / "float.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0, location="f.data")
    assert evaluate([path], [folder / "a.txt"], folder, length=LENGTH).models[0].bytes == (
        path.stat().st_size + 4 * WORDS * WORDS
    )
    (folder / "f.data").write_bytes(b"short")
    refuse(folder, r"float.onnx: onnxruntime .* cannot load it", path)
    (folder / "f.data").unlink()
    refuse(folder, r"float.onnx: its external data .*f.data cannot be read \(No such file", path)


def test_models_that_cannot_be_evaluated(folder: Path, tables: tuple[Array, Array]) -> None:
    def made(name: str, **options: Any) -> Path:
        return write_bigram(folder / f"{name}.onnx", tables[0], **options)

    cached = made("cached", inputs=("input_ids", "past_key_values.0.key"))
    refuse(folder, r"cached.onnx: input past_key_values.0.key of shape .*--npz FILE", cached)
    refuse(
        folder,
        r"pixels.onnx: input pixels of shape .*--npz FILE",
        made("pixels", inputs=("input_ids", "pixels")),
    )
    refuse(folder, r"batch.onnx: input input_ids .*a batch of 1", made("batch", shape=(2, "length")))
    refuse(folder, r"rank.onnx: input input_ids .*\[batch, length\]", made("rank", shape=("a", "b", "c")))
    refuse(folder, r"hidden.onnx: .*last_hidden_state", made("hidden", output="last_hidden_state"))
    nobody = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 1])
    nothing = save(folder / "other.onnx", helper.make_graph([], "other", [], [nobody]))
    refuse(folder, "other.onnx: no input named input_ids", nothing)


@pytest.mark.parametrize("known_from", ["logits", "table"])
def test_a_tokenizer_of_another_model_is_refused(folder: Path, known_from: str) -> None:
    """Whatever tells the vocabulary: 10 tokens, and the text holds greater ids."""
    rows, width = (10, 10) if known_from == "table" else (20, 10)
    table = np.zeros((rows, width), np.float32)
    model = write_bigram(folder / "small.onnx", table, width=10 if known_from == "logits" else "v")
    refuse(folder, r"ids up to 19, and .*small.onnx knows 10 tokens: it is another model's", model)


def test_the_graph_knows_its_vocabulary_better_than_a_config_beside_it(folder: Path) -> None:
    (folder / "config.json").write_text('{"vocab_size": 10}')
    assert evaluate([str(folder / "float.onnx")], [str(folder / "a.txt")], str(folder), length=LENGTH).models


def test_logits_too_narrow_for_the_ids_are_refused_when_they_come(folder: Path) -> None:
    narrow = write_bigram(folder / "narrow.onnx", np.zeros((WORDS, 3), np.float32))
    refuse(folder, r"narrow.onnx: output logits is of shape \[1, 8, 3\]", narrow)


def test_models_of_different_vocabularies_are_refused(folder: Path, tables: tuple[Array, Array]) -> None:
    wide = write_bigram(folder / "wide.onnx", np.pad(tables[0], ((0, 0), (0, 5))))
    refuse(folder, r"wide.onnx: 25 tokens in its vocabulary, 20 in that of", folder / "float.onnx", wide)


def test_what_onnxruntime_refuses_is_one_line(folder: Path) -> None:
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", 20])
    node = helper.make_node("NoSuchOperator", ["input_ids"], ["logits"])
    model = save(folder / "unknown.onnx", helper.make_graph([node], "g", [ids], [out]))
    refuse(folder, r"unknown.onnx: onnxruntime .* cannot load it", model)


def test_a_window_longer_than_the_model_takes_is_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A position table of 4 rows, read at positions 0 to 7. What ONNX Runtime raises, it need not log."""
    table = np.zeros((4, WORDS), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "position_ids"], ["logits"])],
        "positions",
        [
            helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "s"])
            for n in ("input_ids", "position_ids")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", WORDS])],
        [helper.make_tensor("table", TensorProto.FLOAT, table.shape, table.tobytes(), raw=True)],
    )
    model = save(folder / "four.onnx", graph)
    refuse(folder, r"four.onnx: onnxruntime fails on 8 tokens .*; try a smaller --length", model)
    assert capfd.readouterr() == ("", "")
