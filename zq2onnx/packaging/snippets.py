"""Short programs that run a model by ONNX Runtime: in Python, and in C++."""

from __future__ import annotations

import json

import numpy as np

from zq2onnx.errors import UserError
from zq2onnx.opset import FLOAT_ACTIVATIONS
from zq2onnx.packaging.example import POSITIONS, TOKENS, example_shape, is_cache
from zq2onnx.packaging.kernels import LIBRARY
from zq2onnx.packaging.source import Source, Value
from zq2onnx.runtime.serving.folder import MODEL

PYTHON = "run.py"
CPP = "run.cc"

_CONFIG = tuple(FLOAT_ACTIVATIONS.items())


def python_snippet(source: Source, fused: bool) -> str:
    """A program for the folder that it is in: one run of a few tokens.

    Raises:
        UserError: NumPy has no such type as an input, or the first output, is of.
    """
    for value in (*source.inputs, source.outputs[0]):
        _check_type(source, value)
    plain = [value for value in source.inputs if not is_cache(value)]
    cache = [value for value in source.inputs if is_cache(value)]
    setup = [f'options.register_custom_ops_library("./{LIBRARY}")'] if fused else []
    if source.qdq:
        setup += [f'options.add_session_config_entry("{key}", "{value}")' for key, value in _CONFIG]
    feeds = [f"feeds[{_quoted(value.name)}] = {_array(value)}" for value in plain]
    for group in _alike(cache):
        feeds += [f"past = {_names(group)}", f"feeds |= {{name: {_array(group[0])} for name in past}}"]
    lines = [
        "import numpy as np",
        "import onnxruntime as ort",
        "",
        "options = ort.SessionOptions()",
        *setup,
        f'session = ort.InferenceSession("{MODEL}", options, providers=["CPUExecutionProvider"])',
        "feeds = {}",
        *feeds,
        f"(output,) = session.run([{_quoted(source.outputs[0].name)}], feeds)",
        "print(output.shape, output.reshape(-1, output.shape[-1])[-1].argmax())",
    ]
    return "\n".join(lines) + "\n"


def _check_type(source: Source, value: Value) -> None:
    if not hasattr(np, _dtype(value)):
        raise UserError(
            f"{source.model}: {value.name} is {value.type}",
            "types that NumPy has, for the Python program",
            "export it with --dtype fp16, or package it --for genai",
        )


def _dtype(value: Value) -> str:
    return np.dtype(value.dtype.numpy()).name


def _quoted(text: str) -> str:
    """A string of Python, and of C++."""
    return json.dumps(text, ensure_ascii=False)


def _array(value: Value) -> str:
    dtype = f"np.{_dtype(value)}"
    shape = tuple(example_shape(value))
    if value.name == POSITIONS:
        return f"np.arange({TOKENS}, dtype={dtype})[None]"
    return f"np.{'ones' if value.dtype.is_integer() else 'zeros'}({shape}, {dtype})"


def _alike(values: list[Value]) -> list[list[Value]]:
    """Inputs of one shape and type, together."""
    groups: dict[str, list[Value]] = {}
    for value in values:
        groups.setdefault(_array(value), []).append(value)
    return list(groups.values())


def _names(group: list[Value]) -> str:
    """An expression for the names of a group: of all layers' keys and values where that is what they are."""
    names = [value.name for value in group]
    count = len(names) // 2
    if sorted(names) == sorted(
        f"past_key_values.{n}.{part}" for n in range(count) for part in ("key", "value")
    ):
        return f'[f"past_key_values.{{n}}.{{part}}" for n in range({count}) for part in ("key", "value")]'
    return repr(names)


def cpp_snippet(source: Source, fused: bool) -> str:
    """The same in C++, for any model whose inputs are integers and floats."""
    setup = f'\n  options.RegisterCustomOpsLibrary("./{LIBRARY}");' if fused else ""
    if source.qdq:
        setup += "".join(f'\n  options.AddConfigEntry("{key}", "{value}");' for key, value in _CONFIG)
    return f"""// g++ -std=c++17 {CPP} -I ONNXRUNTIME/include -L ONNXRUNTIME/lib -lonnxruntime -o run
#include <iostream>
#include <onnxruntime_cxx_api.h>
#include <string>
#include <vector>

template <typename T>
void fill(T* data, size_t count, bool counts) {{
  for (size_t i = 0; i < count; ++i) data[i] = counts ? T(i) : T(1);
}}

int main() {{
  Ort::Env env;
  Ort::SessionOptions options;{setup}
  Ort::Session session(env, "{MODEL}", options);
  Ort::AllocatorWithDefaultOptions allocator;
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<std::vector<char>> buffers;
  std::vector<Ort::AllocatedStringPtr> names;
  std::vector<const char*> inputs;
  std::vector<Ort::Value> values;
  for (size_t i = 0; i < session.GetInputCount(); ++i) {{
    names.push_back(session.GetInputNameAllocated(i, allocator));
    inputs.push_back(names.back().get());
    auto type = session.GetInputTypeInfo(i);
    auto shape = type.GetTensorTypeAndShapeInfo().GetShape();
    int64_t free = std::string(inputs[i]).rfind("past_key_values.", 0) == 0 ? 0 : {TOKENS};  // tokens
    size_t count = 1;
    for (size_t axis = 0; axis < shape.size(); ++axis) {{
      if (shape[axis] < 0) shape[axis] = axis == 0 ? 1 : free;
      count *= shape[axis];
    }}
    auto kind = type.GetTensorTypeAndShapeInfo().GetElementType();
    buffers.emplace_back(8 * count + 8);  // zeros, and room for any type
    void* data = buffers.back().data();
    values.push_back(
        Ort::Value::CreateTensor(memory, data, buffers.back().size(), shape.data(), shape.size(), kind));
    bool counts = std::string(inputs[i]) == "{POSITIONS}";  // 0, 1, ..; other integers are 1
    if (kind == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) fill(static_cast<int64_t*>(data), count, counts);
    if (kind == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32) fill(static_cast<int32_t*>(data), count, counts);
  }}
  const char* output = {_quoted(source.outputs[0].name)};
  auto results = session.Run({{}}, inputs.data(), values.data(), values.size(), &output, 1);
  for (int64_t size : results[0].GetTensorTypeAndShapeInfo().GetShape()) std::cout << size << " ";
  std::cout << std::endl;
}}
"""
