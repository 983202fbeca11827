"""Read what is stored of a tensor that the graph has in another form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from zq2onnx.passes.joined import JoinedTensor
from zq2onnx.passes.recast import RecastTensor, recast_array
from zq2onnx.storage import mapped


def stored_array(tensor: ir.TensorProtocol) -> np.ndarray:
    """A float tensor's numbers in its own shape and the type that they are stored in."""
    return mapped.tensor_array(tensor.source if isinstance(tensor, RecastTensor) else tensor)


def written_chunks(tensor: ir.TensorProtocol) -> Iterator[memoryview]:
    """A tensor's bytes as the graph has it, in pieces: no more than one of them is in memory at a time."""
    if not isinstance(tensor, RecastTensor):
        yield from mapped.tensor_chunks(tensor)
        return
    for chunk in mapped.tensor_chunks(tensor.source):
        numbers = recast_array(np.frombuffer(chunk, tensor.source.dtype.numpy()), tensor.dtype)
        yield numbers.view(np.uint8).data


def stored_digest(tensor: ir.TensorProtocol) -> str:
    """SHA-256 of a tensor's bytes as they are stored; of joined ones, of the digests of each."""
    stored = tensor.source if isinstance(tensor, RecastTensor) else tensor
    if not isinstance(stored, JoinedTensor):
        return mapped.tensor_digest(stored)
    digest = hashlib.sha256()
    for view in stored.views:
        digest.update(stored_digest(view.tensor).encode())
    return digest.hexdigest()
