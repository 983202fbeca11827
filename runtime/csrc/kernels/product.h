// The product of activations with a packed weight: what kernels compute, and the table they stand in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../geometry.h"
#include "../ort_abi.h"
#include "branch.h"

namespace zq2onnx {

// A packed weight, as `zq2onnx/layout.py` lays it out.
struct Weight {
  const Geometry* geometry;
  const uint8_t* codes;
  const uint8_t* zero_points;
  const void* scales;  // [N, groups], of `type`
  ort::ElementType type;
};

// A tile of the result: all tokens that were prepared, by a few rows of the weight.
struct Tile {
  static constexpr int64_t kMaxTokens = 256;
  static constexpr int64_t kMaxRows = 16;
  int64_t tokens;
  int64_t row, rows;
};

// One way to compute a product. Activations are prepared first, a group of tokens at a time, in any order.
//
// Neither function throws or allocates: they run on ONNX Runtime's threads.
struct Form {
  int64_t group;  // tokens in a group

  // Bytes of prepared activations; they are aligned to 64.
  int64_t (*bytes)(const Geometry&, int64_t tokens);

  // Prepares tokens `first` to `first + group` of `a` [tokens, K], those that there are: rounds them to int8 where the
  // kernel multiplies integers, and lays them out as it reads them.
  void (*prepare)(const Geometry&, const float* a, int64_t tokens, int64_t first, std::byte* prepared);

  // out[t][r] = sum over k of activation[t, k] * (code[row + r, k] - zero point) * scale, accumulated in float32 (a
  // block's integers in int32), in an order that the form, K and the block size decide. `out` has kMaxRows columns.
  void (*multiply)(const Weight&, const std::byte* prepared, const Tile&, float* out);
};

// What a variant has for an operator.
struct Kernel {
  Form few;           // for up to `few_tokens`: reads the weight once, as fast as memory gives it
  Form many;          // for more: unpacks a part of the weight once for all tokens
  int64_t few_tokens;
  Branch branch;

  const Form& form(int64_t tokens) const { return tokens <= few_tokens ? few : many; }
};

// A set of kernels made for some processors.
struct Variant {
  const char* name;
  bool (*usable)();  // whether this processor can run it
  // Whether the variant has a kernel, and which.
  bool (*find)(Storage, Activation, int64_t block, Kernel&);
  int measured;  // bits of the Activations with which operators that pay were seen to pay by it
};

// The kernel of the first usable variant that has one; the last variant, portable C++, has all. The environment
// variable `ZQ2ONNX_KERNEL` names the best that may be taken, for tests; throws Error where there is none of that name.
Kernel find_kernel(Storage storage, Activation activation, int64_t block);

// Whether the kernel that `find_kernel` gives is of a variant that was measured.
bool is_measured(Storage storage, Activation activation);

// Names of the variants that this processor can run, best first, separated by blanks.
std::string usable_variants();

// Portable C++: every storage, activation and block size.
bool find_generic(Storage storage, Activation activation, int64_t block, Kernel& kernel);

// Sets of vector instructions, each in a translation unit of its own.
#if defined(__x86_64__)
bool find_avx512(Storage storage, Activation activation, int64_t block, Kernel& kernel);
bool find_avx2(Storage storage, Activation activation, int64_t block, Kernel& kernel);
// Compilers that know AVX-VNNI.
#if defined(__clang__) || __GNUC__ >= 11
#define ZQ2ONNX_AVX_VNNI
bool find_avx2_vnni(Storage storage, Activation activation, int64_t block, Kernel& kernel);
#endif
#elif defined(__aarch64__)
bool find_neon(Storage storage, Activation activation, int64_t block, Kernel& kernel);
bool find_neon_dotprod(Storage storage, Activation activation, int64_t block, Kernel& kernel);
#endif

}  // namespace zq2onnx
