"""ONNX Runtime's own sessions where a GPU is believed to be there: by its CPU provider, there is no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.operator_model import operator_layout, operator_model, random_constants
from tests.runtime.cuda.stand_in import build_driver, environment, write_bundle
from tests.runtime.fused import needs_library
from zq2onnx.opset import OPERATORS

pytestmark = needs_library

RUN = """
import sys
import numpy as np, onnxruntime as ort
from zq2onnx.runtime import InferenceSession, register
options = ort.SessionOptions()
print(*register(options, sys.argv[2] or None, sys.argv[3] or None))
session = InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rng = np.random.default_rng(0)
result = session.run(None, {"A": rng.standard_normal((3, 96)).astype(np.float16)})[0]
print(float(np.abs(result.astype(np.float64)).sum()))
print("libcuda" in open("/proc/self/maps").read())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("session")
    write_bundle(made / "bundle", "sm_90")
    build_driver(made / "driver")
    operator = OPERATORS["MatMulW4A16LoRC"]
    layout = operator_layout(operator, 96, 20, 32)
    constants = random_constants(operator, layout, np.random.default_rng(0), dtype=np.float16)
    (made / "model.onnx").write_bytes(operator_model(operator, layout, constants).SerializeToString())
    return made


def run(folder: Path, ops: str, provider: str) -> tuple[list[str], float, bool]:
    """Names that are registered, the sum of a result, and whether the driver was opened."""
    command = [sys.executable, "-c", RUN, str(folder / "model.onnx"), ops, provider]
    seen = environment(folder / "driver", folder / "bundle")
    done = subprocess.run(command, capture_output=True, text=True, env=seen)
    assert done.returncode == 0, done.stderr
    names, total, opened = done.stdout.splitlines()
    return names.split(), float(total), opened == "True"


def test_an_operator_of_both_kernels_runs_by_the_cpus_there(folder: Path) -> None:
    stock = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    a = np.random.default_rng(0).standard_normal((3, 96)).astype(np.float16)
    expected = float(np.abs(stock.run(None, {"A": a})[0].astype(np.float64)).sum())
    names, total, opened = run(folder, "all", "cuda")
    assert set(names) == set(OPERATORS) and opened
    assert total == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("provider", ["cpu", ""])
def test_a_cpu_session_touches_no_driver(folder: Path, provider: str) -> None:
    """Nor does one that says nothing, where ONNX Runtime has no CUDA provider."""
    if not provider and "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("ONNX Runtime has the CUDA provider")
    names, _, opened = run(folder, "all", provider)
    assert set(names) == set(OPERATORS) and not opened


def test_on_a_gpu_nothing_is_registered_unasked(folder: Path) -> None:
    names, _, opened = run(folder, "", "cuda")
    assert names == [] and opened
