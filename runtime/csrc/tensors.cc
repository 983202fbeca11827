#include "tensors.h"

#include "error.h"

namespace zq2onnx {
namespace {

std::string type_name(ort::ElementType type) {
  switch (type) {
    case ort::ElementType::kFloat: return "float32";
    case ort::ElementType::kUint8: return "uint8";
    case ort::ElementType::kInt8: return "int8";
    case ort::ElementType::kFloat16: return "float16";
    case ort::ElementType::kBfloat16: return "bfloat16";
    default: return "element type " + std::to_string(static_cast<int32_t>(type));
  }
}

std::string input_name(Input input) { return std::string("input ") + kInputNames[input]; }

}  // namespace

TensorRefs refer_to(const Tensors& tensors) {
  TensorRefs refs{};
  for (size_t index = 0; index < kInputs; ++index) refs[index] = tensors[index] ? &*tensors[index] : nullptr;
  return refs;
}

Tensor read_tensor(const ort::Api* api, const ort::Value* value) {
  ort::TypeAndShape* info = nullptr;
  check(api->call<ort::GetTensorTypeAndShape>(value, &info));
  struct Release {
    const ort::Api* api;
    ort::TypeAndShape* info;
    ~Release() { api->call<ort::ReleaseTypeAndShape>(info); }
  } release{api, info};
  Tensor tensor;
  size_t axes = 0;
  check(api->call<ort::GetTensorElementType>(static_cast<const ort::TypeAndShape*>(info), &tensor.type));
  check(api->call<ort::GetDimensionsCount>(static_cast<const ort::TypeAndShape*>(info), &axes));
  tensor.shape.resize(axes);
  check(api->call<ort::GetDimensions>(static_cast<const ort::TypeAndShape*>(info), tensor.shape.data(), axes));
  void* data = nullptr;
  check(api->call<ort::GetTensorMutableData>(const_cast<ort::Value*>(value), &data));
  tensor.data = data;
  return tensor;
}

int64_t Requirements::rank_of(const TensorRefs& tensors) const {
  // U decides; the others, whichever is there, where U is not known yet.
  constexpr struct {
    Input input;
    size_t axis;
  } kWhere[] = {{kU, 1}, {kV, 0}, {kUScales, 1}, {kVScales, 0}};
  for (const auto& [input, axis] : kWhere) {
    if (tensors[input] && tensors[input]->shape.size() == 2) return tensors[input]->shape[axis];
  }
  return 0;
}

void Requirements::check_type(Input input, ort::ElementType found) const {
  const bool bytes = input == kB || input == kZeroPoints;
  const bool factor = input == kU || input == kV;
  const ort::ElementType expected = bytes ? ort::ElementType::kUint8 : type;
  if (found == expected || (factor && found == ort::ElementType::kInt8)) return;
  throw Error(input_name(input) + " is " + type_name(found), type_name(expected) + (factor ? " or int8" : ""));
}

void Requirements::check_constants(const TensorRefs& tensors) const {
  const int64_t rank = rank_of(tensors);
  for (size_t index = kB; index < op->input_count(); ++index) {
    if (!tensors[index]) continue;
    const auto input = static_cast<Input>(index);
    check_type(input, tensors[index]->type);
    const Shape expected = geometry.input_shape(input, rank);
    if (tensors[index]->shape == expected) continue;
    const bool branch = input >= kU;
    throw Error(input_name(input) + " has shape " + to_text(tensors[index]->shape),
                to_text(expected) + " (" + geometry.text() +
                    (branch ? ", rank " + std::to_string(rank) : std::string()) + ")");
  }
}

void Requirements::check_presence(const TensorRefs& tensors) const {
  for (size_t index = kA; index < op->input_count(); ++index) {
    if (index == kBias || tensors[index]) continue;
    throw Error(input_name(static_cast<Input>(index)) + " is absent", "every input but bias");
  }
  const Tensor& a = *tensors[kA];
  check_type(kA, a.type);
  if (a.shape.empty() || a.shape.back() != geometry.k) {
    throw Error("input A has shape " + to_text(a.shape),
                "[.., K] with K = " + std::to_string(geometry.k));
  }
}

int64_t token_count(const Shape& shape, int64_t n) {
  int64_t tokens = 1;
  int64_t bytes;
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) {
    if (shape[axis] == 0) return 0;
  }
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) {
    if (__builtin_mul_overflow(tokens, shape[axis], &tokens)) tokens = INT64_MAX;
  }
  if (__builtin_mul_overflow(tokens, n, &bytes) || bytes > INT64_MAX / 8) {
    throw Error("input A has shape " + to_text(shape) + " and N is " + std::to_string(n),
                "a result that can be addressed");
  }
  return tokens;
}

}  // namespace zq2onnx
