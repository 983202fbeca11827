"""Reads ready-made inputs of a model from a NumPy archive."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.language import free_inputs

_NARROW_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def read_arrays(model: ir.Model, path: Path, archive: Path, samples: int) -> dict[str, np.ndarray]:
    """Read arrays by the names of a graph's inputs; their first axis counts samples.

    Nothing in the archive is unpickled. float32 serves for inputs of narrower floats.

    Args:
        model: the graph.
        path: its file.
        archive: the `.npz`.
        samples: how many to take at most.

    Raises:
        UserError: the archive cannot be read, has arrays that the model does not read or lacks some,
            or one is of another type, shape or number of samples than it should be.
    """
    arrays = _load(archive)
    optional = {value.name for value in model.graph.inputs} - {value.name for value in free_inputs(model)}
    required = {value.name or "" for value in free_inputs(model)}
    if not required:
        raise UserError(f"{path}: it has no inputs", "a model that can be fed")
    _check_names(path, archive, arrays, required, optional)
    for value in model.graph.inputs:
        if value.name in arrays:
            _check_array(archive, value, arrays[value.name])
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise UserError(f"{archive}: {told}", "as many samples of each input")
    if not all(counts.values()):
        raise UserError(f"{archive}: no samples", "at least one")
    return {name: array[:samples] for name, array in arrays.items()}


def _load(archive: Path) -> dict[str, np.ndarray]:
    required = "arrays of numbers, as numpy.savez writes them"
    if not archive.is_file():
        raise UserError(f"{archive}: no such file", "a .npz")
    try:
        loaded = np.load(archive, allow_pickle=False)  # objects could run any code
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise UserError(f"{archive}: one array, not an archive of them", required)
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{archive}: cannot be read ({reason})", required) from error


def _check_names(
    path: Path, archive: Path, given: Collection[str], required: set[str], optional: Collection[str | None]
) -> None:
    listed = f"the inputs of {path}: {', '.join(sorted(required))}"
    if strange := [name for name in given if name not in required and name not in optional]:
        raise UserError(f"{archive}: {', '.join(strange)}, which the model does not read", listed)
    if missing := sorted(required - set(given)):
        raise UserError(f"{archive}: no {', '.join(missing)}", listed)


def _check_array(archive: Path, value: ir.Value, array: np.ndarray) -> None:
    """Compare an array with what the graph says of an input."""
    dtype = value.dtype
    if dtype is not None and array.dtype != dtype.numpy():
        widened = dtype in _NARROW_FLOATS and array.dtype == np.float32
        if not widened:
            raise UserError(f"{archive}: {value.name} is {array.dtype.name}", dtype.numpy().name)
    if value.shape is None and array.ndim:
        return
    sizes = [] if value.shape is None else list(value.shape)
    # The first axis counts samples, however many of them the graph takes at once.
    fits = len(sizes) == array.ndim > 0 and all(
        not isinstance(size, int) or size == found
        for size, found in zip(sizes[1:], array.shape[1:], strict=True)
    )
    if not fits:
        wanted = f"[{', '.join(['samples', *map(str, sizes[1:])])}]"
        raise UserError(f"{archive}: {value.name} is of shape {list(array.shape)}", wanted)
