"""The `zq2onnx` command: its subcommands, and what becomes of an error.

Exit codes: 0 done; 2 the user can mend it; 1 a check of our own, or the program itself, failed;
130 interrupted. An error is one line on stderr, whatever raised it; `--debug` adds the traceback.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from zq2onnx import __version__
from zq2onnx.cli.bench import bench
from zq2onnx.cli.compare import compare
from zq2onnx.cli.console import stderr, stdout
from zq2onnx.cli.convert import convert
from zq2onnx.cli.eval import eval_
from zq2onnx.cli.export import export
from zq2onnx.cli.generate import generate
from zq2onnx.cli.inspect import inspect
from zq2onnx.cli.kernels import kernels
from zq2onnx.cli.package import package
from zq2onnx.cli.runtime import runtime
from zq2onnx.cli.sensitivity import sensitivity
from zq2onnx.cli.study import study
from zq2onnx.errors import UserError, Zq2onnxError

INTERRUPTED = 130

app = typer.Typer(
    name="zq2onnx",
    epilog="--debug, anywhere on the line, shows the traceback of an error.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("export")(export)
app.command("convert")(convert)
app.command("inspect")(inspect)
app.command("eval")(eval_)
app.command("study")(study)
app.command("sensitivity")(sensitivity)
app.command("compare")(compare)
app.command("bench")(bench)
app.command("generate")(generate)
app.command("package")(package)
app.add_typer(runtime, name="runtime")
app.add_typer(kernels, name="kernels")

_MENDABLE = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EACCES: "change its permissions or choose another",
    errno.EPERM: "change its permissions or choose another",
    errno.EROFS: "choose another folder",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file",
    errno.EEXIST: "remove it or choose another",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "check its symbolic links",
    errno.EFBIG: "choose a file system that holds files of this size",
    errno.EMFILE: "raise the limit of open files",
}
"""System errors that the user can mend, each with its remedy."""

_EXTRAS = {
    "onnxruntime": 'pip install "zq2onnx[cpu]", or "zq2onnx[gpu]" for CUDA, never both',
    "torch": 'pip install "zq2onnx[torch]"',
    "transformers": 'pip install "zq2onnx[torch]"',
    "triton": 'pip install "zq2onnx[kernels]"',
    "jinja2": 'pip install "zq2onnx[report]"',
    "onnxruntime_extensions": 'pip install "zq2onnx[tokenizer]"',
    "matplotlib": 'pip install "zq2onnx[report]"',
}
"""Packages that the base install leaves out, each with how to get it."""


def _print_version(wanted: bool) -> None:
    if wanted:
        stdout.print(f"zq2onnx {__version__}")
        raise typer.Exit


@app.callback()
def _describe(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Quantize transformer ONNX models to 8, 4, 3 or 2 bits, with low-rank compensation."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; `sys.argv[1:]` if None.

    Returns:
        The exit code.
    """
    return run(app, sys.argv[1:] if argv is None else argv)


def run(application: typer.Typer, argv: Sequence[str]) -> int:
    """Run one command of `application`; print an error as one line, and return the exit code."""
    arguments, debug = _take_debug(argv)
    command = typer.main.get_command(application)
    try:
        # Typer returns a command's own exit code, and 130 where it caught Ctrl-C.
        result = command.main(_with_help(command, arguments), prog_name="zq2onnx", standalone_mode=False)
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, code = _explain(error)
        stderr.print(" ".join(message.splitlines()))
        return code
    except KeyboardInterrupt:
        result = INTERRUPTED
    if result == INTERRUPTED:
        again = "; the same command goes on from here"
        resume = {"convert": "; --resume goes on from here", "study": again, "kernels": again}
        stderr.print(f"interrupted{resume.get(arguments[0], '') if arguments else ''}")
    return result if isinstance(result, int) else 0


def _with_help(command: object, arguments: list[str]) -> list[str]:
    """The arguments; those that name a group of commands and none of it ask for help."""
    named = command
    for argument in arguments:
        named = getattr(named, "commands", {}).get(argument)
    return [*arguments, "--help"] if hasattr(named, "commands") else arguments


def _take_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Split `--debug`, which every command takes, from the other arguments.

    >>> _take_debug(["convert", "--debug", "m.onnx"]), _take_debug(["convert", "--", "--debug"])
    ((['convert', 'm.onnx'], True), (['convert', '--', '--debug'], False))
    """
    options = list(argv)
    end = options.index("--") if "--" in options else len(options)
    kept = [argument for argument in options[:end] if argument != "--debug"]
    return kept + options[end:], len(kept) < end


def _explain(error: Exception) -> tuple[str, int]:
    """One line about an error, and the exit code it stands for."""
    match error:
        case Zq2onnxError():
            return f"error: {error}", error.exit_code
        case typer.TyperException():
            return f"error: {_explain_usage(error)}", UserError.exit_code
        case typer.Abort():
            return "error: aborted", 1
        case OSError() if error.errno in _MENDABLE:
            return f"error: {_explain_system(error)}", UserError.exit_code
        case ModuleNotFoundError() if error.name in _EXTRAS:
            missing = f"{error.name} is not installed; this command needs it"
            return f"error: {missing}; {_EXTRAS[error.name]}", UserError.exit_code
    cause = f"{type(error).__name__}: {error}"
    advice = "this is a defect of zq2onnx; run again with --debug for the traceback"
    return f"internal error: {cause}; {advice}", 1


def _explain_usage(error: typer.TyperException) -> str:
    """What is wrong with the arguments, and where to read about them."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see '{context.command_path if context else 'zq2onnx'} --help'"


def _explain_system(error: OSError) -> str:
    """What the system refused, of which file, and the remedy."""
    files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    parts = (files, (error.strerror or str(error)).lower(), _MENDABLE[error.errno or 0])
    return "; ".join(part for part in parts if part)
