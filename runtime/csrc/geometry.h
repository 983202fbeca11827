// A node's attributes and the shapes that its inputs must have.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "operators.h"

namespace zq2onnx {

using Shape = std::vector<int64_t>;

std::string to_text(const Shape& shape);

// The greatest block: kernels hold one on their stack.
constexpr int64_t kMaxBlock = 256;

// Sizes of one node. Everything is at least 1, and no product below overflows.
struct Geometry {
  int64_t k = 0;
  int64_t n = 0;
  int64_t block = 0;         // codes in a stored block: 16, 32, 64, 128 or 256
  int64_t scale_repeat = 0;  // blocks that share a stored scale
  int64_t zero_repeat = 0;   // pairs of blocks (whole bytes: blocks) that share a byte of zero points
  int64_t k_blocks = 0;
  int64_t groups = 0;       // stored scales of a row
  int64_t block_bytes = 0;  // bytes of a block in `B`
  int64_t zero_bytes = 0;   // bytes of zero points in a row
  int64_t rows = 0;         // of `B` and `zero_points`: N, or 2N where half bytes are stored

  // The shape that an input after A must have, where the branch has `rank` components.
  Shape input_shape(Input input, int64_t rank) const;

  std::string text() const;
};

// Attributes as the model states them.
struct Attributes {
  int64_t k, n, block_size, scale_repeat, zero_point_repeat, stored_rows;
};

// Throws Error where the attributes contradict each other or the operator.
Geometry make_geometry(const Operator& op, const Attributes& attributes);

}  // namespace zq2onnx
