"""Sessions with the operator library: whole models, several sessions, subsets, the environment."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import zq2onnx
from tests.operator_model import operator_layout, operator_model, random_constants
from tests.runtime.fused import check, model_of, needs_library, node_types, open_session, options
from zq2onnx.opset import OPERATORS
from zq2onnx.runtime import InferenceSession
from zq2onnx.runtime.library import describe, library_file, registered_operators
from zq2onnx.runtime.session import wishes_for

pytestmark = needs_library


@pytest.mark.parametrize("name", ["MatMulW4A16LoRC", "MatMulW8A8LoRC", "MatMulW3A8BlockLoRC"])
def test_one_name_for_nodes_of_all_kinds(name: str) -> None:
    operator, rng = OPERATORS[name], np.random.default_rng(1)
    kinds = itertools.product([np.float32, np.float16], [32, 1024, "row"], [4, 64], [True, False])
    parts, fed = [], {}
    for at, (dtype, group_size, rank, int8_factors) in enumerate(kinds):
        layout = operator_layout(operator, 1200, 20, group_size)
        contents: dict[str, Any] = {
            "dtype": dtype,
            "rank": rank,
            "int8_factors": int8_factors,
            "bias": at % 3 > 0,
        }
        parts.append((operator, layout, random_constants(operator, layout, rng, **contents)))
        fed[f"A_{at}"] = rng.standard_normal((3, 1200)).astype(dtype)
    results = open_session(model_of(parts)).run(None, fed)
    for at, ((_, layout, constants), result) in enumerate(zip(parts, results, strict=True)):
        check(operator, layout, {"A": fed[f"A_{at}"], **constants}, result)


@pytest.mark.parametrize("scheme", ["w3a16", "w8a8"])
def test_library_and_functions_say_the_same(scheme: str, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "converted.onnx"
    zq2onnx.convert(tiny_model / "model.onnx", path, scheme=scheme, group_size=64, check="none", jobs=1)
    ids = np.random.default_rng(0).integers(0, 200, (2, 24), np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    saved = options()
    saved.optimized_model_filepath = str(tmp_path / "fused.onnx")
    fused = ort.InferenceSession(path, saved, providers=["CPUExecutionProvider"])
    stock = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = node_types(saved.optimized_model_filepath)
    assert len(names) == 24 and len(set(names)) == 1
    wanted = {item.name: feeds[item.name] for item in stock.get_inputs()}
    expected, result = (each.run(["logits"], wanted)[0].astype(np.float64) for each in (stock, fused))
    assert np.abs(result - expected).max() <= 0.01 * np.abs(expected).max()


def test_a_subset_leaves_the_others_to_their_functions(tmp_path: Path) -> None:
    rng, parts = np.random.default_rng(2), []
    for name in ("MatMulW4A16", "MatMulW3A16", "MatMulW8A16LoRC"):
        layout = operator_layout(OPERATORS[name], 96, 20, 32)
        parts.append((OPERATORS[name], layout, random_constants(OPERATORS[name], layout, rng)))
    fed = {f"A_{at}": rng.standard_normal((3, 96)).astype(np.float32) for at in range(3)}
    for ops in ([], ["MatMulW3A16"], ["MatMulW8A16LoRC", "MatMulW4A16"]):
        made = options(ops)
        made.optimized_model_filepath = str(tmp_path / "model.onnx")
        results = open_session(model_of(parts), made).run(None, fed)
        assert sorted(node_types(made.optimized_model_filepath)) == sorted(ops)
        for at, ((operator, layout, constants), result) in enumerate(zip(parts, results, strict=True)):
            check(operator, layout, {"A": fed[f"A_{at}"], **constants}, result)


def test_sessions_in_threads() -> None:
    operator, rng = OPERATORS["MatMulW4A8LoRC"], np.random.default_rng(4)
    layout = operator_layout(operator, 2100, 80, 32)  # large enough for several threads to be asked
    model = operator_model(operator, layout, random_constants(operator, layout, rng))
    a = rng.standard_normal((70, 2100)).astype(np.float32)
    shared = options(threads=2)

    def one(at: int) -> bytes:
        session = open_session(model, shared if at % 2 else options())
        return b"".join(session.run(None, {"A": a})[0].tobytes() for _ in range(3))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(one, range(32)))) == 1


def test_one_session_runs_in_threads() -> None:
    operator, rng = OPERATORS["MatMulW2A8Block"], np.random.default_rng(4)
    layout = operator_layout(operator, 2100, 80, 32)
    model = operator_model(operator, layout, random_constants(operator, layout, rng))
    session = open_session(model, options(threads=2))
    tokens = [rng.standard_normal((at % 3 * 35 + 1, 2100)).astype(np.float32) for at in range(24)]
    alone = [session.run(None, {"A": a})[0] for a in tokens]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda a: session.run(None, {"A": a})[0], tokens))
    assert all(np.array_equal(*pair) for pair in zip(alone, together, strict=True))


CUDA, CPU, TENSORRT = (f"{name}ExecutionProvider" for name in ("CUDA", "CPU", "Tensorrt"))


@pytest.mark.parametrize(
    ("providers", "wishes"),
    [
        (None, {"provider": "cpu"}),
        ([], {"provider": "cpu"}),
        ([CPU], {"provider": "cpu"}),
        (["AzureExecutionProvider", CPU], {"provider": "cpu"}),
        ([(CUDA, {"device_id": 1}), CPU], {"provider": "cuda"}),
        ([TENSORRT, CUDA, CPU], {"provider": "cuda"}),
        ([TENSORRT, CPU], {"ops": []}),
        ([("DmlExecutionProvider", {}), CPU], {"ops": []}),
    ],
)
def test_what_is_registered_follows_from_the_providers(
    providers: list[Any] | None, wishes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZQ2ONNX_PROVIDER", raising=False)
    assert wishes_for(providers, ort.SessionOptions()) == wishes
    monkeypatch.setenv("ZQ2ONNX_PROVIDER", "cuda")  # counts where the session says nothing
    assert wishes_for(providers, ort.SessionOptions()) == (wishes if providers else {})


PAYING = tuple(
    choice.name for choice in (describe("", "cpu").operators if library_file() else ()) if choice.registered
)
"""What this processor's kernels are measured to be faster for; the description has tests of its own."""


