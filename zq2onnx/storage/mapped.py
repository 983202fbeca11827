"""Read tensors of a model one at a time, without keeping the pages that were touched."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from zq2onnx.errors import UserError

CHUNK = 1 << 24
"""Bytes hashed or copied at a time."""


def mapped_bytes(path: Path, offset: int, length: int) -> memoryview:
    """Map a region of a file read-only. Its pages are given back when the last view of it dies."""
    if length == 0:
        return memoryview(b"")
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), length + offset - start, access=mmap.ACCESS_READ, offset=start)
    return memoryview(mapping)[offset - start :]


def external_region(tensor: ir.ExternalTensor) -> tuple[Path, int, int]:
    """File, offset and length in bytes of a tensor's external data."""
    return Path(tensor.path), tensor.offset or 0, tensor.nbytes if tensor.length is None else tensor.length


def tensor_bytes(tensor: ir.TensorProtocol) -> memoryview:
    """A tensor's bytes as ONNX stores them: mapped where they are external."""
    if isinstance(tensor, ir.ExternalTensor):
        return mapped_bytes(*external_region(tensor))
    return memoryview(tensor.tobytes())


def tensor_chunks(tensor: ir.TensorProtocol) -> Iterator[memoryview]:
    """A tensor's bytes in pieces of `CHUNK`, each mapped by itself."""
    if not isinstance(tensor, ir.ExternalTensor):
        yield tensor_bytes(tensor)
        return
    path, offset, length = external_region(tensor)
    for start in range(0, length, CHUNK):
        yield mapped_bytes(path, offset + start, min(CHUNK, length - start))


def tensor_digest(tensor: ir.TensorProtocol) -> str:
    """SHA-256 of a tensor's bytes."""
    digest = hashlib.sha256()
    for chunk in tensor_chunks(tensor):
        digest.update(chunk)
    return digest.hexdigest()


def tensor_array(tensor: ir.TensorProtocol) -> np.ndarray:
    """A float tensor as an array in its stored shape: mapped where it is external."""
    if isinstance(tensor, ir.ExternalTensor):
        shape = tuple(int(dim) for dim in tensor.shape.numpy())
        return np.frombuffer(tensor_bytes(tensor), dtype=tensor.dtype.numpy()).reshape(shape)
    return tensor.numpy()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_external_data(model_path: Path, tensors: Iterable[ir.ExternalTensor]) -> list[Path]:
    """The external data files of a model, in the order of first use.

    Raises:
        UserError: a location leaves the model's folder, a file is missing, or too short.
    """
    sizes: dict[Path, int] = {}
    for tensor in tensors:
        location = Path(tensor.location)
        if location.is_absolute() or ".." in location.parts:
            raise UserError(
                f"{model_path}: the data of {tensor.name} is at {tensor.location}",
                "external data inside the model's folder",
                "save the model again with its data beside it",
            )
        path, offset, length = external_region(tensor)
        if path not in sizes:
            if not path.is_file():
                raise UserError(
                    f"{model_path}: its external data {tensor.location} is missing",
                    "the file beside the model",
                    "copy it there",
                )
            sizes[path] = path.stat().st_size
        if offset < 0 or length != tensor.nbytes or offset + length > sizes[path]:
            raise UserError(
                f"{path}: {sizes[path]} bytes, {tensor.name} needs {tensor.nbytes} at {offset}"
                f" (its entry says {length})",
                "the whole external data",
                "copy or export the model again: the file looks truncated",
            )
    return list(sizes)
