// The branch's two small products, by a set of vector instructions `S`.
#pragma once

#include <algorithm>

#include "../floats.h"
#include "branch.h"
#include "product.h"

namespace zq2onnx {

template <class S>
struct Branches {
  static Branch::In in(ort::ElementType type) {
    return with_type(type, [](auto value) -> Branch::In { return in_of<decltype(value)>; });
  }

  static Branch::Out out(ort::ElementType type) {
    return with_type(type, [](auto value) -> Branch::Out { return out_of<decltype(value)>; });
  }

 private:
  using Floats = typename S::Floats;
  static constexpr int64_t kPart = 2048;     // numbers of U that are widened at a time
  static constexpr int64_t kMaxWidth = 128;  // components of them
  static constexpr int kWidth = Tile::kMaxRows / S::kLanes;

  template <typename T>
  static void in_of(const float* a, int64_t a_stride, int64_t tokens, const void* u, int64_t channels, int64_t rank,
                    float* to, int64_t to_stride) {
    const T* factor = static_cast<const T*>(u);
    alignas(64) float wide[kPart + S::kLanes] = {};  // vectors at its end reach beyond it
    for (int64_t t = 0; t < tokens; ++t) std::fill_n(to + t * to_stride, rank, 0.0f);
    for (int64_t left = 0; left < rank; left += kMaxWidth) {
      const int64_t width = std::min(kMaxWidth, rank - left);
      const int64_t most = kPart / width;
      for (int64_t first = 0; first < channels; first += most) {
        const int64_t count = std::min(most, channels - first);
        widen(factor + first * rank + left, count, width, rank, wide);
        add_columns(a + first, a_stride, tokens, wide, count, width, to + left, to_stride);
      }
    }
  }

  template <typename T>
  static void widen(const T* factor, int64_t rows, int64_t width, int64_t stride, float* wide) {
    if (width == stride) {  // one long loop
      int64_t i = 0;
      for (; i + S::kLanes <= rows * width; i += S::kLanes) S::store(wide + i, load_wide(factor + i));
      for (; i < rows * width; ++i) wide[i] = to_float(factor[i]);
      return;
    }
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < width; ++i) wide[row * width + i] = to_float(factor[row * stride + i]);
    }
  }

  static void add_columns(const float* a, int64_t a_stride, int64_t tokens, const float* wide, int64_t channels,
                          int64_t width, float* to, int64_t to_stride) {
    for (int64_t r = 0; r < width; r += S::kLanes) {
      if (tokens == Branch::kTokens) {
        add_part<Branch::kTokens>(a, a_stride, wide + r, channels, width, width - r, to + r, to_stride);
        continue;
      }
      for (int64_t t = 0; t < tokens; ++t) {
        add_part<1>(a + t * a_stride, 0, wide + r, channels, width, width - r, to + t * to_stride + r, 0);
      }
    }
  }

  // Adds the products of a few channels, for as many components as a vector has lanes, or `left` of them.
  template <int64_t tokens>
  static void add_part(const float* a, int64_t a_stride, const float* wide, int64_t channels, int64_t rank,
                       int64_t left, float* to, int64_t to_stride) {
    Floats even[tokens], odd[tokens];
#pragma GCC unroll 4
    for (int64_t t = 0; t < tokens; ++t) even[t] = odd[t] = S::zero();
    int64_t k = 0;
    for (; k + 2 <= channels; k += 2) {
      const Floats first = S::load(wide + k * rank);
      const Floats second = S::load(wide + (k + 1) * rank);
#pragma GCC unroll 4
      for (int64_t t = 0; t < tokens; ++t) {
        even[t] = S::fma(S::broadcast(a[t * a_stride + k]), first, even[t]);
        odd[t] = S::fma(S::broadcast(a[t * a_stride + k + 1]), second, odd[t]);
      }
    }
    if (k < channels) {
      const Floats last = S::load(wide + k * rank);
      for (int64_t t = 0; t < tokens; ++t) even[t] = S::fma(S::broadcast(a[t * a_stride + k]), last, even[t]);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      alignas(64) float sums[S::kLanes];
      S::store(sums, S::fma(S::broadcast(1.0f), even[t], odd[t]));
      for (int64_t r = 0; r < std::min<int64_t>(S::kLanes, left); ++r) to[t * to_stride + r] += sums[r];
    }
  }

  // As many numbers as a vector has lanes.
  template <typename T>
  static Floats load_wide(const T* from) {
    if constexpr (sizeof(T) == sizeof(float)) {
      return S::load(from);
    } else if constexpr (sizeof(T) == 1) {
      return S::load_integers(from);
    } else {
      float wide[S::kLanes];
      for (int i = 0; i < S::kLanes; ++i) wide[i] = to_float(from[i]);
      return S::load(wide);
    }
  }

  // A tile's columns of a row of V, and zeros where it has fewer.
  template <typename T>
  static void widen_columns(const T* from, int64_t columns, float* to) {
    T copy[Tile::kMaxRows] = {};
    if (columns < Tile::kMaxRows) {
      std::copy_n(from, columns, copy);
      from = copy;
    }
    for (int i = 0; i < kWidth; ++i) S::store(to + i * S::kLanes, load_wide(from + i * S::kLanes));
  }

  template <typename T>
  static void out_of(const float* components, const void* v, int64_t rank, int64_t stride, int64_t tokens,
                     int64_t columns, float* out) {
    constexpr int64_t kRanks = 32;  // of V, widened at a time
    alignas(64) float rows[kRanks][Tile::kMaxRows];
    for (int64_t first = 0; first < rank; first += kRanks) {
      const int64_t ranks = std::min(kRanks, rank - first);
      for (int64_t r = 0; r < ranks; ++r) {
        widen_columns(static_cast<const T*>(v) + (first + r) * stride, columns, rows[r]);
      }
      for (int64_t t = 0; t < tokens; ++t) {
        float* to = out + t * Tile::kMaxRows;
        Floats sums[kWidth];
        for (int i = 0; i < kWidth; ++i) sums[i] = S::load(to + i * S::kLanes);
        for (int64_t r = 0; r < ranks; ++r) {
          const Floats component = S::broadcast(components[t * rank + first + r]);
          for (int i = 0; i < kWidth; ++i) sums[i] = S::fma(component, S::load(rows[r] + i * S::kLanes), sums[i]);
        }
        for (int i = 0; i < kWidth; ++i) S::store(to + i * S::kLanes, sums[i]);
      }
    }
  }
};

}  // namespace zq2onnx
