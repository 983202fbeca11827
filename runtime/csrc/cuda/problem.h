// What one node asks of the kernels: its sizes and its arrays, by the names that the manifest speaks of them.
// `zq2onnx/runtime/kernels/problem.py` says what each size means.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "../geometry.h"

namespace zq2onnx::cuda {

enum class Size : uint8_t {
  // Known of a node.
  kBits, kRounds, kN, kK, kBlock, kBlocksOfK, kKPadded, kRowBytes, kGroup, kGroupShift, kGroups, kZeroBytes,
  kZeroPacked, kXShift, kXBlocks,
  // Known of a run.
  kM, kRank, kRankOrOne, kParts, kHasBias, kUInt8, kVInt8,
  // Known when a product is chosen.
  kCodes, kXStride, kXWaits,
  kCount
};

constexpr std::array<std::string_view, static_cast<size_t>(Size::kCount)> kSizeNames = {
    "bits", "rounds", "N", "K", "block", "k_blocks", "k_padded", "row_bytes", "group", "group_shift", "groups",
    "zero_bytes", "zero_packed", "x_shift", "x_blocks", "M", "rank", "rank_or_one", "parts", "has_bias", "u_int8",
    "v_int8", "codes", "x_stride", "x_waits"};

constexpr bool is_known_of_node(Size size) { return size < Size::kM; }

class Sizes {
 public:
  int64_t& operator[](Size size) { return values_[static_cast<size_t>(size)]; }
  int64_t operator[](Size size) const { return values_[static_cast<size_t>(size)]; }

 private:
  std::array<int64_t, static_cast<size_t>(Size::kCount)> values_{};
};

enum class Array : uint8_t {
  kA, kB, kScales, kZeroPoints, kBias, kU, kV, kUScales, kVScales,  // inputs, in the order of `Input`
  kY, kT, kX, kSums, kXScales,
  kCount
};

constexpr std::array<std::string_view, static_cast<size_t>(Array::kCount)> kArrayNames = {
    "A", "B", "scales", "zero_points", "bias", "U", "V", "U_scales", "V_scales", "Y", "T", "X", "sums", "x_scales"};

// Nothing where the name is not known.
std::optional<Size> size_named(std::string_view name);
std::optional<Array> array_named(std::string_view name);

// The greatest size that kernels take, and what stands for no bound.
constexpr int64_t kMostSize = INT32_MAX;

// The sizes that are known of an operator: bits and rounding.
Sizes kind_sizes(const Operator& op);

// The sizes that are known of a node. Throws Error where no kernel takes them.
Sizes node_sizes(const Operator& op, const Geometry& geometry);

// What one run adds to them. Throws Error where a kernel's 32-bit indices would not do.
struct RunSizes {
  int64_t tokens, rank;
  bool bias, int8_u, int8_v;
};
void add_run(Sizes& sizes, const RunSizes& run);

}  // namespace zq2onnx::cuda
