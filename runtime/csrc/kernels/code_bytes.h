// Packed codes as bytes, four to a word, for products of integers.
#pragma once

#include "lanes.h"
#include "rounding.h"

namespace zq2onnx {

// Vectors of code bytes in a chunk.
constexpr int byte_vectors(Storage storage) { return codes_of_lane(storage) / 4; }

// Bits that a code byte may have: some instructions add up products of few bits only.
constexpr int code_bits(Storage storage) {
  return storage == Storage::kHalfBytes || storage == Storage::kWholeBytes ? 8 : 4;
}

// Whether codes, and so zero points, are taken as 128 less: bytes with a sign, where no instruction multiplies others.
template <class S, Storage storage>
constexpr bool kLessByHalf = S::kSignedBytes && code_bits(storage) == 8;

template <class S, Storage storage>
inline typename S::Floats zero_of_bytes(typename S::Floats zero) {
  if constexpr (kLessByHalf<S, storage>) return S::subtract(zero, S::broadcast(128.0f));
  return zero;
}

// The even codes of a run are one word, the odd ones the next: as half bytes lie. Whole bytes are one word.
template <class S, Storage storage>
inline void split_bytes(const typename S::Words* words, typename S::Words* bytes) {
  if constexpr (storage == Storage::kWholeBytes) {
    bytes[0] = words[0];
  } else if constexpr (storage == Storage::kTwoBits) {
    const auto mask = S::broadcast_bits(0x03030303u);
    bytes[0] = S::both(words[0], mask);
    bytes[1] = S::both(S::template shift_right<4>(words[0]), mask);
    bytes[2] = S::both(S::template shift_right<2>(words[0]), mask);
    bytes[3] = S::both(S::template shift_right<6>(words[0]), mask);
  } else if constexpr (storage == Storage::kHalfBytes) {
    const auto low = S::broadcast_bits(0x0f0f0f0fu);
    const auto high = S::broadcast_bits(0xf0f0f0f0u);
    bytes[0] = S::either(S::both(words[0], low), S::both(S::template shift_left<4>(words[1]), high));
    bytes[1] = S::either(S::both(S::template shift_right<4>(words[0]), low), S::both(words[1], high));
  } else {
    const auto mask = S::broadcast_bits(storage == Storage::kFourBits ? 0x0f0f0f0fu : 0x07070707u);
    for (int word = 0; word < words_of_lane(storage); ++word) {
      bytes[2 * word] = S::both(words[word], mask);
      bytes[2 * word + 1] = S::both(S::template shift_right<4>(words[word]), mask);
    }
  }
  if constexpr (kLessByHalf<S, storage>) {
    for (int v = 0; v < byte_vectors(storage); ++v) bytes[v] = S::one_of(bytes[v], S::broadcast_bits(0x80808080u));
  }
}

// The words of a run of activation codes, in the order of `split_bytes`; what is beyond `size` is zero.
template <Storage storage>
inline void split_run(const int8_t* codes, int64_t size, uint32_t* words) {
  constexpr int64_t kRun = std::min(codes_of_lane(storage), 8);
  uint64_t run = 0;
  if (size >= kRun) {
    std::memcpy(&run, codes, kRun);
  } else {
    for (int64_t i = 0; i < size; ++i) run |= static_cast<uint64_t>(static_cast<uint8_t>(codes[i])) << 8 * i;
  }
  if constexpr (kRun == 4) {
    words[0] = static_cast<uint32_t>(run);
  } else {
    const auto even = [](uint64_t bytes) {
      bytes &= 0x00ff00ff00ff00ffull;
      bytes = (bytes | bytes >> 8) & 0x0000ffff0000ffffull;
      return static_cast<uint32_t>(bytes | bytes >> 16);
    };
    words[0] = even(run);
    words[1] = even(run >> 8);
  }
}

// Rounds a token and hands out its runs, those that are not all padding: `each(chunk, run, lane, words, sum)`, and the scale of each block:
// `scaled(block, scale)`. Returns the token's scale, or 1 where each block has its own.
template <class S, Storage storage, bool per_block, typename Each, typename Scaled>
inline float round_token(const Geometry& g, const float* a, Each&& each, Scaled&& scaled) {
  using Shape = Chunks<S, storage>;
  const float token_scale = per_block ? 1.0f : Rounding<S>::scale(a, g.k);
  alignas(64) int8_t codes[kMaxBlock];
  for (int64_t block = 0; block < g.k_blocks; ++block) {
    const int64_t start = block * g.block;
    const int64_t size = std::min(g.block, g.k - start);
    const float scale = per_block ? Rounding<S>::scale(a + start, size) : token_scale;
    Rounding<S>::round(a + start, size, scale, codes);
    scaled(block, scale);
    const int64_t part = g.block / Shape::kRuns;  // codes of the block's that lie in the same run
    for (int64_t run = 0; run < Shape::kRuns; ++run) {
      for (int64_t at = 0; at < part; at += Shape::kRun) {
        const int64_t lane = start / Shape::kLane + at / Shape::kRun;
        const int64_t first = run * part + at;
        const int64_t left = std::min<int64_t>(size - first, Shape::kRun);
        if (left <= 0) break;
        uint32_t words[2];
        split_run<storage>(codes + first, left, words);
        int32_t sum = 0;
        for (int64_t i = 0; i < left; ++i) sum += codes[first + i];
        each(lane / S::kLanes, run, lane % S::kLanes, words, static_cast<float>(sum));
      }
    }
  }
  return token_scale;
}

}  // namespace zq2onnx
