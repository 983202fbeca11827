"""Language models score texts by the operator library as they do on stock kernels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

import zq2onnx
from tests import zoo
from tests.runtime.fused import needs_library
from zq2onnx.evaluation import evaluate
from zq2onnx.runtime.library import register, registered_operators

pytestmark = needs_library

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TINY = Path(__file__).resolve().parents[2] / "models" / "tiny"
CLOSE = 1e-4
"""As a part of the perplexity."""


def perplexity(model: Path, text: Path, tokenizer: Path, length: int, windows: int) -> float:
    (score,) = evaluate([model], [text], tokenizer, length=length, windows=windows).models
    return score.perplexity


def with_library(monkeypatch: pytest.MonkeyPatch, ran: list[str]) -> None:
    """Let evaluation run nodes by the library; `ran` takes the names that were registered."""

    def session(file: str, options: ort.SessionOptions, **rest: Any) -> ort.InferenceSession:
        register(options, "all", "cpu")
        ran.extend(registered_operators(options) or ())
        return ort.InferenceSession(file, options, **rest)

    fused = SimpleNamespace(**{**vars(ort), "InferenceSession": session})
    monkeypatch.setattr("zq2onnx.evaluation.session.require_onnxruntime", lambda: fused)


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w3a16", "w2a16"])
def test_tiny_model_scores_alike(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    zq2onnx.convert(TINY / "model.onnx", path, scheme=scheme, group_size=32, lorc_rank=4, check="none")
    given = path, TINY / "heldout.txt", TINY, 64, 8
    stock, ran = perplexity(*given), list[str]()
    with_library(monkeypatch, ran)
    assert perplexity(*given) == pytest.approx(stock, rel=CLOSE)
    assert f"MatMul{scheme.upper()}LoRC" in ran


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data beside the checkout")
def test_trained_model_scores_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.model("opt-17m")
    path = tmp_path / "model.onnx"
    zq2onnx.convert(model, path, scheme="w3a16", group_size=64, lorc_rank=8, check="none")
    given = path, DATA / "wikitext2-test.txt", model.parent, 256, 12
    stock = perplexity(*given)
    with_library(monkeypatch, [])
    assert perplexity(*given) == pytest.approx(stock, rel=CLOSE)
