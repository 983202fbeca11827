"""One copy of the weights serves transformers and ONNX Runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import zoo
from zq2onnx.errors import UserError
from zq2onnx.models import capture
from zq2onnx.models.link_safetensors import link, read_header


@pytest.fixture(scope="module", params=["opt", "gpt2"])
def linked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a checkpoint with an ONNX file that reads the checkpoint's weights."""
    folder = tmp_path_factory.mktemp("linked") / request.param
    shutil.copytree(zoo.checkpoint(request.param), folder)
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copyfile(zoo.model(request.param).with_name(name), folder / name)
    link(folder / "model.onnx", folder / "model.safetensors")
    return folder


def test_header_says_where_tensors_lie(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = {
        "matrix": np.arange(6, dtype=np.float16).reshape(2, 3),
        "row": np.arange(4, dtype=np.int64),
    }
    path = tmp_path / "model.safetensors"
    numpy.save_file(tensors, path, {"format": "pt"})
    stored = {tensor.name: tensor for tensor in read_header(path)}
    assert stored.keys() == tensors.keys()
    for name, tensor in stored.items():
        assert tensor.shape == tensors[name].shape
        data = path.read_bytes()[tensor.offset : tensor.offset + tensor.length]
        assert data == tensors[name].tobytes()


def test_outputs_are_the_same(linked: Path) -> None:
    path = linked / "model.onnx"
    feeds = zoo.feeds(path, batch=2, length=9)
    np.testing.assert_array_equal(zoo.run(path, feeds)[0], zoo.run(zoo.model(linked.name), feeds)[0])


def test_every_parameter_is_read_from_the_checkpoint(linked: Path) -> None:
    assert not (linked / "model.onnx.data").exists()
    graph = onnx.load(linked / "model.onnx", load_external_data=False).graph
    parameters = [tensor for tensor in graph.initializer if tensor.name.endswith((".weight", ".bias"))]
    ranges = []
    for tensor in parameters:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == "model.safetensors", tensor.name
        ranges.append((int(entries["offset"]), int(entries["length"])))
    assert sorted(ranges) == sorted(
        (tensor.offset, tensor.length) for tensor in read_header(linked / "model.safetensors")
    )


def test_transposed_weights_get_a_transpose(linked: Path) -> None:
    graph = onnx.load(linked / "model.onnx", load_external_data=False).graph
    before = onnx.load(zoo.model(linked.name), load_external_data=False).graph
    count = sum(node.op_type == "Transpose" for node in graph.node)
    folded = {"opt": 8, "gpt2": 0}[
        linked.name
    ]  # the attention's four of each layer; Conv1D is stored [in, out]
    assert count == folded + sum(node.op_type == "Transpose" for node in before.node)
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)


def test_checker_accepts_it(linked: Path) -> None:
    onnx.checker.check_model(linked / "model.onnx", full_check=True)


def test_second_run_changes_nothing(linked: Path) -> None:
    before = (linked / "model.onnx").read_bytes()
    link(linked / "model.onnx", linked / "model.safetensors")
    assert (linked / "model.onnx").read_bytes() == before


def test_weights_that_differ_stay_in_the_model(tmp_path: Path) -> None:
    """fp16 weights of an fp32 checkpoint cannot be shared; nothing is lost."""
    folder = Path(shutil.copytree(zoo.checkpoint("opt"), tmp_path / "opt"))
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copyfile(zoo.model("opt-fp16").with_name(name), folder / name)
    size = (folder / "model.onnx.data").stat().st_size
    assert link(folder / "model.onnx", folder / "model.safetensors") >= size
    path = folder / "model.onnx"
    feeds = zoo.feeds(path)
    np.testing.assert_array_equal(zoo.run(path, feeds)[0], zoo.run(zoo.model("opt-fp16"), feeds)[0])


def test_other_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not in the folder of"):
        link(tmp_path / "a" / "model.onnx", tmp_path / "b" / "model.safetensors")


def test_not_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for content in (b"", b"short", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a safetensors file"):
            read_header(path)


class TestBundledModel:
    def test_fits_its_budget(self, tiny_model: Path) -> None:
        files = {file.name: file.stat().st_size for file in tiny_model.iterdir()}
        assert sum(files.values()) <= 10_000_000
        assert files["model.onnx"] < 200_000
        assert "model.onnx.data" not in files

    def test_is_what_the_exporter_makes_of_its_checkpoint(self, tiny_model: Path, tmp_path: Path) -> None:
        pytest.importorskip("torch")
        path = tmp_path / "model.onnx"
        capture.export(tiny_model, path, cache=False, dtype="fp16")
        feeds = zoo.feeds(path, batch=2, length=64)
        np.testing.assert_allclose(
            zoo.run(tiny_model / "model.onnx", feeds)[0], zoo.run(path, feeds)[0], rtol=0, atol=0.02
        )

    def test_is_a_language_model(self, tiny_model: Path) -> None:
        """Held-out perplexity is at most a third of the text's own unigram perplexity."""
        tokenizers = pytest.importorskip("tokenizers")
        tokenizer = tokenizers.Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
        text = (tiny_model / "heldout.txt").read_text(encoding="utf-8")
        ids = np.array(tokenizer.encode(text).ids, dtype=np.int64)
        frequencies = np.bincount(ids) / len(ids)
        unigram = np.exp(-np.log(frequencies[ids]).mean())
        windows = ids[: len(ids) // 256 * 256].reshape(-1, 256)[::8]
        logits = zoo.run(
            tiny_model / "model.onnx", {"input_ids": windows, "attention_mask": np.ones_like(windows)}
        )[0].astype(np.float32)[:, :-1]
        normalizer = logits.max(-1) + np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))
        chosen = np.take_along_axis(logits, windows[:, 1:, None], axis=-1)[..., 0]
        perplexity = np.exp((normalizer - chosen).mean())
        assert perplexity <= unigram / 3, f"perplexity {perplexity:.1f}, unigram {unigram:.1f}"
