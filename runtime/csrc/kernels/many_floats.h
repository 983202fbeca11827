// The product for many tokens: a part of a few rows is unpacked, and multiplied with all tokens.
//
//   Y[t, n] = sum over k of a[t, k] * w[n, k],   w = (code - zero point) * scale
//
// Lanes are tokens, so that sums need not be added up across them; weights are broadcast. Channels lie in the order
// in which codes are unpacked, in the activations as in the weights.
#pragma once

#include <utility>

#include "lanes.h"

namespace zq2onnx {

template <class S, Storage storage>
class ManyFloats {
  using Floats = typename S::Floats;
  using Words = typename S::Words;
  using Shape = Chunks<S, storage>;
  static constexpr int kRows = S::kManyRows;        // with as many vectors of tokens in registers
  static constexpr int kVectors = S::kManyVectors;
  static constexpr int64_t kPanel = 128;            // channels whose activations stay in the first cache
  static constexpr int64_t kChunks = std::max<int64_t>(1, kPanel / Shape::kCodes);  // unpacked together
  static constexpr int64_t kUnpacked = kChunks * Shape::kCodes;                     // codes of them

  static int64_t group_floats(const Geometry& g) { return Shape::count(g) * Shape::kCodes * S::kLanes; }

  // w[v * kLanes + lane] for the codes of one chunk of one row.
  template <int... index>
  static inline __attribute__((always_inline)) void unpack(const ChunkReader<S, storage>& reader, int64_t row,
                                                           int64_t chunk, float* w,
                                                           std::integer_sequence<int, index...>) {
    Words words[words_of_lane(storage)];
    Floats scales[1];
    Floats zeros[1];
    reader.read(reader.row(row), chunk, words);
    reader.template read_scaling<1>(row, chunk, scales, zeros);
    (S::store(w + index * S::kLanes,
              S::multiply(S::subtract(code<index>(words), zeros[0]), scales[0])), ...);
  }

  template <int index>
  static Floats code(const Words* words) {
    constexpr CodePlace place = place_of(storage, index);
    return S::to_floats(S::both(S::template shift_right<place.shift>(words[place.word]), S::broadcast_bits(place.mask)));
  }

  // sums[r][t] += sum over `channels` of w[r][k] * a[k][t], for `vectors` vectors of tokens.
  template <int vectors>
  static void multiply_panel(const float* const* a, const float* w, int64_t channels, float* sums) {
    Floats parts[kRows][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) parts[r][v] = S::load(sums + r * Tile::kMaxTokens + v * S::kLanes);
    }
    for (int64_t k = 0; k < channels; ++k) {
      Floats values[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) values[v] = S::hold(S::load(a[v] + k * S::kLanes));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Floats weight = S::broadcast(w[r * kUnpacked + k]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) parts[r][v] = S::fma(weight, values[v], parts[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) S::store(sums + r * Tile::kMaxTokens + v * S::kLanes, parts[r][v]);
    }
  }

  // The product of all tokens with the unpacked rows, for one panel of channels.
  static void multiply_tokens(const float* a, int64_t stride, int64_t groups, int64_t rows, const float* w,
                              int64_t channels, float* sums) {
    for (int64_t group = 0; group < groups;) {
      const int64_t vectors = groups - group >= kVectors ? kVectors : 1;
      const float* from[kVectors];
      for (int64_t v = 0; v < vectors; ++v) from[v] = a + (group + v) * stride;
      for (int64_t r = 0; r < rows; r += kRows) {
        float* to = sums + r * Tile::kMaxTokens + group * S::kLanes;
        if (vectors == kVectors) {
          multiply_panel<kVectors>(from, w + r * kUnpacked, channels, to);
        } else {
          multiply_panel<1>(from, w + r * kUnpacked, channels, to);
        }
      }
      group += vectors;
    }
  }

 public:
  static int64_t bytes(const Geometry& g, int64_t tokens) {
    return (tokens + S::kLanes - 1) / S::kLanes * group_floats(g) * static_cast<int64_t>(sizeof(float));
  }

  static void prepare(const Geometry& g, const float* a, int64_t tokens, int64_t first, std::byte* prepared) {
    float* to = reinterpret_cast<float*>(prepared) + first / S::kLanes * group_floats(g);
    for (int64_t chunk = 0; chunk < Shape::count(g); ++chunk) {
      for (int64_t t = 0; t < S::kLanes; ++t) {
        const float* token = first + t < tokens ? a + (first + t) * g.k : nullptr;
        for (int64_t run = 0; run < Shape::kRuns; ++run) {
          for (int64_t lane = 0; lane < S::kLanes; ++lane) {
            const int64_t channel = Shape::channel(g, chunk, run, lane);
            const int64_t there = token ? std::clamp<int64_t>(g.k - channel, 0, Shape::kRun) : 0;
            for (int64_t i = 0; i < Shape::kRun; ++i) {
              const int64_t turn = chunk * Shape::kLane + turn_of(storage, run * Shape::kRun + i);
              to[(turn * S::kLanes + lane) * S::kLanes + t] = i < there ? token[channel + i] : 0.0f;
            }
          }
        }
      }
    }
  }

  static void multiply(const Weight& weight, const std::byte* prepared, const Tile& tile, float* out) {
    const Geometry& g = *weight.geometry;
    const ChunkReader<S, storage> reader(weight);
    const int64_t stride = group_floats(g);
    const int64_t groups = (tile.tokens + S::kLanes - 1) / S::kLanes;
    const float* a = reinterpret_cast<const float*>(prepared);
    alignas(64) float w[Tile::kMaxRows * kUnpacked];
    alignas(64) float sums[Tile::kMaxRows * Tile::kMaxTokens];
    for (int64_t r = 0; r < Tile::kMaxRows; ++r) {
      std::fill_n(sums + r * Tile::kMaxTokens, groups * S::kLanes, 0.0f);
      if (r >= tile.rows) std::fill_n(w + r * kUnpacked, kUnpacked, 0.0f);
    }
    for (int64_t chunk = 0; chunk < Shape::count(g); chunk += kChunks) {
      const int64_t chunks = std::min(kChunks, Shape::count(g) - chunk);
      for (int64_t r = 0; r < tile.rows; ++r) {
        for (int64_t i = 0; i < chunks; ++i) {
          unpack(reader, tile.row + r, chunk + i, w + r * kUnpacked + i * Shape::kCodes,
                 std::make_integer_sequence<int, Shape::kLane>());
        }
      }
      for (int64_t k = 0; k < chunks * Shape::kCodes; k += kPanel) {
        const int64_t channels = std::min(kPanel, chunks * Shape::kCodes - k);
        multiply_tokens(a + (chunk * Shape::kCodes + k) * S::kLanes, stride, groups, tile.rows, w + k, channels, sums);
      }
    }
    for (int64_t t = 0; t < tile.tokens; ++t) {
      for (int64_t r = 0; r < tile.rows; ++r) out[t * Tile::kMaxRows + r] = sums[r * Tile::kMaxTokens + t];
    }
  }
};

}  // namespace zq2onnx
