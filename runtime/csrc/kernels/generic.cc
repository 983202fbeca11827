// The product in portable C++: every storage, activation, float type, block size and length.

#include <algorithm>

#include "../floats.h"
#include "decode.h"
#include "product.h"

namespace zq2onnx {
namespace {

// So many partial sums let a compiler use whatever vectors there are, and bound the error of the sum.
constexpr int64_t kLanes = 16;

float dot(const float* a, const float* b, int64_t size) {
  float lanes[kLanes] = {};
  int64_t at = 0;
  for (; at + kLanes <= size; at += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[at + lane] * b[at + lane];
  }
  for (int64_t lane = 0; at < size; ++at, ++lane) lanes[lane] += a[at] * b[at];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// At most 256 products of 127 * 255: far within 32 bits.
int32_t dot(const int8_t* a, const int16_t* b, int64_t size) {
  int32_t sum = 0;
  for (int64_t at = 0; at < size; ++at) sum += static_cast<int32_t>(a[at]) * b[at];
  return sum;
}

// One block of one row: codes less their zero point, and their scale.
template <typename Number>
struct Block {
  int64_t start;  // channel
  int64_t size;   // the last may be cut short by K; what is stored beyond is never read
  float scale;
  Number numbers[kMaxBlock];
};

template <Storage storage, typename T, typename Number>
void read_block(const Weight& weight, int64_t row, int64_t index, Block<Number>& block) {
  const Geometry& g = *weight.geometry;
  const uint8_t* stored = weight.codes + (row * g.k_blocks + index) * g.block_bytes;
  const uint8_t* high = storage == Storage::kHalfBytes ? stored + g.n * g.k_blocks * g.block_bytes : nullptr;
  uint8_t codes[kMaxBlock];
  decode_block<storage>(stored, high, g.block, codes);
  const int zero = zero_point<storage>(weight, row, index);
  block.start = index * g.block;
  block.size = std::min(g.block, g.k - block.start);
  for (int64_t at = 0; at < block.size; ++at) block.numbers[at] = static_cast<Number>(codes[at] - zero);
  block.scale = to_float(static_cast<const T*>(weight.scales)[row * g.groups + index / g.scale_repeat]);
}

template <Storage storage, typename T>
void product_of_floats(const Weight& weight, const Activations& activations, const Tile& tile, float* out) {
  const Geometry& g = *weight.geometry;
  Block<float> block;
  for (int64_t r = 0; r < tile.rows; ++r) {
    float sums[Tile::kMaxTokens] = {};
    for (int64_t index = 0; index < g.k_blocks; ++index) {
      read_block<storage, T>(weight, tile.row + r, index, block);
      for (int64_t t = 0; t < tile.tokens; ++t) {
        const float* a = activations.floats + (tile.token + t) * g.k + block.start;
        sums[t] += dot(a, block.numbers, block.size) * block.scale;
      }
    }
    for (int64_t t = 0; t < tile.tokens; ++t) out[t * Tile::kMaxRows + r] = sums[t];
  }
}

template <Storage storage, typename T, bool per_block>
void product_of_int8(const Weight& weight, const Activations& activations, const Tile& tile, float* out) {
  const Geometry& g = *weight.geometry;
  Block<int16_t> block;
  for (int64_t r = 0; r < tile.rows; ++r) {
    float sums[Tile::kMaxTokens] = {};
    for (int64_t index = 0; index < g.k_blocks; ++index) {
      read_block<storage, T>(weight, tile.row + r, index, block);
      for (int64_t t = 0; t < tile.tokens; ++t) {
        const int64_t token = tile.token + t;
        const int8_t* a = activations.codes + token * g.k + block.start;
        const auto sum = static_cast<float>(dot(a, block.numbers, block.size));
        const float each = per_block ? activations.scales[token * g.k_blocks + index] : 1.0f;
        sums[t] += sum * block.scale * each;
      }
    }
    for (int64_t t = 0; t < tile.tokens; ++t) {
      out[t * Tile::kMaxRows + r] = per_block ? sums[t] : sums[t] * activations.scales[tile.token + t];
    }
  }
}

template <Storage storage, typename T>
ProductKernel of_activation(Activation activation) {
  switch (activation) {
    case Activation::kInt8PerToken: return product_of_int8<storage, T, false>;
    case Activation::kInt8PerBlock: return product_of_int8<storage, T, true>;
    default: return product_of_floats<storage, T>;
  }
}

template <typename T>
ProductKernel of_storage(Storage storage, Activation activation) {
  switch (storage) {
    case Storage::kTwoBits: return of_activation<Storage::kTwoBits, T>(activation);
    case Storage::kThreeBits: return of_activation<Storage::kThreeBits, T>(activation);
    case Storage::kFourBits: return of_activation<Storage::kFourBits, T>(activation);
    case Storage::kHalfBytes: return of_activation<Storage::kHalfBytes, T>(activation);
    default: return of_activation<Storage::kWholeBytes, T>(activation);
  }
}

}  // namespace

ProductKernel find_generic(Storage storage, Activation activation, ort::ElementType type) {
  switch (type) {
    case ort::ElementType::kFloat16: return of_storage<Half>(storage, activation);
    case ort::ElementType::kBfloat16: return of_storage<Bfloat>(storage, activation);
    default: return of_storage<float>(storage, activation);
  }
}

}  // namespace zq2onnx
