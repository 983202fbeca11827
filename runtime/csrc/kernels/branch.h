// The low-rank branch: (A·U)·V, with the factors' scales between them.
#pragma once

#include <cstdint>

#include "../ort_abi.h"

namespace zq2onnx {

struct Branch {
  // to[t][r] = sum over a few channels k of a[t][k] * U[k, r], for up to kTokens tokens. `a` and `u` start at the first
  // channel; tokens of `a` are `a_stride` apart, those of `to` `to_stride`.
  static constexpr int64_t kTokens = 4;
  using In = void (*)(const float* a, int64_t a_stride, int64_t tokens, const void* u, int64_t channels, int64_t rank,
                      float* to, int64_t to_stride);

  // out[t][i] += sum over r of components[t][r] * V[r, i], for a tile's rows i; `v` starts at the first of them, its
  // rows are `stride` apart. `out` has Tile::kMaxRows columns.
  using Out = void (*)(const float* components, const void* v, int64_t rank, int64_t stride, int64_t tokens,
                       int64_t columns, float* out);

  In (*in)(ort::ElementType);
  Out (*out)(ort::ElementType);
};

}  // namespace zq2onnx
