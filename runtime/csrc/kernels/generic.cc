// The product in portable C++: every storage, activation, float type, block size and length.

#include <algorithm>

#include "../floats.h"
#include "decode.h"
#include "prepare.h"
#include "product.h"
#include "rounding.h"

namespace zq2onnx {
namespace {

struct Portable;

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

template <Storage storage, typename Number>
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
  find_widen(weight.type)(element(weight.scales, weight.type, row * g.groups + index / g.scale_repeat), 1,
                          &block.scale);
}

// Prepared tokens are as they were.
int64_t float_bytes(const Geometry& g, int64_t tokens) {
  return tokens * g.k * static_cast<int64_t>(sizeof(float));
}

void prepare_floats(const Geometry& g, const float* a, int64_t, int64_t token, std::byte* prepared) {
  std::copy_n(a + token * g.k, g.k, reinterpret_cast<float*>(prepared) + token * g.k);
}

template <Storage storage>
void product_of_floats(const Weight& weight, const std::byte* prepared, const Tile& tile, float* out) {
  const Geometry& g = *weight.geometry;
  const float* tokens = reinterpret_cast<const float*>(prepared);
  Block<float> block;
  for (int64_t r = 0; r < tile.rows; ++r) {
    float sums[Tile::kMaxTokens] = {};
    for (int64_t index = 0; index < g.k_blocks; ++index) {
      read_block<storage>(weight, tile.row + r, index, block);
      for (int64_t t = 0; t < tile.tokens; ++t) {
        sums[t] += dot(tokens + t * g.k + block.start, block.numbers, block.size) * block.scale;
      }
    }
    for (int64_t t = 0; t < tile.tokens; ++t) out[t * Tile::kMaxRows + r] = sums[t];
  }
}

// Prepared tokens are rounded: their codes, and a scale for each block, or for all.
struct RoundedToken {
  float* scales;
  int8_t* codes;

  RoundedToken(const Geometry& g, const std::byte* prepared, int64_t token) {
    std::byte* start = const_cast<std::byte*>(prepared) + token * stride(g);
    scales = reinterpret_cast<float*>(start);
    codes = reinterpret_cast<int8_t*>(scales + g.k_blocks);
  }
  static int64_t stride(const Geometry& g) { return (4 * g.k_blocks + g.k + 3) / 4 * 4; }
};

int64_t rounded_bytes(const Geometry& g, int64_t tokens) { return tokens * RoundedToken::stride(g); }

template <bool per_block>
void prepare_rounded(const Geometry& g, const float* a, int64_t, int64_t token, std::byte* prepared) {
  const RoundedToken to(g, prepared, token);
  const float* values = a + token * g.k;
  const float token_scale = per_block ? 1.0f : Rounding<Portable>::scale(values, g.k);
  for (int64_t index = 0; index < g.k_blocks; ++index) {
    const int64_t start = index * g.block;
    const int64_t size = std::min(g.block, g.k - start);
    to.scales[index] = per_block ? Rounding<Portable>::scale(values + start, size) : token_scale;
    Rounding<Portable>::round(values + start, size, to.scales[index], to.codes + start);
  }
}

template <Storage storage, bool per_block>
void product_of_int8(const Weight& weight, const std::byte* prepared, const Tile& tile, float* out) {
  const Geometry& g = *weight.geometry;
  Block<int16_t> block;
  for (int64_t r = 0; r < tile.rows; ++r) {
    float sums[Tile::kMaxTokens] = {};
    for (int64_t index = 0; index < g.k_blocks; ++index) {
      read_block<storage>(weight, tile.row + r, index, block);
      for (int64_t t = 0; t < tile.tokens; ++t) {
        const RoundedToken token(g, prepared, t);
        const auto sum = static_cast<float>(dot(token.codes + block.start, block.numbers, block.size));
        sums[t] += sum * block.scale * (per_block ? token.scales[index] : 1.0f);
      }
    }
    for (int64_t t = 0; t < tile.tokens; ++t) {
      const RoundedToken token(g, prepared, t);
      out[t * Tile::kMaxRows + r] = per_block ? sums[t] : sums[t] * token.scales[0];
    }
  }
}

template <Storage storage>
Form form_of(Activation activation) {
  switch (activation) {
    case Activation::kInt8PerToken:
      return {1, rounded_bytes, prepare_rounded<false>, product_of_int8<storage, false>};
    case Activation::kInt8PerBlock:
      return {1, rounded_bytes, prepare_rounded<true>, product_of_int8<storage, true>};
    default: return {1, float_bytes, prepare_floats, product_of_floats<storage>};
  }
}

Form form_of(Storage storage, Activation activation) {
  switch (storage) {
    case Storage::kTwoBits: return form_of<Storage::kTwoBits>(activation);
    case Storage::kThreeBits: return form_of<Storage::kThreeBits>(activation);
    case Storage::kFourBits: return form_of<Storage::kFourBits>(activation);
    case Storage::kHalfBytes: return form_of<Storage::kHalfBytes>(activation);
    default: return form_of<Storage::kWholeBytes>(activation);
  }
}

template <typename T>
void branch_in(const float* a, int64_t a_stride, int64_t tokens, const void* u, int64_t channels, int64_t rank,
               float* to, int64_t to_stride) {
  const T* factor = static_cast<const T*>(u);
  for (int64_t t = 0; t < tokens; ++t) {
    float* sums = to + t * to_stride;
    std::fill_n(sums, rank, 0.0f);
    for (int64_t k = 0; k < channels; ++k) {
      for (int64_t r = 0; r < rank; ++r) sums[r] += a[t * a_stride + k] * to_float(factor[k * rank + r]);
    }
  }
}

template <typename T>
void branch_out(const float* components, const void* v, int64_t rank, int64_t stride, int64_t tokens, int64_t columns,
                float* out) {
  const T* factor = static_cast<const T*>(v);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < rank; ++r) {
      const float component = components[t * rank + r];
      const T* row = factor + r * stride;
      for (int64_t i = 0; i < columns; ++i) out[t * Tile::kMaxRows + i] += component * to_float(row[i]);
    }
  }
}

Branch::In find_branch_in(ort::ElementType type) {
  return with_type(type, [](auto value) -> Branch::In { return branch_in<decltype(value)>; });
}

Branch::Out find_branch_out(ort::ElementType type) {
  return with_type(type, [](auto value) -> Branch::Out { return branch_out<decltype(value)>; });
}

}  // namespace

bool find_generic(Storage storage, Activation activation, int64_t, Kernel& kernel) {
  kernel.few = kernel.many = form_of(storage, activation);
  kernel.few_tokens = 0;
  kernel.branch = {find_branch_in, find_branch_out};
  return true;
}

}  // namespace zq2onnx
