#include "prepare.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "../floats.h"

namespace zq2onnx {
namespace {

template <typename T>
void widen(const void* from, int64_t size, float* to) {
  const T* values = static_cast<const T*>(from);
  for (int64_t at = 0; at < size; ++at) to[at] = to_float(values[at]);
}

template <typename T>
void branch_in(const float* a, const void* u, int64_t k, int64_t rank, float* to) {
  const T* factor = static_cast<const T*>(u);
  std::fill_n(to, rank, 0.0f);
  for (int64_t channel = 0; channel < k; ++channel) {
    for (int64_t r = 0; r < rank; ++r) to[r] += a[channel] * to_float(factor[channel * rank + r]);
  }
}

template <typename T>
void branch_out(const float* t, const void* v, int64_t rank, int64_t stride, int64_t columns, float* out) {
  const T* factor = static_cast<const T*>(v);
  for (int64_t r = 0; r < rank; ++r) {
    for (int64_t at = 0; at < columns; ++at) out[at] += t[r] * to_float(factor[r * stride + at]);
  }
}

template <typename T>
void narrow(const float* from, int64_t size, int64_t offset, void* to) {
  T* values = static_cast<T*>(to) + offset;
  for (int64_t at = 0; at < size; ++at) values[at] = from_float<T>(from[at]);
}

}  // namespace

float round_to_int8(const float* a, int64_t size, int8_t* codes) {
  float greatest = 0.0f;
  bool finite = true;
  for (int64_t at = 0; at < size; ++at) {
    const float magnitude = std::fabs(a[at]);
    finite &= magnitude <= FLT_MAX;
    greatest = std::max(greatest, magnitude);
  }
  if (!finite) {
    std::fill_n(codes, size, int8_t{0});
    return std::numeric_limits<float>::quiet_NaN();
  }
  const float scale = std::max(greatest / 127.0f, FLT_MIN);  // 0 / 0 is no number
  for (int64_t at = 0; at < size; ++at) codes[at] = static_cast<int8_t>(std::nearbyint(a[at] / scale));
  return scale;
}

Widen find_widen(ort::ElementType type) {
  return with_type(type, [](auto value) -> Widen { return widen<decltype(value)>; });
}

BranchIn find_branch_in(ort::ElementType type) {
  return with_type(type, [](auto value) -> BranchIn { return branch_in<decltype(value)>; });
}

BranchOut find_branch_out(ort::ElementType type) {
  return with_type(type, [](auto value) -> BranchOut { return branch_out<decltype(value)>; });
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
