"""What becomes of an error at the command line: one line on stderr, and an exit code."""

from __future__ import annotations

import enum
import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from rich.console import Console

import zq2onnx
from zq2onnx.cli import console
from zq2onnx.cli.app import main, run
from zq2onnx.errors import CheckFailed, UserError

ROOT = Path(__file__).resolve().parent.parent.parent


def failing(error: BaseException) -> typer.Typer:
    """An application of two commands, of which `convert` raises."""
    application = typer.Typer(rich_markup_mode=None)

    @application.command()
    def convert() -> None:
        raise error

    @application.command()
    def idle() -> None:
        pass

    return application


def system_error(number: int, name: str | None) -> OSError:
    """What the system raises for an error number."""
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("found 3", "needs 4", "add 1"), 2, "error: found 3; required: needs 4; add 1"),
        (CheckFailed("node 'a' is off by 0.5"), 1, "error: node 'a' is off by 0.5"),
        (UserError("two\n  lines"), 2, "error: two   lines"),
        (UserError("weights[0] of m[1].onnx"), 2, "error: weights[0] of m[1].onnx"),
        (
            system_error(errno.ENOSPC, "out.onnx.data"),
            2,
            "error: out.onnx.data; no space left on device; free some space or choose another folder",
        ),
        (
            system_error(errno.ENOSPC, None),
            2,
            "error: no space left on device; free some space or choose another folder",
        ),
        (system_error(errno.ENOENT, "m.onnx"), 2, "error: m.onnx; no such file or directory; check the path"),
        (system_error(errno.EISDIR, "dir"), 2, "error: dir; is a directory; name a file"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            'error: torch is not installed; this command needs it; pip install "zq2onnx[torch]"',
        ),
        (
            ValueError("seven"),
            1,
            "internal error: ValueError: seven; this is a defect of zq2onnx;"
            " run again with --debug for the traceback",
        ),
        (KeyboardInterrupt(), 130, "interrupted; --resume goes on from here"),
    ],
)
def test_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(failing(error), ["convert"]) == code
    output = capsys.readouterr()
    assert output.err == line + "\n"
    assert output.out == ""


@pytest.mark.parametrize("error", [UserError("found"), ValueError("found")])
@pytest.mark.parametrize("arguments", [["--debug", "convert"], ["convert", "--debug"]])
def test_debug_shows_the_traceback(
    error: Exception, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(failing(error), arguments) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "error: " in lines[-1] and "found" in lines[-1]


def test_success_prints_nothing_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(failing(ValueError()), ["idle"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_commands_own_exit_code_is_kept() -> None:
    assert run(failing(typer.Exit(3)), ["convert"]) == 3


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["paint", "--colour", "green"], "'red', 'blue'"),
        (["paint", "--colour"], "--colour"),
        (["paint"], "--colour"),
        (["paint", "--colour", "red", "--hue", "7"], "--hue"),
        (["draw"], "draw"),
    ],
)
def test_usage_error_is_one_line(
    arguments: list[str], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    application = failing(ValueError())

    @application.command()
    def paint(colour: Annotated[Colour, typer.Option()]) -> None:
        print(colour)

    assert run(application, arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert found in output.err
    assert re.search(r"; see 'zq2onnx( paint)? --help'\n$", output.err)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"zq2onnx {zq2onnx.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {"export", "convert", "inspect", "eval"} <= {line[0] for line in lines if line}


@pytest.mark.parametrize("command", ["export", "convert", "inspect", "eval"])
def test_unknown_option_of_every_command_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--no-such-option"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from zq2onnx.cli.app import main; code = main(['convert', '--help']);"
        "print(code, sorted({'onnx', 'onnx_ir', 'onnxruntime', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_module_runs_as_the_command() -> None:
    command = [sys.executable, "-m", "zq2onnx", "convert", "nowhere.onnx", "--colour"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "--colour" in done.stderr


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("converting", 10.0, unit="params") as advance:
        advance(5.0)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in place of stderr."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "stderr", Console(stderr=True, force_terminal=True, markup=False))


@pytest.mark.usefixtures("terminal")
def test_progress_shows_amount_and_description_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("converting [a]", 10e6, unit="params") as advance:
        advance(5e6)
    output = capsys.readouterr()
    assert output.out == ""
    assert "converting [a]" in output.err and "5.0 M params" in output.err


@pytest.mark.usefixtures("terminal")
def test_quiet_progress_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("converting", 10.0, quiet=True) as advance:
        advance(5.0)
    assert capsys.readouterr() == ("", "")
