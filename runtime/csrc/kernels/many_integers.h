// The product for many tokens whose activations are int8: a part of a few rows is unpacked to bytes, and multiplied
// with all tokens.
//
//   Y[t, n] = activation_scale[t] * sum over blocks b of  scale[n, b] * activation_scale[t, b] *
//             (sum over k in b of code[n, k] * a[t, k]  -  zero[n, b] * sum over k in b of a[t, k])
//
// Lanes are tokens, each with four channels to a word; words of codes are broadcast.
#pragma once

#include "code_bytes.h"

namespace zq2onnx {

template <class S, Storage storage, bool per_block>
class ManyIntegers {
  using Floats = typename S::Floats;
  using Words = typename S::Words;
  using Shape = Chunks<S, storage>;
  static constexpr int kRows = S::kManyRows;
  static constexpr int kVectors = S::kManyVectors;
  static constexpr int kBytes = byte_vectors(storage);  // vectors of code bytes in a chunk
  static constexpr int64_t kWords = kBytes * S::kLanes;

  // A group of tokens: words of all channels; sums of each block; scales of each block, or of tokens.
  struct Group {
    uint32_t* words;
    float* sums;
    float* scales;

    Group(const Geometry& g, const std::byte* prepared, int64_t group) {
      std::byte* start = const_cast<std::byte*>(prepared) + group * size(g);
      words = reinterpret_cast<uint32_t*>(start);
      sums = reinterpret_cast<float*>(words + Shape::count(g) * kWords * S::kLanes);
      scales = sums + parts(g) * S::kLanes;
    }
    // Blocks, or where they are longer chunks: also those that only fill the last chunk.
    static int64_t parts(const Geometry& g) {
      return Shape::count(g) * std::max<int64_t>(1, Shape::kCodes / g.block);
    }
    static int64_t size(const Geometry& g) {
      const int64_t vectors = Shape::count(g) * kWords + parts(g) + (per_block ? parts(g) : 1);
      return vectors * S::kLanes * static_cast<int64_t>(sizeof(float));
    }
  };

  // What is unpacked of a few rows: the words of a chunk, and its scales and zero points by lane.
  struct Part {
    alignas(64) uint32_t words[Tile::kMaxRows][kWords];
    alignas(64) float scales[Tile::kMaxRows][S::kLanes];
    alignas(64) float zeros[Tile::kMaxRows][S::kLanes];
  };

  static void unpack(const ChunkReader<S, storage>& reader, int64_t row, int64_t chunk, Part& part, int64_t r) {
    Words words[words_of_lane(storage)];
    Floats scales[1];
    Floats zeros[1];
    reader.read(reader.row(row), chunk, words);
    reader.template read_scaling<1>(row, chunk, scales, zeros);
#pragma GCC unroll 8
    for (int v = 0; v < kBytes; ++v) S::store_words(part.words[r] + v * S::kLanes, code_bytes<S, storage>(words, v));
    S::store(part.scales[r], scales[0]);
    S::store(part.zeros[r], zero_of_bytes<S, storage>(zeros[0]));
  }

