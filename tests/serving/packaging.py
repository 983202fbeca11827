"""Packages for onnxruntime-genai, made by the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from zq2onnx.cli.app import main


def make(*arguments: str | Path) -> int:
    """Make one, and return the command's exit code."""
    return main(["package", *map(str, arguments), "--for", "genai"])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a command ends with."""
    assert make(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed.err
