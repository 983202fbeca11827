// The product of activations with a packed weight: what kernels compute, and the table they stand in.
#pragma once

#include <cstdint>
#include <string>

#include "../geometry.h"
#include "../ort_abi.h"

namespace zq2onnx {

// A packed weight, as `zq2onnx/layout.py` lays it out.
struct Weight {
  const Geometry* geometry;
  const uint8_t* codes;
  const uint8_t* zero_points;
  const void* scales;  // [N, groups], of the node's float type
};

// Activations as they are multiplied: `floats`, or `codes` with their scales; the rest is null.
struct Activations {
  const float* floats;  // [tokens, K]
  const int8_t* codes;  // [tokens, K]
  const float* scales;  // [tokens], or [tokens, k_blocks] where each block has its own
};

// A tile of the result: a few tokens by a few rows of the weight.
struct Tile {
  static constexpr int64_t kMaxTokens = 32;
  static constexpr int64_t kMaxRows = 16;
  int64_t token, tokens;
  int64_t row, rows;
};

// out[t][r] = sum over k of activation[token + t, k] * (code[row + r, k] - zero point) * scale, accumulated in
// float32 (a block's integers in int32), in an order that depends on K and the block size alone.
//
// `out` has kMaxTokens rows of kMaxRows. Kernels neither throw nor allocate: they run on ONNX Runtime's threads.
using ProductKernel = void (*)(const Weight&, const Activations&, const Tile&, float* out);

// A set of kernels made for some processors.
struct Variant {
  const char* name;
  bool (*usable)();  // whether this processor can run it
  // A kernel, or null where the variant has none.
  ProductKernel (*find)(Storage, Activation, ort::ElementType);
};

// The first usable variant that has a kernel; the last variant, portable C++, has all. The environment variable
// `ZQ2ONNX_KERNEL` names the best that may be taken, for tests; throws Error where there is none of that name.
ProductKernel find_product(Storage storage, Activation activation, ort::ElementType type);

// Names of the variants that this processor can run, best first, separated by blanks.
std::string usable_variants();

// Portable C++: every storage, activation and float type.
ProductKernel find_generic(Storage storage, Activation activation, ort::ElementType type);

}  // namespace zq2onnx
