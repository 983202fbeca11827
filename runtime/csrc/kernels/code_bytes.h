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

template <class S>
inline __attribute__((always_inline)) typename S::Words shifted_bytes(typename S::Words word, int shift,
                                                                      uint32_t mask) {
  switch (shift) {
    case 0: return S::both(word, S::broadcast_bits(mask));
    case 2: return S::both(S::template shift_right<2>(word), S::broadcast_bits(mask));
    case 4: return S::both(S::template shift_right<4>(word), S::broadcast_bits(mask));
    default: return S::both(S::template shift_right<6>(word), S::broadcast_bits(mask));
  }
}

// The `v`th vector of code bytes of the words; `v` is a constant once loops are unrolled. The even codes of a run are
// one word, the odd ones the next: as half bytes lie. Whole bytes are one word.
template <class S, Storage storage>
inline __attribute__((always_inline)) typename S::Words stored_bytes(const typename S::Words* words, int v) {
  const int odd = v % 2 ? 4 : 0;
  switch (storage) {
    case Storage::kTwoBits: return shifted_bytes<S>(words[0], odd + v / 2 * 2, 0x03030303u);
    case Storage::kThreeBits: return shifted_bytes<S>(words[v / 2], odd, 0x07070707u);
    case Storage::kFourBits: return shifted_bytes<S>(words[0], odd, 0x0f0f0f0fu);
    default: return words[v];
  }
}

template <class S, Storage storage>
inline __attribute__((always_inline)) typename S::Words code_bytes(const typename S::Words* words, int v) {
  const auto bytes = stored_bytes<S, storage>(words, v);
  if constexpr (kLessByHalf<S, storage>) return S::exclusive_or(bytes, S::broadcast_bits(0x80808080u));
  return bytes;
}

// The words of a run of activation codes, in the order of `code_bytes`; what is beyond `size` is zero.
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

// Rounds a token and hands out its runs, those that are not all padding: `each(chunk, run, lane, words, sum)`; and the
// scale of each block: `scaled(block, scale)`. Returns the token's scale, or 1 where each block has its own.
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
