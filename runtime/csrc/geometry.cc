#include "geometry.h"

#include "error.h"

namespace zq2onnx {
namespace {

// No tensor has so many elements along one axis; below it, sums and small multiples do not overflow.
constexpr int64_t kMost = int64_t{1} << 40;

int64_t divide_up(int64_t value, int64_t by) { return value / by + (value % by != 0); }

void require_positive(const char* name, int64_t value) {
  if (value < 1 || value > kMost) {
    throw Error("attribute " + std::string(name) + " is " + std::to_string(value), "1 to 2^40");
  }
}

int64_t bytes_of_block(Storage storage, int64_t block) {
  switch (storage) {
    case Storage::kTwoBits: return block / 4;
    case Storage::kThreeBits: return block / 8 * 3;
    case Storage::kWholeBytes: return block;
    default: return block / 2;
  }
}

}  // namespace

std::string to_text(const Shape& shape) {
  std::string text = "[";
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    text += (axis ? ", " : "") + std::to_string(shape[axis]);
  }
  return text + "]";
}

std::string Geometry::text() const {
  return "K=" + std::to_string(k) + ", N=" + std::to_string(n) + ", block_size=" + std::to_string(block) +
         ", scale_repeat=" + std::to_string(scale_repeat) +
         ", zero_point_repeat=" + std::to_string(zero_repeat);
}

Shape Geometry::input_shape(Input input, int64_t rank) const {
  switch (input) {
    case kB: return {rows, k_blocks, block_bytes};
    case kScales: return {n, groups};
    case kZeroPoints: return {rows, zero_bytes};
    case kBias: return {rows};
    case kU: return {k, rank};
    case kV: return {rank, n};
    case kUScales: return {1, rank};
    case kVScales: return {rank, 1};
    default: return {};
  }
}

Geometry make_geometry(const Operator& op, const Attributes& attributes) {
  require_positive("K", attributes.k);
  require_positive("N", attributes.n);
  require_positive("scale_repeat", attributes.scale_repeat);
  require_positive("zero_point_repeat", attributes.zero_point_repeat);
  Geometry g;
  g.k = attributes.k;
  g.n = attributes.n;
  g.block = attributes.block_size;
  g.scale_repeat = attributes.scale_repeat;
  g.zero_repeat = attributes.zero_point_repeat;
  if (g.block < 16 || g.block > kMaxBlock || (g.block & (g.block - 1)) != 0) {
    throw Error("attribute block_size is " + std::to_string(g.block), "16, 32, 64, 128 or 256");
  }
  const Storage storage = op.storage();
  const bool half_bytes = storage == Storage::kHalfBytes;
  g.k_blocks = divide_up(g.k, g.block);
  g.groups = divide_up(g.k_blocks, g.scale_repeat);
  g.block_bytes = bytes_of_block(storage, g.block);
  g.rows = half_bytes ? 2 * g.n : g.n;
  const int64_t bytes = storage == Storage::kWholeBytes ? g.k_blocks : divide_up(g.k_blocks, 2);
  g.zero_bytes = divide_up(bytes, g.zero_repeat);
  if (half_bytes && attributes.stored_rows != g.rows) {
    throw Error("attribute stored_rows is " + std::to_string(attributes.stored_rows),
                "2N = " + std::to_string(g.rows));
  }
  int64_t size;  // of the largest thing indexed: the float weight, 4 bytes each
  if (__builtin_mul_overflow(g.rows, g.k_blocks * g.block, &size) || size > INT64_MAX / 8) {
    throw Error("attributes K = " + std::to_string(g.k) + " and N = " + std::to_string(g.n),
                "a weight that can be addressed");
  }
  return g;
}

}  // namespace zq2onnx
