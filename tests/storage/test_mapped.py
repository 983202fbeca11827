"""Tensors are read from where they lie, a piece at a time."""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from zq2onnx.errors import UserError
from zq2onnx.storage import mapped

CONTENT = np.random.default_rng(0).bytes(3 * mmap.ALLOCATIONGRANULARITY + 100)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx.data"
    path.write_bytes(CONTENT)
    return path


def external(
    path: Path, offset: int | None, shape: tuple[int, ...], length: int | None = None, location: str = ""
) -> ir.ExternalTensor:
    dtype = ir.DataType.FLOAT
    return ir.ExternalTensor(
        location or path.name, offset, length, dtype, shape=ir.Shape(shape), name="w", base_dir=path.parent
    )


@pytest.mark.parametrize("offset", [0, 1, 64, mmap.ALLOCATIONGRANULARITY, mmap.ALLOCATIONGRANULARITY + 3])
@pytest.mark.parametrize("length", [0, 1, 1000, mmap.ALLOCATIONGRANULARITY])
def test_any_region_is_mapped(path: Path, offset: int, length: int) -> None:
    assert bytes(mapped.mapped_bytes(path, offset, length)) == CONTENT[offset : offset + length]


def test_arrays_digests_and_pieces_agree(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "CHUNK", 4096)
    tensor = external(path, 128, (50, 41))
    expected = CONTENT[128 : 128 + 50 * 41 * 4]
    assert mapped.tensor_array(tensor).tobytes() == expected
    assert b"".join(mapped.tensor_chunks(tensor)) == expected
    inside = ir.Tensor(np.frombuffer(expected, np.float32).reshape(50, 41), name="w")
    assert (
        mapped.tensor_digest(tensor) == mapped.tensor_digest(inside) == hashlib.sha256(expected).hexdigest()
    )


def test_external_data_that_is_whole(path: Path) -> None:
    tensors = [external(path, None, (3, 5)), external(path, 60, (0,)), external(path, 64, (2, 2), 16)]
    assert mapped.check_external_data(path.with_suffix(""), tensors) == [path]


@pytest.mark.parametrize(
    ("offset", "shape", "length", "location"),
    [
        (len(CONTENT) - 3, (1,), None, ""),
        (0, (4,), 15, ""),
        (0, (4,), None, "absent.data"),
        (0, (4,), None, "../m.onnx.data"),
        (0, (4,), None, "/m.onnx.data"),
    ],
)
def test_external_data_that_is_not(
    path: Path, offset: int, shape: tuple[int, ...], length: int | None, location: str
) -> None:
    with pytest.raises(UserError):
        mapped.check_external_data(path.with_suffix(""), [external(path, offset, shape, length, location)])
