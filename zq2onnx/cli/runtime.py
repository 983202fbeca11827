"""`zq2onnx runtime`: the operator library on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from zq2onnx.cli import console
from zq2onnx.errors import UserError

if TYPE_CHECKING:
    from zq2onnx.runtime.library import LibraryDescription

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

    ZQ2ONNX_OPS (names, all or none) and ZQ2ONNX_PROVIDER (cpu or cuda) change that, here as in a session.
    An operator that is not registered runs as its function says, on stock kernels.
    """
    from zq2onnx.runtime.library import describe, library_file

    if library_file() is None:
        console.stdout.print("library: not built, for want of a C++17 compiler; models run on stock kernels")
    else:
        _print(describe())
    _print_bundle()


def _print_bundle() -> None:
    """Which CUDA kernels are compiled; ONNX Runtime does not run them yet."""
    from zq2onnx.runtime.kernels.manifest import bundle_folder, read_manifest

    folder = bundle_folder()
    if not folder.exists():
        console.stdout.print("CUDA kernels: none compiled (zq2onnx kernels build); GPUs run stock kernels")
        return
    try:
        found = " ".join(read_manifest(folder).architectures)
    except UserError as error:
        console.stdout.print(f"CUDA kernels: {error}", soft_wrap=True)
    else:
        said = f"CUDA kernels: {folder}, for {found}; not registered yet: GPUs run stock kernels"
        console.stdout.print(said, soft_wrap=True)


def _print(description: LibraryDescription) -> None:
    from rich.table import Table

    console.stdout.print(f"library: {description.path}", soft_wrap=True)
    console.stdout.print(f"ONNX Runtime API: {description.api_version} or later")
    console.stdout.print(f"CPU: {' '.join(description.cpu_features) or 'nothing beyond the base'}")
    console.stdout.print(f"kernels: {' '.join(description.kernels)}")
    table = Table("operator", "registered", "why", box=None, pad_edge=False)
    for choice in description.operators:
        table.add_row(choice.name, "yes" if choice.registered else "no", choice.why)
    console.stdout.print(table)
    if not any(choice.registered for choice in description.operators):
        console.stdout.print("no operator is registered: all run as their functions say, on stock kernels")
