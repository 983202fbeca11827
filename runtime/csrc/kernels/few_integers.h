// The product for a few tokens whose activations are int8: the weight is read once, as it is stored.
//
//   Y[t, n] = sum over chunks c and lanes l of  scale[n, c, l] * activation_scale[t, c, l] *
//             (sum over codes i of code[n, c, l, i] * a[t, c, l, i]  -  zero[n, c, l] * sum over i of a[..])
//
// The inner sums are integers. A scale of activations is one to a block, or one to a token.
#pragma once

#include "code_bytes.h"

namespace zq2onnx {

template <class S, Storage storage, bool per_block>
class FewIntegers {
  using Floats = typename S::Floats;
  using Words = typename S::Words;
  using Shape = Chunks<S, storage>;
  static constexpr int kVectors = byte_vectors(storage);
  // Of a prepared chunk: its words, their sums, and where blocks have them their scales.
  static constexpr int64_t kStride = (kVectors + 1 + (per_block ? 1 : 0)) * S::kLanes;

  // A token's scale comes first.
  static int64_t token_floats(const Geometry& g) { return S::kLanes + Shape::count(g) * kStride; }

  template <int kTokens, int kRows>
  static inline __attribute__((always_inline)) void add_chunk(const ChunkReader<S, storage>& reader, int64_t row,
                                                              int64_t chunk, const float* const* a,
                                                              Floats (&sums)[kRows][kTokens]) {
    Words words[kRows][words_of_lane(storage)];
    Words totals[kRows][kTokens];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      reader.read(reader.row(row + r), chunk, words[r]);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) totals[r][t] = S::no_words();
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      // Held in registers: rows share them.
      Words values[kTokens];
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) values[t] = S::hold(S::load_words(a[t] + v * S::kLanes));
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Words bytes = code_bytes<S, storage>(words[r], v);
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) {
          totals[r][t] = S::template dot<code_bits(storage)>(totals[r][t], bytes, values[t]);
        }
      }
    }
    Floats scales[kRows];
    Floats zeros[kRows];
    reader.template read_scaling<kRows>(row, chunk, scales, zeros);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        const float* after = a[t] + kVectors * S::kLanes;
        const Floats zero = zero_of_bytes<S, storage>(zeros[r]);
        Floats part = S::subtract_product(zero, S::load(after), S::to_floats(totals[r][t]));
        if constexpr (per_block) part = S::multiply(part, S::load(after + S::kLanes));
        sums[r][t] = S::fma(scales[r], part, sums[r][t]);
      }
    }
  }

  template <int kTokens, int kRows>
  static void multiply_rows(const ChunkReader<S, storage>& reader, const Geometry& g, const float* prepared,
                            int64_t row, bool ahead, float* out) {
    Floats sums[kRows][kTokens];
    const float* a[kTokens];
    for (auto& each : sums) {
      for (Floats& sum : each) sum = S::zero();
    }
    for (int t = 0; t < kTokens; ++t) a[t] = prepared + t * token_floats(g) + S::kLanes;
    for (int64_t chunk = 0; chunk < Shape::count(g); ++chunk) {
      if (ahead) reader.template prefetch<kRows>(row + kRows, chunk);
      add_chunk<kTokens, kRows>(reader, row, chunk, a, sums);
      for (int t = 0; t < kTokens; ++t) a[t] += kStride;
    }
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTokens; ++t) {
        out[t * Tile::kMaxRows + r] = S::sum(sums[r][t]) * prepared[t * token_floats(g)];
      }
    }
  }

  // A few tokens by a few rows; `ahead`, where the next rows are to be asked for.
  template <int kTokens>
  static void multiply_tokens(const ChunkReader<S, storage>& reader, const Geometry& g, const float* prepared,
                              int64_t row, int64_t rows, bool ahead, float* out) {
    constexpr int kRows = rows_at_once<S>(storage, kTokens);
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) {
      multiply_rows<kTokens, kRows>(reader, g, prepared, row + r, ahead, out + r);
    }
    for (; r < rows; ++r) multiply_rows<kTokens, 1>(reader, g, prepared, row + r, ahead, out + r);
  }

 public:
  static int64_t bytes(const Geometry& g, int64_t tokens) {
    return tokens * token_floats(g) * static_cast<int64_t>(sizeof(float));
  }

  static void prepare(const Geometry& g, const float* a, int64_t, int64_t token, std::byte* prepared) {
    float* to = reinterpret_cast<float*>(prepared) + token * token_floats(g);
    float* chunks = to + S::kLanes;
    std::fill_n(to, token_floats(g), 0.0f);
    const auto each = [&](int64_t chunk, int64_t run, int64_t lane, const uint32_t* words, float sum) {
      float* at = chunks + chunk * kStride + lane;
      constexpr int64_t kWords = Shape::kRun / 4;
      for (int64_t i = 0; i < kWords; ++i) {
        std::memcpy(at + (run * kWords + i) * S::kLanes, &words[i], sizeof words[i]);
      }
      at[kVectors * S::kLanes] += sum;
    };
    const auto scaled = [&](int64_t block, float scale) {
      if constexpr (!per_block) return;
      const int64_t lanes = g.block / Shape::kLane;
      for (int64_t lane = block * lanes; lane < (block + 1) * lanes; ++lane) {
        chunks[lane / S::kLanes * kStride + (kVectors + 1) * S::kLanes + lane % S::kLanes] = scale;
      }
    };
    to[0] = round_token<S, storage, per_block>(g, a + token * g.k, each, scaled);
  }

  static void multiply(const Weight& weight, const std::byte* prepared, const Tile& tile, float* out) {
    const Geometry& g = *weight.geometry;
    const ChunkReader<S, storage> reader(weight);
    const auto at = [&](int64_t token) { return reinterpret_cast<const float*>(prepared) + token * token_floats(g); };
    constexpr int64_t kStep = 4;  // rows that stay in the first cache while all tokens are multiplied with them
    for (int64_t r = 0; r < tile.rows; r += kStep) {
      const int64_t row = tile.row + r;
      const int64_t rows = std::min(kStep, tile.rows - r);
      const auto to = [&](int64_t token) { return out + token * Tile::kMaxRows + r; };
      int64_t t = 0;
      for (; t + 4 <= tile.tokens; t += 4) multiply_tokens<4>(reader, g, at(t), row, rows, t == 0, to(t));
      for (; t + 2 <= tile.tokens; t += 2) multiply_tokens<2>(reader, g, at(t), row, rows, t == 0, to(t));
      for (; t < tile.tokens; ++t) multiply_tokens<1>(reader, g, at(t), row, rows, t == 0, to(t));
    }
  }
};

}  // namespace zq2onnx
