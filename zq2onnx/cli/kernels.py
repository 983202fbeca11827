"""`zq2onnx kernels`: the compiled CUDA kernels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zq2onnx.cli import console
from zq2onnx.errors import UserError

if TYPE_CHECKING:
    from zq2onnx.runtime.kernels.manifest import Manifest

kernels = typer.Typer(
    help="The CUDA kernels: Triton's, compiled ahead of time for hosts that have no Triton.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DEFAULT = "sm_80, sm_86, sm_89, sm_90, sm_100, sm_120"


@kernels.callback()
def _kernels() -> None:
    """A group of commands."""


@kernels.command()
def build(
    arch: Annotated[
        list[str] | None,
        typer.Option("--arch", metavar="SM", help=f"Architecture; may be repeated. Default: {DEFAULT}."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Folder for the bundle. Default: where sessions look for it, beside the operator library, "
            "or where ZQ2ONNX_KERNELS says.",
        ),
    ] = None,
    only: Annotated[
        str,
        typer.Option(
            metavar="REGEX",
            help="With -o: only kernels with names that it is found in, to try them. Sessions need all.",
        ),
    ] = "",
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Processes. Default: one for each processor.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Compile the CUDA kernels ahead of time. Needs Triton, and no GPU.

    Writes a cubin for each kernel and architecture; with one of sm_80, sm_86 and sm_89 also PTX, which
    drivers compile for architectures that have no cubins; and manifest.json, which says when and how each
    is launched. The folder then holds these architectures and no others. What is there already and would
    come out the same is kept; all of it takes some minutes on two processors.
    """
    from zq2onnx.runtime.kernels.bundle import build as build_bundle
    from zq2onnx.runtime.kernels.bundle import file_count
    from zq2onnx.runtime.kernels.configurations import ARCHITECTURES
    from zq2onnx.runtime.kernels.manifest import bundle_folder

    if only and output is None:
        raise UserError("--only without -o", "another folder than that of the installed bundle", "add -o DIR")
    folder, architectures = output or bundle_folder(), arch or ARCHITECTURES
    with console.progress("compiling", file_count(architectures, only), quiet) as advance:
        bundle, new = build_bundle(folder, architectures, only=only, jobs=jobs, advance=advance)
    if not quiet:
        _print(folder, bundle, new)


@kernels.command()
def info() -> None:
    """Say which compiled kernels are here: where sessions look for them, or where ZQ2ONNX_KERNELS says."""
    from zq2onnx.runtime.kernels.manifest import bundle_folder, read_manifest

    folder = bundle_folder()
    _print(folder, read_manifest(folder), None)


def _print(folder: Path, bundle: Manifest, new: int | None) -> None:
    from rich.table import Table

    table = Table("for", "form", "kernels", "MB", "registers", "shared KB", box=None, pad_edge=False)
    kinds = dict.fromkeys((kernel.architecture, kernel.form) for kernel in bundle.kernels)
    for architecture, form in kinds:
        of_kind = [made for made in bundle.kernels if (made.architecture, made.form) == (architecture, form)]
        table.add_row(
            architecture if form == "cubin" else f"{architecture} and later",
            form,
            str(len(of_kind)),
            f"{sum(made.bytes for made in of_kind) / 1e6:.1f}",
            f"up to {max(made.registers for made in of_kind)}" if form == "cubin" else "",
            f"up to {max(made.shared for made in of_kind) / 1024:.0f}",
        )
    console.stdout.print(table)
    spilling = [made.file for made in bundle.kernels if made.spilled]
    if spilling:
        console.stdout.print(f"{len(spilling)} spill registers, and are slower for it: {', '.join(spilling)}")
    size = sum(made.bytes for made in bundle.kernels) / 1e6
    said = "" if new is None else f", {new} of them new"
    console.stdout.print(
        f"{folder}: {len(bundle.kernels)} files{said}, {size:.1f} MB, Triton {bundle.triton},"
        f" ptxas {bundle.ptxas}",
        soft_wrap=True,
    )
