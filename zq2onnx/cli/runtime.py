"""`zq2onnx runtime`: the operator library on this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from zq2onnx.cli import console
from zq2onnx.errors import UserError

if TYPE_CHECKING:
    from zq2onnx.runtime.library import CudaDescription, LibraryDescription, OperatorChoice

runtime = typer.Typer(
    help="The operator library: fused kernels for the nodes of converted models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@runtime.callback()
def _runtime() -> None:
    """A group, although it has one command."""


@runtime.command()
def info() -> None:
    """Say where the operator library is, and which operators it would register in a session, and why.

    For sessions on the CPU and on a GPU: there also which driver, GPUs and compiled kernels are found. Where
    ONNX Runtime has the CUDA provider, a session that does not say what it runs on is taken to run on a GPU
    if there is one.

    ZQ2ONNX_OPS (names, all or none) and ZQ2ONNX_PROVIDER (cpu or cuda) change that, here as in a session.
    An operator that is not registered runs as its function says, on stock kernels.
    """
    from zq2onnx.runtime.library import PROVIDER_VARIABLE, PROVIDERS, describe, library_file

    if library_file() is None:
        _print("library: not built, for want of a C++17 compiler; models run on stock kernels")
        return
    asked = os.environ.get(PROVIDER_VARIABLE)
    descriptions = [describe(provider=provider) for provider in (PROVIDERS if not asked else [None])]
    _print_library(descriptions[0])
    for description in descriptions:
        _print("")
        _print(f"in a session on {'a GPU' if description.cuda else 'the CPU'}:")
        if description.cuda is not None:
            _print_cuda(description.cuda)
        _print_operators(description.operators)


def _print(line: str) -> None:
    console.stdout.print(line, soft_wrap=True)


def _print_library(description: LibraryDescription) -> None:
    _print(f"library: {description.path}")
    _print(f"ONNX Runtime API: {description.api_version} or later")
    _print(f"CPU: {' '.join(description.cpu_features) or 'nothing beyond the base'}")
    _print(f"CPU kernels: {' '.join(description.kernels)}")


def _print_cuda(found: CudaDescription) -> None:
    _print(f"CUDA driver: {found.driver or 'none'}")
    for index, (name, architecture) in enumerate(found.gpus):
        _print(f"GPU {index}: {name} ({architecture})")
    if not found.gpus:
        _print(f"GPU: none ({found.why_no_gpu})")
    _print(f"CUDA kernels: {found.why_no_kernels or _bundle(found.bundle)}")


def _bundle(folder: str) -> str:
    """The compiled kernels by what they are for."""
    from pathlib import Path

    from zq2onnx.runtime.kernels.manifest import read_manifest

    try:
        manifest = read_manifest(Path(folder))
    except UserError as error:  # which looks closer than the library does before it loads a kernel
        return str(error)
    ptx = ", and PTX" if any(kernel.form == "ptx" for kernel in manifest.kernels) else ""
    return f"{folder}, for {' '.join(manifest.architectures)}{ptx}"


def _print_operators(choices: tuple[OperatorChoice, ...]) -> None:
    from rich.table import Table

    whys = {choice.why for choice in choices}
    if len(whys) == 1 and not choices[0].registered:
        _print(f"no operator is registered: {whys.pop()}")
        return
    table = Table("operator", "registered", "why", box=None, pad_edge=False)
    for choice in choices:
        table.add_row(choice.name, "yes" if choice.registered else "no", choice.why)
    console.stdout.print(table)
    if not any(choice.registered for choice in choices):
        _print("no operator is registered: all run as their functions say, on stock kernels")
