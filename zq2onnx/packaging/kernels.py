"""Whether a package brings the operator library along, and which files that is."""

from __future__ import annotations

from pathlib import Path

from zq2onnx.errors import UserError
from zq2onnx.packaging.contents import Contents
from zq2onnx.packaging.source import Source
from zq2onnx.runtime.library import get_library_path, library_file

LIBRARY = "libzq2onnx_ops.so"
BUNDLE = "kernels"
"""The compiled CUDA kernels, in a folder of that name beside the library: where it looks for them."""


def choose_library(source: Source, fused: bool | None) -> Path | None:
    """The library that goes with a model; None for a model that is to run on stock kernels.

    Args:
        source: the model.
        fused: with it; False: without. None: with it where it is built and has something to run.

    Raises:
        UserError: it is wanted, and not built, or the model has none of its operators.
    """
    if fused is False:
        return None
    if source.operators:
        return Path(get_library_path()) if fused else library_file()
    if fused:
        raise UserError(
            f"{source.model}: no node that the operator library could run",
            "a model that zq2onnx convert wrote with --target portable",
            "package it with --portable",
        )
    return None


def add_library(contents: Contents, library: Path | None, place: Path = Path()) -> None:
    """Add the library, and the CUDA kernels where they are compiled, to the folder `place`.

    Raises:
        UserError: the kernels are not as they were compiled.
    """
    from zq2onnx.runtime.kernels.manifest import MANIFEST, bundle_folder, read_manifest

    contents.ours |= {place / LIBRARY, place / BUNDLE}
    if library is None:
        return
    contents.copied[place / LIBRARY] = library
    bundle = bundle_folder()
    if (bundle / MANIFEST).is_file():
        for name in (MANIFEST, *(kernel.file for kernel in read_manifest(bundle).kernels)):
            contents.copied[place / BUNDLE / name] = bundle / name
