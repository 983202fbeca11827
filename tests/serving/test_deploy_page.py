"""The programs on docs/deploy.md run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import zq2onnx
from tests import zoo
from tests.conftest import ROOT
from tests.runtime.fused import needs_library
from zq2onnx.packaging.package import Wishes, package
from zq2onnx.packaging.target import Target

pytestmark = needs_library

SECTIONS = re.split(r"^## ", (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
PROGRAMS = [
    (section.splitlines()[0], program)
    for section in SECTIONS
    for program in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
]
ELSEWHERE = "optimum"
"""Its environment is another: tests/runtimes/run_optimum.py makes one."""

NEEDS = {"onnxruntime-genai": "onnxruntime_genai", "Without a Python tokenizer": "onnxruntime_extensions"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's commands make."""
    home = tmp_path_factory.mktemp("deploy")
    model = home / "model.w4a16.onnx"
    zq2onnx.convert(zoo.model("tiny-cache"), model, group_size=32, check="none")
    graphs = Wishes(tokenizer_graph=True)
    package(model, Target.GENAI, home / "served", fused=True, wishes=graphs)
    package(model, Target.ORT, home / "plain", fused=True)
    return home


def test_every_stack_has_a_program() -> None:
    titles = [title for title, _ in PROGRAMS]
    assert titles.count("ONNX Runtime, in Python") == 2
    for title in ("ONNX Runtime on a GPU", ELSEWHERE, *NEEDS):
        assert titles.count(title) == 1


@pytest.mark.parametrize(
    ("title", "program"), [each for each in PROGRAMS if each[0] != ELSEWHERE], ids=lambda part: part[:20]
)
def test_program(title: str, program: str, folder: Path) -> None:
    if title in NEEDS:
        pytest.importorskip(NEEDS[title], reason=f"needs {NEEDS[title]}")
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
