#include "prepare.h"

#include "../floats.h"
#include "product.h"

namespace zq2onnx {
namespace {

template <typename T>
void widen(const void* from, int64_t size, float* to) {
  const T* values = static_cast<const T*>(from);
  for (int64_t at = 0; at < size; ++at) to[at] = to_float(values[at]);
}

template <typename T>
void narrow(const float* out, const float* bias, int64_t tokens, int64_t rows, int64_t stride, void* y) {
  constexpr int64_t kRows = Tile::kMaxRows;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* from = out + t * kRows;
    T* to = static_cast<T*>(y) + t * stride;
    if (rows == kRows) {  // a length that compilers know
      for (int64_t r = 0; r < kRows; ++r) to[r] = from_float<T>(from[r] + bias[r]);
    } else {
      for (int64_t r = 0; r < rows; ++r) to[r] = from_float<T>(from[r] + bias[r]);
    }
  }
}

}  // namespace

Widen find_widen(ort::ElementType type) {
  return with_type(type, [](auto value) -> Widen { return widen<decltype(value)>; });
}

Narrow find_narrow(ort::ElementType type) {
  switch (type) {
    case ort::ElementType::kFloat16: return narrow<Half>;
    case ort::ElementType::kBfloat16: return narrow<Bfloat>;
    default: return narrow<float>;
  }
}

int64_t size_of(ort::ElementType type) {
  return with_type(type, [](auto value) { return static_cast<int64_t>(sizeof value); });
}

const void* element(const void* data, ort::ElementType type, int64_t at) {
  return static_cast<const char*>(data) + at * size_of(type);
}

}  // namespace zq2onnx
