"""Predictions kept on disk give the same numbers to the bit, and only ever to what they were made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.evaluation.language import write_bigram, write_text, write_tokenizer
from zq2onnx.errors import UserError
from zq2onnx.evaluation import Evaluation, evaluate, reference, session

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

WORDS, LENGTH = 50, 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    table = (3 * rng.standard_normal((WORDS, WORDS))).astype(np.float32)
    write_bigram(tmp_path / "float.onnx", table)
    write_bigram(tmp_path / "quant.onnx", table + rng.standard_normal(table.shape).astype(np.float32))
    write_bigram(tmp_path / "worse.onnx", table + 2 * rng.standard_normal(table.shape).astype(np.float32))
    write_tokenizer(tmp_path / "tokenizer.json", WORDS)
    write_text(tmp_path / "a.txt", rng.integers(0, WORDS, 5 * LENGTH + 3))
    write_text(tmp_path / "b.txt", rng.integers(0, WORDS, 3 * LENGTH))
    return tmp_path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that were run, in order."""
    found: list[str] = []
    original = session.LanguageModel.logits

    def logits(self: session.LanguageModel, tokens: Any) -> Any:
        found.append(self.subject.path.stem)
        return original(self, tokens)

    monkeypatch.setattr(session.LanguageModel, "logits", logits)
    return found


def run(folder: Path, *others: str, first: str = "float", cache: bool = True, **options: Any) -> Evaluation:
    models = [folder / f"{name}.onnx" for name in (first, *others)]
    options = {"texts": ("a", "b"), "length": LENGTH, **options}
    texts = [folder / f"{name}.txt" for name in options.pop("texts")]
    return evaluate(models, texts, folder, reference_cache=folder / "kept" if cache else None, **options)


@pytest.mark.parametrize("stride", [None, 5])
def test_numbers_are_the_same_and_the_first_model_is_run_once(
    folder: Path, runs: list[str], stride: int | None
) -> None:
    for name in ("quant", "worse", "float"):
        assert run(folder, name, stride=stride) == run(folder, name, cache=False, stride=stride)
    windows = 8 if stride is None else 14 + 7
    assert runs.count("float") == windows * (1 + 3 + 2)  # kept once; without a cache thrice, and itself twice
    runs.clear()
    run(folder, "quant", stride=stride)
    assert set(runs) == {"quant"}


def test_a_first_model_that_is_kept_need_not_be_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(folder, "quant")
    loaded: list[Path] = []
    original = session.Session.__init__

    def load(self: session.Session, path: Path, *rest: Any) -> None:
        loaded.append(path)
        original(self, path, *rest)

    monkeypatch.setattr(session.Session, "__init__", load)
    assert run(folder, "quant") == expected
    assert loaded == [folder / "quant.onnx"]


def change_weight(folder: Path) -> None:
    model = onnx.load(folder / "float.onnx")
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-1] + b"\x01"
    onnx.save(model, folder / "float.onnx")


def change_text(folder: Path) -> None:
    write_text(folder / "a.txt", np.arange(5 * LENGTH) % WORDS)


@pytest.mark.parametrize("change", [change_weight, change_text, {"length": 8}, {"stride": 3}, {"windows": 2}])
def test_what_was_made_of_something_else_is_not_used(folder: Path, runs: list[str], change: Any) -> None:
    run(folder, "quant", texts=["a"])
    options = change if isinstance(change, dict) else {}
    if callable(change):
        change(folder)
    runs.clear()
    found = run(folder, "quant", texts=["a"], **options)
    assert runs.count("float") == runs.count("quant") > 0
    assert found == run(folder, "quant", texts=["a"], cache=False, **options)


def test_a_weight_in_another_file_counts(folder: Path, runs: list[str]) -> None:
    path = folder / "float.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0, location="f.data")
    run(folder, "quant")
    data = bytearray((folder / "f.data").read_bytes())
    data[-1] ^= 1
    (folder / "f.data").write_bytes(data)
    runs.clear()
    run(folder, "quant")
    assert runs.count("float") == 8


@pytest.mark.parametrize("fault", ["truncated", "header", "rows", "absent"])
def test_a_damaged_entry_is_made_anew(folder: Path, runs: list[str], fault: str) -> None:
    expected = run(folder, "quant", texts=["a"])
    (entry,) = (folder / "kept").iterdir()
    if fault == "truncated":
        (entry / "probabilities.npy").write_bytes((entry / "probabilities.npy").read_bytes()[:-4])
    elif fault == "header":
        (entry / "header.json").write_text("{")
    elif fault == "rows":
        (entry / "rows.npz").write_bytes((entry / "rows.npz").read_bytes()[:-40])
    else:
        (entry / "rows.npz").unlink()
    runs.clear()
    assert run(folder, "quant", texts=["a"]) == expected
    assert runs.count("float") == 5
    runs.clear()
    assert run(folder, "quant", texts=["a"]) == expected
    assert runs.count("float") == 0


def test_as_many_windows_are_kept_as_there_is_room_for(
    folder: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    window = (LENGTH - 1) * WORDS * 4
    monkeypatch.setattr(reference, "MOST_BYTES", 3 * window + 1)
    expected = run(folder, "quant", texts=["a"], cache=False)
    assert run(folder, "quant", texts=["a"]) == expected
    size = sum(file.stat().st_size for file in (folder / "kept").rglob("probabilities.npy"))
    assert 3 * window < size < 4 * window
    runs.clear()
    assert run(folder, "quant", texts=["a"]) == expected
    assert runs.count("float") == 2
    assert run(folder, "quant", texts=["b"]) == run(folder, "quant", texts=["b"], cache=False)
    assert len(list((folder / "kept").iterdir())) == 1  # the folder is full


def test_what_was_not_finished_leaves_nothing(folder: Path, runs: list[str]) -> None:
    wide = write_bigram(folder / "wide.onnx", np.zeros((WORDS, WORDS + 1), np.float32))
    with pytest.raises(UserError, match=f"{wide}: 51 tokens in its vocabulary, 50 in that of"):
        run(folder, "wide")
    assert list((folder / "kept").iterdir()) == []
    run(folder, "quant")
    assert all(not entry.name.startswith(".") for entry in (folder / "kept").iterdir())
    runs.clear()
    with pytest.raises(UserError, match=f"{wide}: 51 tokens in its vocabulary, 50 in that of"):
        run(folder, "wide")  # now against what is kept
    assert runs == ["wide"]


def test_a_full_disk_ends_the_keeping_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    assert run(folder, "quant") == run(folder, "quant", cache=False)
    assert list((folder / "kept").iterdir()) == []


def test_a_folder_that_cannot_be_written_keeps_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any, **options: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reference.tempfile, "mkdtemp", refused)
    assert run(folder, "quant") == run(folder, "quant", cache=False)
    assert list((folder / "kept").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(folder: Path) -> None:
    (folder / "kept").write_text("a file")
    with pytest.raises(UserError, match=r"kept: File exists; required: a folder"):
        run(folder, "quant")
