"""`zq2onnx study` on the command line: what it prints, writes and refuses."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.study.running import LABELS, Conversions, request
from zq2onnx.cli import app as command_line
from zq2onnx.cli.app import app
from zq2onnx.errors import UserError

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def arguments(root: Path, *more: object) -> list[str]:
    """The bundled model, rounded to nearest in 4 and 2 bits."""
    asked = request(root)
    words = ["study", asked.model, "--text", asked.texts[0], "--text", asked.texts[1], "-o", asked.folder]
    words += ["--schemes", "w4a16, w2a16", "--methods", "rtn", "--group-sizes", "64", "--lorc-ranks", "0"]
    return [str(word) for word in (*words, "--length", 16, "--windows", 3, "--no-html", *more)]


def invoke(words: list[str]) -> Result:
    return CliRunner().invoke(app, words)


def test_it_prints_the_table_and_the_advice(tmp_path: Path) -> None:
    said = invoke(arguments(tmp_path))
    assert said.exit_code == 0, said.output
    assert said.stderr == ""
    rows = [line for line in said.stdout.splitlines() if re.search(r"rtn\s*│ 64\s*│ 0", line)]
    assert len(rows) == 1 and rows[0].count("Class-") == 2
    assert "zq2onnx convert" in said.stdout
    out = tmp_path / "out"
    assert f"written: {out}/study.md, {out}/study.csv, {out}/study.json\n" in said.stdout
    assert not (out / "study.html").exists()


def test_html_is_written_beside_the_rest(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    pytest.importorskip("jinja2", reason="needs jinja2")
    words = [word for word in arguments(tmp_path, "--quiet") if word != "--no-html"]
    said = invoke(words)
    assert (said.exit_code, said.output) == (0, "")
    page = (tmp_path / "out" / "study.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html") and "w2a16" in page


def test_a_missing_package_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    class Page:
        def __getattr__(self, name: str) -> None:
            absent()

    monkeypatch.setitem(sys.modules, "zq2onnx.pages.study_report", Page())
    words = [word for word in arguments(tmp_path) if word != "--no-html"]
    error = invoke(words).exception
    assert isinstance(error, UserError)
    assert str(error) == (
        "matplotlib is not installed; study.html needs it;"
        ' pip install "zq2onnx[report]", or leave the page out with --no-html'
    )
    assert not (tmp_path / "out").exists()


def test_failed_cells_are_exit_code_2_with_everything_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(label: str) -> None:
        if label == LABELS[1]:
            raise UserError("no room")

    Conversions([]).watch(monkeypatch, fail)
    assert command_line.main(arguments(tmp_path)) == 2
    out = tmp_path / "out"
    said = capsys.readouterr().err
    assert said == (
        "error: 1 of 2 cells gave no result, the first: w2a16 g64 rtn rank 0: no room;"
        f" {out}/study.md has every reason; the same command tries them again\n"
    )
    assert "failed: no room" in (out / "study.md").read_text()


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(label: str) -> None:
        raise KeyboardInterrupt

    Conversions([]).watch(monkeypatch, interrupt)
    assert command_line.main(arguments(tmp_path)) == 130
    assert capsys.readouterr().err.strip() == "interrupted; the same command goes on from here"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--methods", "gptq"), "method gptq; required: calibration data"),
        (("--schemes", ","), "--schemes names nothing"),
        (("--lorc-ranks", "0,x"), "--lorc-ranks: 'x'; required: whole numbers"),
        (("--lorc-ranks", "-1"), "--lorc-ranks: '-1'; required: whole numbers"),
        (("--sensitivity",), "--sensitivity; required: calibration data"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path: Path, more: tuple[Any, ...], said: str) -> None:
    error = invoke(arguments(tmp_path, *more)).exception
    assert isinstance(error, UserError)
    assert said in str(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["--text", "-o"])
def test_texts_and_folder_are_required(tmp_path: Path, missing: str) -> None:
    words = arguments(tmp_path)
    while missing in words:
        place = words.index(missing)
        del words[place : place + 2]
    said = invoke(words)
    assert said.exit_code == 2 and missing in said.output
