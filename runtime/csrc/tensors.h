// A node's inputs: read through ONNX Runtime, and checked against what the attributes require.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "geometry.h"
#include "operators.h"
#include "ort_abi.h"

namespace zq2onnx {

struct Tensor {
  const void* data = nullptr;
  ort::ElementType type = ort::ElementType::kUndefined;
  Shape shape;
};

using Tensors = std::array<std::optional<Tensor>, kInputs>;

// A node's inputs, wherever they are kept; null where absent.
using TensorRefs = std::array<const Tensor*, kInputs>;
TensorRefs refer_to(const Tensors& tensors);

// Throws StatusError where ONNX Runtime itself fails.
Tensor read_tensor(const ort::Api* api, const ort::Value* value);

// What inputs must be.
struct Requirements {
  const Operator* op;
  ort::ElementType type;  // A's
  Geometry geometry;

  // Checks those after A that are present. Throws Error, which names the input.
  void check_constants(const TensorRefs& tensors) const;

  // Checks that all but bias are present, and A's type and shape.
  void check_presence(const TensorRefs& tensors) const;

 private:
  int64_t rank_of(const TensorRefs& tensors) const;
  void check_type(Input input, ort::ElementType found) const;
};

// The product of a shape's dimensions but the last. Throws Error where it overflows.
int64_t token_count(const Shape& shape, int64_t n);

}  // namespace zq2onnx
