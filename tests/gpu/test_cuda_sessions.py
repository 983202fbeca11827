"""Our nodes on a GPU, in ONNX Runtime's sessions: by the library's kernels, beside oracle and functions.

Skips, with the reason, where there is no GPU, no compiled kernel for it, or no onnxruntime-gpu.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import zq2onnx
from tests import zoo
from tests.kernels import interpreted
from tests.kernels.problems import make
from tests.operator_model import Array, operator_model
from tests.runtime.fused import around_bfloat16, check
from zq2onnx.opset import OPERATORS
from zq2onnx.runtime.kernels.problem import Problem
from zq2onnx.runtime.library import describe, library_file, register
from zq2onnx.runtime.providers import CPU_PROVIDER, CUDA_PROVIDER


def why_not() -> str:
    """What is missing; "" where there is a GPU. That it has kernels is tested, not presumed."""
    if CUDA_PROVIDER not in ort.get_available_providers():
        return f"onnxruntime {ort.__version__} has no CUDA provider"
    if library_file() is None:
        return "the operator library is not built"
    found = describe("all", "cuda").cuda
    return "no GPU" if found is None else found.why_no_gpu


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(why_not()), reason=f"no GPU tests: {why_not()}")]


def session(
    model: onnx.ModelProto | Path, ops: str | list[str] = "all", **provider_options: str
) -> ort.InferenceSession:
    """A session on the GPU, of which no node may come to the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    names = register(options, ops, "cuda")
    assert set(names) == (set(OPERATORS) if ops == "all" else set(ops))
    content = str(model) if isinstance(model, Path) else model.SerializeToString()
    made = ort.InferenceSession(content, options, providers=[(CUDA_PROVIDER, provider_options)])
    assert made.get_providers()[0] == CUDA_PROVIDER
    return made


def test_every_operator_has_kernels_for_every_gpu() -> None:
    assert {choice.why for choice in describe("all", "cuda").operators} == {"asked for"}


def node_model(problem: Problem, inputs: dict[str, Array]) -> onnx.ModelProto:
    constants = {name: array for name, array in inputs.items() if name != "A"}
    return operator_model(problem.operator, problem.layout, constants)


def compare(problem: Problem, inputs: dict[str, Array], result: Array) -> None:
    """With the oracle: float32 by its sums' length, narrower types by what is rounded inside a kernel too."""
    if problem.dtype == "fp32":
        check(problem.operator, problem.layout, inputs, result)
    else:
        interpreted.check(problem, inputs, result.astype(np.float32))


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_operator_is_the_oracle(name: str, dtype: str) -> None:
    operator = OPERATORS[name]
    for turn, group in enumerate((16, 32, 64, 128, 256, 1024, "row")):
        k = 1040 if group == 1024 else (256, 272, 512)[turn % 3]
        options: dict[str, Any] = {"bias": turn % 2 > 0, "int8_factors": turn % 3 > 0}
        for tokens in (1, 9, 130):
            problem, inputs = make(operator, tokens, k, (48, 37)[turn % 2], group, dtype, **options)
            model = node_model(problem, inputs)
            a = inputs["A"]
            if dtype == "bf16":
                around_bfloat16(model)
                a = a.astype(np.float32)
            made = session(model)
            first, again = (np.asarray(made.run(None, {"A": a})[0]) for _ in range(2))
            compare(problem, inputs, first)
            assert first.tobytes() == again.tobytes()


def bound(made: ort.InferenceSession, a: Array, n: int) -> tuple[Any, ort.OrtValue, ort.OrtValue]:
    x = ort.OrtValue.ortvalue_from_numpy(a, "cuda", 0)
    y = ort.OrtValue.ortvalue_from_numpy(np.zeros((len(a), n), a.dtype), "cuda", 0)
    binding = made.io_binding()
    binding.bind_ortvalue_input("A", x)
    binding.bind_ortvalue_output("Y", y)
    return binding, x, y


@pytest.mark.parametrize("name", ["MatMulW4A16LoRC", "MatMulW8A8LoRC", "MatMulW3A16"])
def test_a_cuda_graph_replays_it(name: str) -> None:
    problem, inputs = make(OPERATORS[name], 3, 512, 48, 128, "fp16")
    model, a = node_model(problem, inputs), inputs["A"]
    plain = session(model)
    graph = session(model, enable_cuda_graph="1")
    binding, x, y = bound(graph, a, 48)
    for scale in (1.0, -0.5, 2.0):
        changed = (a * np.float16(scale)).astype(np.float16)
        x.update_inplace(changed)
        graph.run_with_iobinding(binding)
        assert y.numpy().tobytes() == plain.run(None, {"A": changed})[0].tobytes()


def test_sessions_and_threads() -> None:
    problem, inputs = make(OPERATORS["MatMulW4A8LoRC"], 40, 512, 48, 128, "fp16")
    model = node_model(problem, inputs)
    shared = session(model)

    def one(at: int) -> bytes:
        made = shared if at % 2 else session(model)
        return b"".join(made.run(None, {"A": inputs["A"]})[0].tobytes() for _ in range(3))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(one, range(16)))) == 1


@pytest.mark.parametrize("model", ["opt-fp16", "llama-fp16"])
@pytest.mark.parametrize("scheme", ["w4a16", "w8a8", "w4a8"])
@pytest.mark.parametrize(("group", "rank"), [(32, 0), (32, 8), (128, 0), (128, 8)])
def test_models_agree_with_their_functions(
    model: str, scheme: str, group: int, rank: int, tmp_path: Path
) -> None:
    path = tmp_path / "converted.onnx"
    source = zoo.model(model)
    zq2onnx.convert(source, path, scheme=scheme, group_size=group, lorc_rank=rank, check="none", jobs=1)
    ids = np.random.default_rng(0).integers(0, 90, (2, 24), np.int64)
    fed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    results = []
    for ops in ("all", []):
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        register(options, ops, "cuda")
        made = ort.InferenceSession(path, options, providers=[CUDA_PROVIDER, CPU_PROVIDER])
        results.append(made.run(["logits"], fed)[0].astype(np.float64))
        events = [event for event in json.loads(Path(made.end_profiling()).read_text()) if "args" in event]
        ours = {
            event["args"].get("provider") for event in events if event["args"].get("op_name") in OPERATORS
        }
        assert ours == ({CUDA_PROVIDER} if ops else set())
    fused, portable = results
    assert np.abs(fused - portable).max() <= 0.03 * np.abs(portable).max()
