// The product for a few tokens: the weight is read once, as it is stored, and unpacked in registers.
//
//   Y[t, n] = sum over chunks c and lanes l of  scale[n, c, l] *
//             (sum over codes i of code[n, c, l, i] * a[t, c, l, i]  -  zero[n, c, l] * sum over i of a[..])
//
// A code is masked out of its word where it stands, and made a float so: 2^s times too large. Activations lie in the
// order of the codes, and are made 2^s times smaller beforehand. Both are exact (s is 28 at most: but for activations
// below 1e-29).
#pragma once

#include <utility>

#include "lanes.h"

namespace zq2onnx {

template <class S, Storage storage>
class FewFloats {
  using Floats = typename S::Floats;
  using Words = typename S::Words;
  using Shape = Chunks<S, storage>;
  static constexpr int64_t kVectors = Shape::kLane + 1;  // of a prepared chunk: its activations, and their sums

  static int64_t token_floats(const Geometry& g) { return Shape::count(g) * kVectors * S::kLanes; }

  static void prepare_chunk(const Geometry& g, const float* a, int64_t chunk, float* to) {
    float* sums = to + Shape::kLane * S::kLanes;
    for (int64_t lane = 0; lane < S::kLanes; ++lane) sums[lane] = 0.0f;
    for (int64_t run = 0; run < Shape::kRuns; ++run) {
      for (int64_t lane = 0; lane < S::kLanes; ++lane) {
        const int64_t first = Shape::channel(g, chunk, run, lane);
        for (int64_t i = 0; i < Shape::kRun; ++i) {
          const float value = first + i < g.k ? a[first + i] : 0.0f;
          const int64_t turn = turn_of(storage, run * Shape::kRun + i);
          to[turn * S::kLanes + lane] = value / place_of(storage, static_cast<int>(turn)).factor();
          sums[lane] += value;
        }
      }
    }
  }

  template <int index>
  static Floats code(Words word, Words mask) {
    constexpr CodePlace place = place_of(storage, index);
    if constexpr (place.top()) return S::to_floats(S::template shift_right<place.shift>(word));
    return S::to_floats(S::both(word, mask));
  }

  // Adds the products of one code of each lane.
  template <int index, int kTokens, int kRows>
  static inline __attribute__((always_inline)) void step(const float* const* a, const Words (&words)[kRows],
                                                         Floats (&sums)[kRows][kTokens]) {
    constexpr CodePlace place = place_of(storage, index);
    // Held in registers: rows share them, and reading them again for each takes longer than the products.
    Floats values[kTokens];
    for (int t = 0; t < kTokens; ++t) values[t] = S::hold(S::load(a[t] + index * S::kLanes));
    const Words mask = S::hold(S::broadcast_bits(place.mask << place.shift));
    for (int r = 0; r < kRows; ++r) {
      const Floats number = code<index>(words[r], mask);
      for (int t = 0; t < kTokens; ++t) sums[r][t] = S::fma(number, values[t], sums[r][t]);
    }
  }

  // Adds those of all codes that lie in a word, which are neighbours.
  template <int word, int kTokens, int kRows, int... index>
  static inline __attribute__((always_inline)) void add_word(const ChunkReader<S, storage>& reader,
                                                             typename ChunkReader<S, storage>::Stored (&stored)[kRows],
                                                             const float* const* a, Floats (&sums)[kRows][kTokens],
                                                             std::integer_sequence<int, index...>) {
    Words words[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) words[r] = reader.template word<word>(stored[r]);
    (step<word * static_cast<int>(sizeof...(index)) + index>(a, words, sums), ...);
  }

  template <int kTokens, int kRows>
  static inline __attribute__((always_inline)) void add_chunk(const ChunkReader<S, storage>& reader, int64_t row,
                                                              int64_t chunk, bool ahead, const float* const* a,
                                                              Floats (&sums)[kRows][kTokens]) {
    constexpr int kWords = words_of_lane(storage);
    constexpr auto kCodes = std::make_integer_sequence<int, Shape::kLane / kWords>();
    typename ChunkReader<S, storage>::Stored stored[kRows];
    typename ChunkReader<S, storage>::Tail tails[kRows];
    Floats part[kRows][kTokens];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      stored[r] = reader.load(reader.row(row + r), chunk, tails[r]);
      for (int t = 0; t < kTokens; ++t) part[r][t] = S::zero();
    }
    const auto ask = [&](int64_t quarter) {
      if (ahead) reader.template prefetch<kRows, kWords>(row + kRows, chunk, quarter);
    };
    ask(0);
    add_word<0>(reader, stored, a, part, kCodes);
    if constexpr (kWords > 1) {
      ask(1);
      add_word<1>(reader, stored, a, part, kCodes);
    }
    if constexpr (kWords > 2) {
      ask(2);
      add_word<2>(reader, stored, a, part, kCodes);
      ask(3);
      add_word<3>(reader, stored, a, part, kCodes);
    }
    Floats scales[kRows];
    Floats zeros[kRows];
    reader.template read_scaling<kRows>(row, chunk, scales, zeros);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTokens; ++t) {
        const Floats sum =
            S::subtract_product(zeros[r], S::load(a[t] + Shape::kLane * S::kLanes), part[r][t]);
        sums[r][t] = S::fma(scales[r], sum, sums[r][t]);
      }
    }
  }

  template <int kTokens, int kRows>
  static void multiply_rows(const ChunkReader<S, storage>& reader, const Geometry& g, const float* prepared,
                            int64_t row, bool ahead, float* out) {
    const int64_t stride = token_floats(g);
    Floats sums[kRows][kTokens];
    for (auto& each : sums) {
      for (Floats& sum : each) sum = S::zero();
    }
    const float* a[kTokens];
    for (int t = 0; t < kTokens; ++t) a[t] = prepared + t * stride;
    for (int64_t chunk = 0; chunk < Shape::count(g); ++chunk) {
      add_chunk<kTokens, kRows>(reader, row, chunk, ahead, a, sums);
      for (int t = 0; t < kTokens; ++t) a[t] += kVectors * S::kLanes;
    }
    for (int r = 0; r < kRows; ++r) {
      for (int t = 0; t < kTokens; ++t) out[t * Tile::kMaxRows + r] = S::sum(sums[r][t]);
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
    for (int64_t chunk = 0; chunk < Shape::count(g); ++chunk) {
      prepare_chunk(g, a + token * g.k, chunk, to + chunk * kVectors * S::kLanes);
    }
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
