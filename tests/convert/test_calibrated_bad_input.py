"""Bad calibration data: one line, exit 2, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import zoo
from tests.convert import linear_model
from tests.convert.calibrating import TEXT
from tests.convert.test_bad_input import Refusal
from zq2onnx.cli.app import main


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(tmp_path, capsys)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The zoo's OPT with its companions, to be spoilt."""
    shutil.copytree(zoo.model("opt").parent, tmp_path / "opt")
    return tmp_path / "opt" / "model.onnx"


def options(model: Path, calib: Path = TEXT, **changes: Any) -> list[str | Path]:
    given = {
        "calib": calib,
        "tokenizer": model.parent,
        "calib-samples": 4,
        "calib-length": 16,
        "output": model.parent.parent / "out" / "q.onnx",
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    return [
        model,
        *(str(part) for key, value in given.items() if value is not None for part in (f"--{key}", value)),
    ]


def in_a_branch(path: Path) -> Path:
    """A normalization that a MatMul `outer` and a MatMul `inner`, in a branch, read; `last` behind both."""
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(0, 0.2, (32, 32)).astype(np.float32) for name in ("w_outer", "w_inner", "w_last")
    }
    tensors |= {"gamma": rng.uniform(0.1, 9, 32).astype(np.float32), "beta": np.ones(32, np.float32)}
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w_inner"], ["z"], name="inner")],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 32])],
    )
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["h"], name="norm"),
        helper.make_node("MatMul", ["h", "w_outer"], ["a"], name="outer"),
        helper.make_node("ReduceMax", ["x"], ["top"], name="top", keepdims=0),
        helper.make_node("Cast", ["top"], ["condition"], name="cast", to=TensorProto.BOOL),
        helper.make_node("If", ["condition"], ["b"], name="if", then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["a", "b"], ["c"], name="sum"),
        helper.make_node("MatMul", ["c", "w_last"], ["y"], name="last"),
    ]
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z2"], name="same")],
        "other",
        [],
        [helper.make_tensor_value_info("z2", TensorProto.FLOAT, ["batch", 32])],
    )
    nodes[4].attribute[1].g.CopyFrom(other)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def spoil(model: Path, name: str, value: float) -> None:
    """Put a number that is none into a bias."""
    proto = onnx.load(model)
    [tensor] = [tensor for tensor in proto.graph.initializer if tensor.name == name]
    array = numpy_helper.to_array(tensor).copy()
    array[3] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    Path(f"{model}.data").unlink(missing_ok=True)
    onnx.save(proto, model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("bias", "node"),
    [
        ("model.decoder.layers.0.fc1.bias", "model.decoder.layers.0.fc2"),
        ("model.decoder.layers.0.fc2.bias", "model.decoder.layers.1.self_attn.q_proj"),
    ],
)
def test_activations_that_are_not_finite(
    refused: Refusal, model: Path, bias: str, node: str, value: float
) -> None:
    """Found when half of the weights are written; the first layer that reads them is named once."""
    spoil(model, bias, value)
    message = refused(*options(model))
    assert f"the input of node '{node}" in message and "is NaN or infinite on calibration samples" in message
    block = 1 if "fc1" in bias else 2
    assert f"block {block} of 5 (from node" in message
    assert message.count(str(model)) == 1


def test_a_weight_that_is_not_finite_is_named_and_not_what_it_makes(refused: Refusal, model: Path) -> None:
    spoil(model, "model.decoder.layers.0.fc1.weight", np.nan)
    message = refused(*options(model))
    assert "node 'model.decoder.layers.0.fc1': " in message and "numbers of its weight" in message


