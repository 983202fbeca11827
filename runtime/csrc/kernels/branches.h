// The branch's two small products, for each set of instructions that a kernel is compiled for: loops of a fixed
// length, which compilers make vectors of.
#pragma once

#include <algorithm>

#include "../floats.h"
#include "branch.h"
#include "product.h"

namespace zq2onnx {

// `Set` only tells apart what each translation unit makes of this.
template <class Set>
struct Branches {
  static Branch::In in(ort::ElementType type) {
    return with_type(type, [](auto value) -> Branch::In { return in_of<decltype(value)>; });
  }

  static Branch::Out out(ort::ElementType type) {
    return with_type(type, [](auto value) -> Branch::Out { return out_of<decltype(value)>; });
  }

 private:
  static constexpr int64_t kWidth = 16;   // components, or rows, at once
  static constexpr int64_t kChains = 4;  // sums that do not wait for each other

  template <typename T>
  static void in_of(const float* a, const void* u, int64_t channels, int64_t rank, float* to) {
    const T* factor = static_cast<const T*>(u);
    int64_t first = 0;
    for (; first + kWidth <= rank; first += kWidth) in_part<kWidth>(a, factor + first, channels, rank, to + first);
    for (; first + 8 <= rank; first += 8) in_part<8>(a, factor + first, channels, rank, to + first);
    for (; first + 4 <= rank; first += 4) in_part<4>(a, factor + first, channels, rank, to + first);
    for (; first < rank; ++first) in_part<1>(a, factor + first, channels, rank, to + first);
  }

  template <int64_t width, typename T>
  static void in_part(const float* a, const T* factor, int64_t channels, int64_t rank, float* to) {
    float sums[kChains][width] = {};
    int64_t k = 0;
    for (; k + kChains <= channels; k += kChains) {
      for (int64_t chain = 0; chain < kChains; ++chain) {
        const T* row = factor + (k + chain) * rank;
        for (int64_t r = 0; r < width; ++r) sums[chain][r] += a[k + chain] * to_float(row[r]);
      }
    }
    for (; k < channels; ++k) {
      for (int64_t r = 0; r < width; ++r) sums[0][r] += a[k] * to_float(factor[k * rank + r]);
    }
    for (int64_t r = 0; r < width; ++r) to[r] = (sums[0][r] + sums[1][r]) + (sums[2][r] + sums[3][r]);
  }

  template <typename T>
  static void out_of(const float* components, const void* v, int64_t rank, int64_t stride, int64_t tokens,
                     int64_t columns, float* out) {
    static_assert(Tile::kMaxRows == kWidth);
    constexpr int64_t kRanks = 32;  // of the factor, widened at a time
    float rows[kRanks][kWidth] = {};
    for (int64_t first = 0; first < rank; first += kRanks) {
      const int64_t ranks = std::min(kRanks, rank - first);
      for (int64_t r = 0; r < ranks; ++r) {
        const T* row = static_cast<const T*>(v) + (first + r) * stride;
        if (columns == kWidth) {
          for (int64_t i = 0; i < kWidth; ++i) rows[r][i] = to_float(row[i]);
        } else {
          for (int64_t i = 0; i < columns; ++i) rows[r][i] = to_float(row[i]);
        }
      }
      for (int64_t t = 0; t < tokens; ++t) {
        float sums[kWidth];
        for (int64_t i = 0; i < kWidth; ++i) sums[i] = out[t * kWidth + i];
        for (int64_t r = 0; r < ranks; ++r) {
          const float component = components[t * rank + first + r];
          for (int64_t i = 0; i < kWidth; ++i) sums[i] += component * rows[r][i];
        }
        for (int64_t i = 0; i < kWidth; ++i) out[t * kWidth + i] = sums[i];
      }
    }
  }
};

}  // namespace zq2onnx
