"""A model repository for Triton Inference Server."""

from __future__ import annotations

import json
import math
from pathlib import PurePosixPath

import onnx_ir as ir

from zq2onnx.errors import UserError
from zq2onnx.packaging.example import POSITIONS, example_shape
from zq2onnx.packaging.source import Source, Value
from zq2onnx.runtime.serving.folder import MODEL

VERSION = "1"
MOUNT = "/models"
"""Where the README's command mounts the repository."""

_IMAGE = "nvcr.io/nvidia/tritonserver:26.09-py3"
_TYPES = {
    ir.DataType.FLOAT: "FP32",
    ir.DataType.DOUBLE: "FP64",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.BOOL: "BOOL",
    ir.DataType.STRING: "STRING",
    **{
        getattr(ir.DataType, f"{sign}INT{bits}"): f"{sign}INT{bits}"
        for sign in "U"
        for bits in (8, 16, 32, 64)
    },
    **{getattr(ir.DataType, f"INT{bits}"): f"INT{bits}" for bits in (8, 16, 32, 64)},
}


def check_library_path(path: str | None) -> None:
    """Refuse a path that the server would not take.

    Raises:
        UserError: it is not absolute.
    """
    if path is not None and not PurePosixPath(path).is_absolute():
        raise UserError(
            f"--library-path {path}",
            "an absolute path, as it is where the server runs",
            f"such as {MOUNT}/...",
        )


def batches(source: Source) -> bool:
    """Whether requests can be merged: every input and output has a free first dimension, and others."""
    values = (*source.inputs, *source.outputs)
    return all(len(value.shape) > 1 and not isinstance(value.shape[0], int) for value in values)


def model_config(source: Source, name: str, max_batch: int, library: str | None) -> str:
    """The text of config.pbtxt.

    Args:
        source: the model.
        name: what it is called in requests.
        max_batch: sequences to a run; 0 where requests are not merged.
        library: the operator library's path where the server runs; None for stock kernels.

    Raises:
        UserError: a type of the graph's is not one of Triton's.
    """
    lines = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"default_model_filename: {_quoted(MODEL)}",
        f"max_batch_size: {max_batch}",
    ]
    for kind, values in (("input", source.inputs), ("output", source.outputs)):
        lines += [f"{kind} [", ",\n".join(_entry(source, value, max_batch > 0) for value in values), "]"]
    if max_batch > 0:
        # Requests wait for each other only while the model is busy. Those are merged whose shapes agree,
        # the past's length included.
        lines.append("dynamic_batching { }")
    if library is not None:
        lines.append(f"model_operations {{ op_library_filename: [ {_quoted(library)} ] }}")
    return "\n".join(lines) + "\n"


def _entry(source: Source, value: Value, batched: bool) -> str:
    if value.dtype not in _TYPES:
        raise UserError(f"{source.model}: {value.name} is {value.type}", "a type that Triton knows")
    dims = value.shape[1:] if batched else value.shape
    told = ", ".join(str(dim) if isinstance(dim, int) else "-1" for dim in dims)
    name, kind = _quoted(value.name), _TYPES[value.dtype]
    return f"  {{ name: {name} data_type: TYPE_{kind} dims: [ {told} ] }}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)


def example_request(source: Source) -> str:
    """The body of a request: four tokens, after an empty past where there is one."""
    inputs = []
    for value in source.inputs:
        shape = example_shape(value)
        count = math.prod(shape)
        data: list[object] = [1 if value.dtype.is_integer() else 0.0] * count
        if value.name == POSITIONS:
            data = list(range(count))
        inputs.append({"name": value.name, "shape": shape, "datatype": _TYPES[value.dtype], "data": data})
    outputs = [{"name": source.outputs[0].name}]
    return json.dumps({"inputs": inputs, "outputs": outputs}) + "\n"


def readme(source: Source, name: str, library: str | None, batched: bool) -> str:
    """How to serve it, in three commands.

    Args:
        source: the model.
        name: what it is called in requests.
        library: the operator library's path where the server runs; None for stock kernels.
        batched: whether requests are merged.
    """
    notes = [_MERGED if batched else _NOT_MERGED]
    if any(value.name.startswith("past_key_values.") for value in source.inputs):
        notes.append(_CACHE)
    if source.qdq:
        notes.append(_QDQ)
    if library is not None:
        notes.append(_LIBRARY.format(library=library))
    return _README.format(name=name, mount=MOUNT, image=_IMAGE) + "".join(f"\n{note}" for note in notes)


_README = """\
# {name}, for Triton Inference Server

In this folder:

```sh
docker run --rm -p 8000:8000 -v "$PWD":{mount} {image} tritonserver --model-repository={mount}
curl --fail localhost:8000/v2/models/{name}/ready
curl localhost:8000/v2/models/{name}/infer -H "Content-Type: application/json" -d @{name}/request.json
```
"""
_MERGED = """\
Requests whose shapes agree run as one: sequences that are equally long, and have an equally long past.
"""
_NOT_MERGED = """\
Requests are not merged.
"""
_CACHE = """\
Keys and values come in and go out with each request. onnxruntime-genai keeps them, in a program of one's own:
`zq2onnx package --for genai`.
"""
_QDQ = """\
The model has DequantizeLinear nodes, whose products ONNX Runtime computes with activations rounded to int8,
unless a session says otherwise, which it cannot here. What `zq2onnx convert --target portable` writes needs
no such setting.
"""
_LIBRARY = """\
`config.pbtxt` names the operator library where the server finds it, `{library}`: where that is
elsewhere, package the model with `--library-path`. On a GPU add `-e ZQ2ONNX_PROVIDER=cuda` to the first
command, so that operators without a CUDA kernel stay on ONNX Runtime's own.
"""