def test_text_shorter_than_a_sample(refused: Refusal, model: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("four words and no more")
    message = refused(*options(model, tmp_path / "short.txt", calib_length=32))
    assert "short.txt" in message and "--calib-length" in message and "32" in message


@pytest.mark.parametrize("content", [b"", b" \n\n"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_empty_text(refused: Refusal, model: Path, tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"empty{suffix}"
    path.write_bytes(content)
    assert str(path) in refused(*options(model, path))


def test_text_that_is_none(refused: Refusal, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("ein Läufer".encode("latin-1") * 99)
    assert "UTF-8" in refused(*options(model, path))
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "a b c"}\n{"text": "d e f\n')
    assert f"{path}: line 2 is not JSON" in refused(*options(model, path))
    path.write_text('{"text": "a b c"}\n[1]\n')
    assert f"{path}: line 2 is a list" in refused(*options(model, path))


def test_files_that_are_missing_or_of_another_kind(refused: Refusal, model: Path, tmp_path: Path) -> None:
    for suffix in (".txt", ".jsonl", ".npz"):
        path = tmp_path / f"absent{suffix}"
        assert f"{path}: no such file" in refused(*options(model, path)).lower()
        path.mkdir()
        assert str(path) in refused(*options(model, path))
    assert "samples of an unknown kind" in refused(*options(model, tmp_path))
    assert "samples of an unknown kind" in refused(*options(model, tmp_path / "text.md"))


def test_tokenizer(refused: Refusal, model: Path, tmp_path: Path) -> None:
    message = refused(*options(model, tokenizer=None))
    assert "without a tokenizer" in message and f"--tokenizer {model.parent / 'tokenizer.json'}" in message
    assert str(tmp_path / "absent") in refused(*options(model, tokenizer=tmp_path / "absent"))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert str(tmp_path / "tokenizer.json") in refused(*options(model, tokenizer=tmp_path / "tokenizer.json"))


def test_tokenizer_of_another_vocabulary(refused: Refusal, model: Path, tmp_path: Path) -> None:
    other = json.loads((model.parent / "tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    other["model"]["vocab"] = {token: 5 * number for token, number in vocabulary.items()}
    other["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    message = refused(*options(model, tokenizer=tmp_path / "tokenizer.json"))
    assert "320" in message and str(tmp_path / "tokenizer.json") in message


@pytest.mark.parametrize(
    "arrays",
    [
        {"input_ids": np.ones((4, 9), np.int64), "pixels": np.ones((4, 9), np.int64)},
        {"input_ids": np.ones((4, 9), np.int64)},
        {"input_ids": np.full((4, 9), 320), "attention_mask": np.ones((4, 9), np.int64)},
        {"input_ids": np.ones((4, 9), np.float32), "attention_mask": np.ones((4, 9), np.int64)},
        {"input_ids": np.ones((4, 9), np.int64), "attention_mask": np.ones((3, 9), np.int64)},
        {"input_ids": np.ones((4, 9), np.int64), "attention_mask": np.ones((4, 9, 1), np.int64)},
        {"input_ids": np.ones((0, 9), np.int64), "attention_mask": np.ones((0, 9), np.int64)},
        {},
    ],
    ids=["strange", "missing", "ids", "type", "counts", "shape", "none", "empty"],
)
def test_ready_made_inputs_that_do_not_fit(
    refused: Refusal, model: Path, tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    np.savez(tmp_path / "c.npz", **arrays)  # type: ignore[arg-type]
    assert str(tmp_path / "c.npz") in refused(*options(model, tmp_path / "c.npz", tokenizer=None))


def test_ready_made_inputs_that_onnxruntime_refuses(refused: Refusal, model: Path, tmp_path: Path) -> None:
    """The mask is longer than the text."""
    ids, mask = np.ones((4, 9), np.int64), np.ones((4, 11), np.int64)
    np.savez(tmp_path / "c.npz", input_ids=ids, attention_mask=mask)
    message = refused(*options(model, tmp_path / "c.npz", tokenizer=None))
    assert "onnxruntime fails on calibration samples" in message and message.count(str(model)) == 1


def test_archive_that_is_none(refused: Refusal, model: Path, tmp_path: Path) -> None:
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 and no more")
    assert "cannot be read" in refused(*options(model, tmp_path / "c.npz"))
    np.savez(tmp_path / "c.npz", input_ids=np.array([{"a": 1}], object))
    assert "cannot be read" in refused(*options(model, tmp_path / "c.npz"))


@pytest.mark.parametrize(
    ("option", "value"),
    [("calib_samples", 0), ("calib_samples", -3), ("calib_length", 0), ("calib_length", 1)],
)
def test_too_few(refused: Refusal, model: Path, option: str, value: int) -> None:
    message = refused(*options(model, **{option: value}))
    assert f"--{option.replace('_', '-')} {value}" in message


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (["--method", "gptq"], "method gptq"),
        (["--method", "zq-local"], "method zq-local"),
        (["--lorc", "exact"], "an exact low-rank branch"),
        (["--scheme", "w8a8", "--act-granularity", "tensor", "--target", "qdq"], "static activation scales"),
    ],
)
def test_methods_that_need_data(refused: Refusal, model: Path, given: list[str], what: str) -> None:
    message = refused(model, *given)
    assert f"{what}; required: calibration data" in message and "--calib" in message


def test_text_for_a_model_that_reads_none(refused: Refusal, tmp_path: Path) -> None:
    path = linear_model.write(tmp_path / "m.onnx")
    assert "--calib FILE.npz" in refused(path, "--calib", TEXT, "--tokenizer", tmp_path)


def test_a_tokenizer_for_nothing(refused: Refusal, model: Path) -> None:
    assert "--calib FILE.txt" in refused(model, "--tokenizer", model.parent)


@pytest.mark.parametrize("granularity", ["tensor", "token"])
def test_one_scale_for_two_inputs(
    refused: Refusal, tmp_path: Path, capsys: pytest.CaptureFixture[str], granularity: str
) -> None:
    """One weight behind two values: a static scale would be calibrated on the first alone."""
    rng = np.random.default_rng(0)
    tensors = {"w": rng.normal(0, 0.2, (32, 32)).astype(np.float32), "large": np.full(32, 50, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "large"], ["b"], name="mul"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="second"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32]) for name in "xy"]
    held = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(made, tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=rng.normal(size=(16, 32)).astype(np.float32))
    command = [tmp_path / "m.onnx", "-o", tmp_path / "q.onnx", "--calib", tmp_path / "c.npz"]
    command += ["--scheme", "w8a8", "--target", "qdq", "--act-granularity", granularity]
    if granularity == "tensor":
        message = refused(*command)
        assert "nodes 'first' and 'second'" in message and "--exclude '^second$'" in message
        command += ["--exclude", "^second$"]
    assert main(["convert", *map(str, command)]) == 0
    capsys.readouterr()


def test_one_scale_a_tensor_is_not_portable(refused: Refusal, model: Path) -> None:
    assert "--target qdq" in refused(*options(model, scheme="w8a8", act_granularity="tensor"))


def test_no_room_for_activations(
    refused: Refusal, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __getattr__(self, name: str) -> Any:
            def refuse(*arguments: Any) -> None:
                if name != "close":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            return refuse

    monkeypatch.setattr("zq2onnx.calibration.cache.tempfile.TemporaryFile", lambda **options: Full())
    store = "zq2onnx.calibration.cache.ActivationCache"
    monkeypatch.setattr(f"{store}.__init__", _without_budget)
    message = refused(*options(model))
    assert tempfile.gettempdir() in message and "no space left on device" in message and "TMPDIR" in message


def _without_budget(self: Any, budget: int) -> None:
    self._budget = self._held = self._end = 0
    self._entries, self._alike, self._free, self._file = {}, {}, {}, None


def test_nothing_to_quantize_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.model("opt")
    arguments = options(model, output=tmp_path / "q.onnx", exclude="MatMul|Gemm|proj|fc|lm_head")
    assert main(["convert", *map(str, arguments)]) == 0
    assert "nothing to quantize" in capsys.readouterr().out
    assert (tmp_path / "q.onnx").read_bytes() == model.read_bytes()
