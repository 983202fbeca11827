"""Without a working onnxruntime, one line says what to install."""

from __future__ import annotations

import sys
import types

import pytest

from zq2onnx.errors import UserError
from zq2onnx.runtime.providers import require_onnxruntime

ADVICE = r'pip install "zq2onnx\[cpu\]" or, for CUDA, pip install "zq2onnx\[gpu\]"; never both'


def test_the_installed_package_is_returned() -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    assert require_onnxruntime() is onnxruntime


def test_nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=f"onnxruntime is not installed; .*{ADVICE}") as caught:
        require_onnxruntime()
    assert caught.value.exit_code == 2


def test_the_empty_folder_that_uninstalling_one_of_two_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(UserError, match=f"installed in part .*{ADVICE}"):
        require_onnxruntime()