  // sums[r][t] += what one block, or the part of it that is in a chunk, adds for `vectors` vectors of tokens.
  template <int vectors>
  static void multiply_block(const uint32_t* const* a, const float* const* a_sums, const float* const* a_scales,
                             const Part& part, int64_t first_row, int64_t lane, int64_t lanes, float* sums) {
    Words totals[kRows][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) totals[r][v] = S::no_words();
    }
    for (int64_t word = 0; word < kBytes; ++word) {
      for (int64_t at = word * S::kLanes + lane; at < word * S::kLanes + lane + lanes; ++at) {
        Words values[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) values[v] = S::hold(S::load_words(a[v] + at * S::kLanes));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const Words codes = S::broadcast_bits(part.words[first_row + r][at]);
#pragma GCC unroll 4
          for (int v = 0; v < vectors; ++v) {
            totals[r][v] = S::template dot<code_bits(storage)>(totals[r][v], codes, values[v]);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Floats scale = S::broadcast(part.scales[first_row + r][lane]);
      const Floats zero = S::broadcast(part.zeros[first_row + r][lane]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        float* to = sums + r * Tile::kMaxTokens + v * S::kLanes;
        Floats each = S::subtract_product(zero, S::load(a_sums[v]), S::to_floats(totals[r][v]));
        if constexpr (per_block) each = S::multiply(each, S::load(a_scales[v]));
        S::store(to, S::fma(scale, each, S::load(to)));
      }
    }
  }

  template <int vectors>
  static void multiply_chunk(const Geometry& g, const std::byte* prepared, int64_t group, int64_t chunk,
                             const Part& part, int64_t rows, float* sums) {
    const int64_t lanes = std::min<int64_t>(g.block / Shape::kLane, S::kLanes);
    for (int64_t lane = 0; lane < S::kLanes; lane += lanes) {
      const int64_t block = (chunk * S::kLanes + lane) * Shape::kLane / g.block;
      const int64_t part_of_a = (chunk * S::kLanes + lane) / lanes;
      const uint32_t* a[vectors];
      const float* a_sums[vectors];
      const float* a_scales[vectors];
      for (int v = 0; v < vectors; ++v) {
        const Group each(g, prepared, group + v);
        a[v] = each.words + chunk * kWords * S::kLanes;
        a_sums[v] = each.sums + part_of_a * S::kLanes;
        a_scales[v] = each.scales + (per_block ? block * S::kLanes : 0);
      }
      for (int64_t r = 0; r < rows; r += kRows) {
        multiply_block<vectors>(a, a_sums, a_scales, part, r, lane, lanes,
                                sums + r * Tile::kMaxTokens + group * S::kLanes);
      }
    }
  }

 public:
  static int64_t bytes(const Geometry& g, int64_t tokens) {
    return (tokens + S::kLanes - 1) / S::kLanes * Group::size(g);
  }

  static void prepare(const Geometry& g, const float* a, int64_t tokens, int64_t first, std::byte* prepared) {
    const Group to(g, prepared, first / S::kLanes);
    const int64_t lanes = std::min<int64_t>(g.block / Shape::kLane, S::kLanes);
    std::memset(to.words, 0, static_cast<size_t>(Group::size(g)));
    for (int64_t t = 0; t < std::min<int64_t>(S::kLanes, tokens - first); ++t) {
      const auto each = [&](int64_t chunk, int64_t run, int64_t lane, const uint32_t* words, float sum) {
        constexpr int64_t kRunWords = Shape::kRun / 4;
        const int64_t at = chunk * kWords + run * kRunWords * S::kLanes + lane;
        for (int64_t i = 0; i < kRunWords; ++i) to.words[(at + i * S::kLanes) * S::kLanes + t] = words[i];
        to.sums[(chunk * S::kLanes + lane) / lanes * S::kLanes + t] += sum;
      };
      const auto scaled = [&](int64_t block, float scale) {
        if constexpr (per_block) to.scales[block * S::kLanes + t] = scale;
      };
      const float scale = round_token<S, storage, per_block>(g, a + (first + t) * g.k, each, scaled);
      if constexpr (!per_block) to.scales[t] = scale;
    }
  }

  static void multiply(const Weight& weight, const std::byte* prepared, const Tile& tile, float* out) {
    const Geometry& g = *weight.geometry;
    const ChunkReader<S, storage> reader(weight);
    const int64_t groups = (tile.tokens + S::kLanes - 1) / S::kLanes;
    Part part;
    alignas(64) float sums[Tile::kMaxRows * Tile::kMaxTokens];
    for (int64_t r = 0; r < Tile::kMaxRows; ++r) {
      std::fill_n(sums + r * Tile::kMaxTokens, groups * S::kLanes, 0.0f);
    }
    if (tile.rows < Tile::kMaxRows) std::memset(&part, 0, sizeof part);
    for (int64_t chunk = 0; chunk < Shape::count(g); ++chunk) {
      for (int64_t r = 0; r < tile.rows; ++r) unpack(reader, tile.row + r, chunk, part, r);
      int64_t group = 0;
      for (; group + kVectors <= groups; group += kVectors) {
        multiply_chunk<kVectors>(g, prepared, group, chunk, part, tile.rows, sums);
      }
      for (; group < groups; ++group) {
        multiply_chunk<1>(g, prepared, group, chunk, part, tile.rows, sums);
      }
    }
    for (int64_t t = 0; t < tile.tokens; ++t) {
      const float scale = per_block ? 1.0f : Group(g, prepared, t / S::kLanes).scales[t % S::kLanes];
      for (int64_t r = 0; r < tile.rows; ++r) {
        out[t * Tile::kMaxRows + r] = sums[r * Tile::kMaxTokens + t] * scale;
      }
    }
  }
};

}  // namespace zq2onnx
