"""The public names, and what an import of them needs."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zq2onnx

PUBLIC = {
    "CheckFailed": "zq2onnx.errors",
    "Report": "zq2onnx.report",
    "Scheme": "zq2onnx.scheme",
    "UserError": "zq2onnx.errors",
    "compare": "zq2onnx.diagnosis",
    "convert": "zq2onnx.pipeline",
    "convert_within": "zq2onnx.planning.spend",
    "evaluate": "zq2onnx.evaluation",
    "measure_sensitivity": "zq2onnx.planning.sensitivity",
    "run_study": "zq2onnx.study",
}

# Run in a fresh interpreter, as on a host that only serves models.
WITHOUT_TOOLCHAIN = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"onnx", "onnx_ir", "onnxscript", "torch", "transformers", "triton"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import zq2onnx
import zq2onnx.runtime as runtime
names = [module.name for module in pkgutil.walk_packages(runtime.__path__, "zq2onnx.runtime.")]
for name in names:
    if not name.startswith(compilers):
        importlib.import_module(name)
print(*names)
"""

COMPILERS = ("zq2onnx.runtime.kernels.device.", "zq2onnx.runtime.kernels.compilation")
"""What of the runtime is Triton's: it compiles what a host runs."""


def test_names_are_the_agreed_ones() -> None:
    assert sorted(zq2onnx.__all__) == sorted({*PUBLIC, "__version__"})
    assert set(zq2onnx.__all__) <= set(dir(zq2onnx))


@pytest.mark.parametrize(("name", "home"), PUBLIC.items())
def test_name_is_what_its_module_defines(name: str, home: str) -> None:
    assert getattr(zq2onnx, name) is getattr(importlib.import_module(home), name)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = zq2onnx.quantise


def test_version_is_a_release_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", zq2onnx.__version__)


def test_runtime_needs_neither_onnx_nor_torch(tmp_path: Path) -> None:
    root = Path(zq2onnx.__file__).parent.parent
    script = f"import sys; sys.path.insert(0, {str(root)!r})\ncompilers = {COMPILERS}\n{WITHOUT_TOOLCHAIN}"
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert {"zq2onnx.runtime.reference", "zq2onnx.runtime.kernels.manifest"} <= set(run.stdout.split())


def test_import_loads_nothing_heavy(tmp_path: Path) -> None:
    root = Path(zq2onnx.__file__).parent.parent
    script = (
        f"import sys; sys.path.insert(0, {str(root)!r}); import zq2onnx;"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
