"""`zq2onnx package`: a folder that a serving stack opens as it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zq2onnx.cli.console import stdout
from zq2onnx.errors import UserError
from zq2onnx.packaging.target import Target

if TYPE_CHECKING:
    from zq2onnx.packaging.package import Package


def package(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A converted model, or any other.")],
    target: Annotated[
        Target,
        typer.Option(
            "--for",
            show_default=False,
            help="onnxruntime-genai, Triton Inference Server, or ONNX Runtime itself.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            show_default=False,
            help="The folder to make; for triton the model repository. Of a path that does not exist, only"
            " the last folder is created.",
        ),
    ],
    fused: Annotated[
        bool | None,
        typer.Option(
            "--fused/--portable",
            help="Put the operator library into the folder, with the CUDA kernels that are compiled, or leave"
            " all to stock kernels.",
            show_default="with it, where it is built and the model has operators for it",
        ),
    ] = None,
    with_tokenizer_graph: Annotated[
        bool,
        typer.Option(
            "--with-tokenizer-graph",
            help="Add tokenizer.onnx and detokenizer.onnx, which run by onnxruntime-extensions: a host then"
            ' needs no tokenizer. Needs: pip install "zq2onnx[tokenizer]"',
        ),
    ] = False,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR", help="tokenizer.json, or its folder.", show_default="the model's folder"
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=1,
            help="genai: length of the longest text, prompt included.",
            show_default="what config.json says; 2048 where it says nothing",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="triton: what the model is called.", show_default="its file's name"),
    ] = None,
    max_batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="triton: sequences that requests are merged to; 0 to merge none.",
            show_default="8, or 0 where the graph has no free batch dimension",
        ),
    ] = None,
    library_path: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="triton: where the server finds the operator library, as in its container.",
            show_default="/models/NAME/1/libzq2onnx_ops.so",
        ),
    ] = None,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Make hard links of model and weights, which take no room, instead of copies. Both folders"
            " must be on one file system.",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Use a folder that is not empty: overwrite files of the same names, and remove what an"
            " earlier package had and this one has not.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors alone.")] = False,
) -> None:
    """Make a folder that a serving stack opens as it is.

    genai: model, tokenizer and genai_config.json, for onnxruntime-genai, and what builds on it. The model
    must have a KV cache. The folder may be moved.

    triton: a model repository with config.pbtxt, and a README of the commands that serve it.

    ort: the model, and a short program each in Python and C++ that runs it.

    Weights are copied, unless --link is given; the model file stays as it is, to the byte. A new folder
    appears with all of its files, or not at all.

    \b
    zq2onnx package model.w4a16.onnx --for genai -o served
    zq2onnx package model.w4a16.onnx --for triton -o repository --name chat --fused
    """
    from zq2onnx.packaging.package import Wishes
    from zq2onnx.packaging.package import package as make

    _check_options(target, context, (name, max_batch_size, library_path))
    made = make(
        model,
        target,
        output,
        fused=fused,
        wishes=Wishes(tokenizer, with_tokenizer_graph, context, name, max_batch_size, library_path),
        force=force,
        link=link,
    )
    if not quiet:
        _print(made)


def _check_options(target: Target, context: int | None, triton: tuple[object, ...]) -> None:
    if context is not None and target is not Target.GENAI:
        raise UserError(f"--context with --for {target}", "--for genai")
    for option, value in zip(("--name", "--max-batch-size", "--library-path"), triton, strict=True):
        if value is not None and target is not Target.TRITON:
            raise UserError(f"{option} with --for {target}", "--for triton")


def _print(made: Package) -> None:
    kernels = "the operator library, where it pays" if made.fused else "stock kernels"
    stdout.print(f"{made.folder}  {made.bytes / 1e6:.1f} MB, runs by {kernels}")
    for line in _contents(made):
        stdout.print(f"  {line}")


def _contents(made: Package) -> Iterator[str]:
    """Its files; of the kernels, which are many, how many and how large they are."""
    from zq2onnx.packaging.kernels import BUNDLE

    for folder, group in itertools.groupby(made.files, lambda file: file.parent):
        files = list(group)
        if folder.name == BUNDLE:
            size = sum((made.folder / file).stat().st_size for file in files)
            yield f"{folder}/  {len(files)} files, {size / 1e6:.1f} MB"
        else:
            yield from map(str, files)
