// Tokens to float32 before the product, and to the node's type after it.
#pragma once

#include <cstdint>

#include "../ort_abi.h"

namespace zq2onnx {

// to[0..size) as float32.
using Widen = void (*)(const void* from, int64_t size, float* to);
Widen find_widen(ort::ElementType type);

// y[t][r] = out[t][r] + bias[r] in the node's float type, for a tile of tokens by `rows` rows. `out` has
// Tile::kMaxRows columns, tokens of `y` are `stride` apart.
using Narrow = void (*)(const float* out, const float* bias, int64_t tokens, int64_t rows, int64_t stride, void* y);
Narrow find_narrow(ort::ElementType type);

// Bytes of an element.
int64_t size_of(ort::ElementType type);

// Where the `at`th element of a tensor is.
const void* element(const void* data, ort::ElementType type, int64_t at);

}  // namespace zq2onnx