def session_model() -> bytes:
    operator = OPERATORS["MatMulW4A16"]
    layout = operator_layout(operator, 64, 20, 32)
    constants = random_constants(operator, layout, np.random.default_rng(0))
    return bytes(operator_model(operator, layout, constants).SerializeToString())


@pytest.mark.parametrize(
    ("ops", "provider", "registered"),
    [
        (None, None, PAYING),
        ("", "", PAYING),
        ("none", "cpu", ()),
        (" MatMulW4A16 ,MatMulW2A8,", "cpu", ("MatMulW4A16", "MatMulW2A8")),
        ("all", None, tuple(OPERATORS)),
        ("all", "cuda", ()),
    ],
)
def test_session_obeys_the_environment(
    ops: str | None, provider: str | None, registered: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (("ZQ2ONNX_OPS", ops), ("ZQ2ONNX_PROVIDER", provider)):
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, value)
    made = ort.SessionOptions()
    session = InferenceSession(session_model(), made)
    assert set(registered_operators(made) or ()) == set(registered)
    assert isinstance(session, ort.InferenceSession)
    assert session.run(None, {"A": np.ones((2, 64), np.float32)})[0].shape == (2, 20)


def test_session_says_what_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZQ2ONNX_OPS", "all")
    monkeypatch.setenv("ZQ2ONNX_PROVIDER", "cuda")
    made = ort.SessionOptions()
    InferenceSession(session_model(), made, providers=["CPUExecutionProvider"])
    assert set(registered_operators(made) or ()) == set(OPERATORS)


def test_session_takes_options_that_are_registered() -> None:
    made = options(["MatMulW4A16"])
    for _ in range(2):
        InferenceSession(session_model(), made, ["CPUExecutionProvider"])
    assert registered_operators(made) == ("MatMulW4A16",)


def test_session_without_the_library_is_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zq2onnx.runtime.session.library_file", lambda: None)
    made = ort.SessionOptions()
    InferenceSession(session_model(), made)
    assert registered_operators(made) is None
