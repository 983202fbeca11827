// The low-rank branch: (A·U)·V, with the factors' scales between them.
#pragma once

#include <cstdint>

#include "../ort_abi.h"

namespace zq2onnx {

struct Branch {
  // to[r] = sum over a few channels k of a[k] * U[k, r]; `u` starts at the first channel.
  using In = void (*)(const float* a, const void* u, int64_t channels, int64_t rank, float* to);

  // out[t][i] += sum over r of components[t][r] * V[r, i], for a tile's rows i; `v` starts at the first of them, its
  // rows are `stride` apart. `out` has Tile::kMaxRows columns.
  using Out = void (*)(const float* components, const void* v, int64_t rank, int64_t stride, int64_t tokens,
                       int64_t columns, float* out);

  In (*in)(ort::ElementType);
  Out (*out)(ort::ElementType);
};

}  // namespace zq2onnx
