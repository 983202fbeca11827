// How the lanes of vectors fall on the codes of a packed weight. For kernels that are templates over `S`, a set of
// vector instructions; they are compiled once for each, so that nothing here may have external linkage of its own.
//
// A row is read in *chunks*: of each plane of a block, as many 32-bit words as a vector has lanes. All codes of a
// lane belong to one block, so that scales and zero points are vectors too:
//
//   storage      words of a lane         codes of a lane, in groups of 8 that are neighbours
//   4 bits       1                       8
//   half bytes   low, high               8; put together, one word holds the even ones, one the odd
//   2 bits       1                       8 of the first half of the block, 8 of the second
//   3 bits       one of each plane       8 of each quarter of the block
//   whole bytes  1                       4
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../floats.h"
#include "product.h"

namespace zq2onnx {

constexpr int codes_of_lane(Storage storage) {
  switch (storage) {
    case Storage::kTwoBits: return 16;
    case Storage::kThreeBits: return 32;
    case Storage::kWholeBytes: return 4;
    default: return 8;
  }
}

// A table is read faster than an integer is converted, and broadcast on the way.
struct Numbers {
  float values[256];
  constexpr Numbers() : values() {
    for (int i = 0; i < 256; ++i) values[i] = static_cast<float>(i);
  }
};
inline constexpr Numbers kNumbers;

// Words that hold the codes of a lane, once they are put together: half bytes to bytes, and from the planes of 3 bits
// the last quarter.
constexpr int words_of_lane(Storage storage) {
  switch (storage) {
    case Storage::kThreeBits: return 4;
    case Storage::kHalfBytes: return 2;
    default: return 1;
  }
}

// Where a code of a lane is found in its words.
struct CodePlace {
  int word;
  int shift;
  uint32_t mask;  // of the code, shifted down
  // The top bit of a word is a sign: what holds it is shifted down before it is made a float.
  constexpr bool top() const { return (mask << shift) >> 31 != 0; }
  // What the float is too large by.
  constexpr float factor() const { return top() ? 1.0f : static_cast<float>(1u << shift); }
};

// Codes are taken in this order: those of a word together.
constexpr CodePlace place_of(Storage storage, int index) {
  const int nibble = 4 * (index % 8);
  switch (storage) {
    case Storage::kTwoBits: return {0, nibble + 2 * (index / 8), 3};
    case Storage::kThreeBits: return {index / 8, nibble, 7};
    case Storage::kHalfBytes: return {index / 4, 8 * (index % 4), 255};
    default: return {0, nibble, 15};
  }
}

// When the `code`th of a lane is taken.
constexpr int64_t turn_of(Storage storage, int64_t code) {
  return storage == Storage::kHalfBytes ? code % 2 * 4 + code / 2 : code;
}

// Rows that share what is loaded of the activations. Half bytes lie in two places: read for one row at a time, memory
// gives them almost twice as fast as for several (measured on Zen 4; why is not known).
template <class S>
constexpr int rows_at_once(Storage storage, int tokens) {
  return storage == Storage::kHalfBytes && tokens <= 2 ? 1 : S::rows_at_once(tokens);
}

// Where codes lie in the chunks of a row.
template <class S, Storage storage>
struct Chunks {
  static constexpr int64_t kLane = codes_of_lane(storage);
  static constexpr int64_t kCodes = kLane * S::kLanes;
  static constexpr int64_t kRun = std::min<int64_t>(kLane, 8);  // codes that are neighbours
  static constexpr int64_t kRuns = kLane / kRun;

  static int64_t count(const Geometry& g) { return (g.k_blocks * g.block + kCodes - 1) / kCodes; }

  // The first channel of a run.
  static int64_t channel(const Geometry& g, int64_t chunk, int64_t run, int64_t lane) {
    const int64_t code = chunk * kCodes + lane * kLane;
    const int64_t in_block = code & (g.block - 1);
    return code - in_block + run * (g.block / kRuns) + in_block / kLane * kRun;
  }
};

// Reads chunks of a weight, of several rows at a time: their words, scales and zero points. One class for both: compilers
// keep what it holds in registers, where they do not when the scales are read by a member of its own (15 to 40% of the
// time of a token).
template <class S, Storage storage>
class ChunkReader {
 public:
  using Floats = typename S::Floats;
  using Words = typename S::Words;
  using Shape = Chunks<S, storage>;

  explicit ChunkReader(const Weight& weight) : weight_(weight), g_(*weight.geometry) {
    while (int64_t{1} << block_bits_ < g_.block) ++block_bits_;
    blocks_ = std::max<int64_t>(1, Shape::kCodes / g_.block);
    row_bytes_ = g_.k_blocks * g_.block_bytes;
    short_three_bits_ = g_.block_bytes * 2 < g_.block;
    spread_ = S::make_spread(static_cast<int>(S::kLanes / blocks_));
    if constexpr (storage == Storage::kThreeBits) planes_ = S::make_planes(static_cast<int>(g_.block / 32));
    if (weight.type != ort::ElementType::kFloat) return;
    floats_ = static_cast<const float*>(weight.scales);
    if (blocks_ == 1) way_ = Way::kOne;
    if (blocks_ > 1 && g_.scale_repeat == 1 && g_.zero_repeat == 1) way_ = Way::kEach;
  }

  const uint8_t* row(int64_t row) const { return weight_.codes + row * row_bytes_; }

  // A chunk as it is stored; beyond the row it is zero.
  struct Stored {
    Words words[2];
    const uint8_t* planes[3];  // of 3-bit codes: vectors of them, mixed or one of each
    Words last_quarter;        // put together as the planes are taken
  };
  using Tail = uint8_t[3 * 4 * S::kLanes];

  // `tail` is where the end of a row may be copied to.
  Stored load(const uint8_t* row, int64_t chunk, Tail& tail) const {
    Stored stored;
    if constexpr (storage == Storage::kThreeBits) {
      find_planes(row, chunk, tail, stored.planes);
    } else if (storage == Storage::kFourBits && short_three_bits_) {
      stored.words[0] = load_short(row, chunk);
    } else {
      stored.words[0] = load_part(row, chunk * kBytes);
      if constexpr (storage == Storage::kHalfBytes) {
        stored.words[1] = load_part(row + g_.n * row_bytes_, chunk * kBytes);
      }
    }
    return stored;
  }

  // The words of the lanes, to be taken in order: 0 and on. Planes are loaded anew for each: registers are too few for
  // those of several rows.
  template <int index>
  Words word(Stored& stored) const {
    if constexpr (storage == Storage::kHalfBytes) return whole_bytes<index>(stored.words);
    if constexpr (storage != Storage::kThreeBits) return stored.words[index];
    if constexpr (index == 3) return stored.last_quarter;
    const Words plane = blocks_ > 1 ? S::gather(stored.planes[0], planes_, index) : S::load_words(stored.planes[index]);
    // Bit 3 of plane i is bit i of the last quarter.
    const Words mask = S::broadcast_bits(0x11111111u << index);
    const Words bits = S::template shift_right<3 - index>(plane);
    stored.last_quarter = index == 0 ? S::both(bits, mask) : S::add_bits(stored.last_quarter, bits, mask);
    return plane;
  }

  // All words of the lanes.
  void read(const uint8_t* row, int64_t chunk, Words* words) const {
    Tail tail;
    Stored stored = load(row, chunk, tail);
    words[0] = word<0>(stored);
    if constexpr (words_of_lane(storage) > 1) words[1] = word<1>(stored);
    if constexpr (words_of_lane(storage) > 2) {
      words[2] = word<2>(stored);
      words[3] = word<3>(stored);
    }
  }

  // Asks the memory for a part of the rows that come next, while others are computed: in the order in which they are
  // stored, as memory gives them fastest. They may lie beyond the weight. The `quarter`s of a chunk's part can be asked
  // for one after the other, for memory takes few requests at a time.
  template <int kRows, int kQuarters = 1>
  void prefetch(int64_t row, int64_t chunk, int64_t quarter = 0) const {
    constexpr int64_t kPart = kRows * (storage == Storage::kThreeBits ? 3 : 1) * kBytes / kQuarters;
    // Into the second cache: the first is full of activations. Little, or what is soon used, goes into the first.
    constexpr int kCache = storage == Storage::kThreeBits || storage == Storage::kHalfBytes ? 3 : 2;
    const uint8_t* part = this->row(row) + (chunk * kQuarters + quarter) * kPart;
    for (int64_t at = 0; at < kPart; at += 64) __builtin_prefetch(part + at, 0, kCache);
    if constexpr (storage == Storage::kHalfBytes) {
      for (int64_t at = 0; at < kPart; at += 64) __builtin_prefetch(part + g_.n * row_bytes_ + at, 0, kCache);
    }
  }

  // Scales and zero points of the lanes, for rows `row` to `row + kRows`.
  template <int kRows>
  inline __attribute__((always_inline)) void read_scaling(int64_t row, int64_t chunk, Floats (&scales)[kRows],
                                                          Floats (&zeros)[kRows]) const {
    const int64_t block = chunk * Shape::kCodes >> block_bits_;
    if (way_ == Way::kOne) {
      const int64_t group = shared(block, g_.scale_repeat);
      const int64_t at = shared(kWhole ? block : block / 2, g_.zero_repeat);
      const int shift = block % 2 ? 4 : 0;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        scales[r] = S::broadcast(floats_[(row + r) * g_.groups + group]);
        zeros[r] = S::broadcast(kNumbers.values[one_zero((row + r) * g_.zero_bytes + at, shift)]);
      }
    } else if (way_ == Way::kEach && far_from_end(row + kRows - 1, block)) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        scales[r] = S::spread(S::load(floats_ + (row + r) * g_.groups + block), spread_);
        zeros[r] = each_zero((row + r) * g_.zero_bytes + (kWhole ? block : block / 2));
      }
    } else {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) any_scaling(row + r, block, scales[r], zeros[r]);
    }
  }

 private:
  static constexpr int64_t kBytes = 4 * S::kLanes;
  static constexpr bool kWhole = storage == Storage::kWholeBytes;

  // How scales and zero points are read.
  enum class Way {
    kAny,
    kOne,   // one of each to a chunk
    kEach,  // one to each block of a chunk, as they lie
  };

  Words load_part(const uint8_t* row, int64_t at) const {
    return at + kBytes <= row_bytes_ ? S::load_words(row + at) : S::load_words(row + at, row_bytes_ - at);
  }

  // The even codes of half bytes, or the odd ones.
  template <int odd>
  static Words whole_bytes(const Words* halves) {
    const Words low = S::broadcast_bits(0x0f0f0f0fu);
    const Words high = S::broadcast_bits(0xf0f0f0f0u);
    if constexpr (odd) return S::add_bits(S::both(S::template shift_right<4>(halves[0]), low), halves[1], high);
    return S::add_bits(S::both(halves[0], low), S::template shift_left<4>(halves[1]), high);
  }

  // Blocks of 16 codes of 3 bits, as 4-bit codes: three planes of two bytes hold a quarter of them each, in nibbles.
  Words load_short(const uint8_t* row, int64_t chunk) const {
    uint64_t blocks[S::kLanes / 2] = {};
    const int64_t first = chunk * (S::kLanes / 2);
    for (int64_t i = 0; i < S::kLanes / 2 && first + i < g_.k_blocks; ++i) {
      uint64_t planes = 0;
      std::memcpy(&planes, row + (first + i) * 6, 6);
      const uint64_t last = (planes >> 3 & 0x1111) | (planes >> 18 & 0x2222) | (planes >> 33 & 0x4444);
      blocks[i] = (planes & 0x777777777777) | last << 48;
    }
    return S::load_words(blocks);
  }

  // Planes of several blocks as they are mixed, or those of a part of a block.
  void find_planes(const uint8_t* row, int64_t chunk, Tail& tail, const uint8_t** planes) const {
    const int64_t at = chunk * 3 * kBytes;
    if (blocks_ == 1) {
      const int64_t code = chunk * Shape::kCodes;
      const int64_t block = code >> block_bits_;
      const uint8_t* plane = row + block * g_.block_bytes + (code - block * g_.block) / 8;
      for (int i = 0; i < 3; ++i) planes[i] = plane + i * (g_.block / 8);
    } else if (at + 3 * kBytes <= row_bytes_) {
      planes[0] = row + at;
    } else {
      std::memset(tail, 0, sizeof(Tail));
      std::memcpy(tail, row + at, static_cast<size_t>(row_bytes_ - at));
      planes[0] = tail;
    }
  }

  // Division takes as long as a dozen products, and most often there is nothing to divide.
  int64_t shared(int64_t index, int64_t repeat) const {
    return repeat == 1 ? index : repeat >= g_.k_blocks ? 0 : index / repeat;
  }

  int one_zero(int64_t at, int shift) const {
    if constexpr (kWhole) return weight_.zero_points[at];
    const int low = weight_.zero_points[at] >> shift & 15;
    if constexpr (storage != Storage::kHalfBytes) return low;
    return low | (weight_.zero_points[at + g_.n * g_.zero_bytes] >> shift & 15) << 4;
  }

  Floats each_zero(int64_t at) const {
    if constexpr (kWhole) {
      float each[S::kLanes] = {};
      for (int64_t i = 0; i < blocks_; ++i) each[i] = kNumbers.values[weight_.zero_points[at + i]];
      return S::spread(S::load(each), spread_);
    }
    const Floats low = S::spread_nibbles(weight_.zero_points + at, spread_);
    if constexpr (storage != Storage::kHalfBytes) return low;
    const Floats high = S::spread_nibbles(weight_.zero_points + at + g_.n * g_.zero_bytes, spread_);
    return S::fma(high, S::broadcast(16.0f), low);
  }

  // Whether as many scales, and 8 bytes of zero points, can be read there as vectors hold; and those of the chunk are
  // all the row's own: zeros times another's infinity would be no number.
  bool far_from_end(int64_t row, int64_t block) const {
    return block + blocks_ <= g_.k_blocks && row * g_.groups + block + S::kLanes <= g_.n * g_.groups &&
           row * g_.zero_bytes + (kWhole ? block : block / 2) + 8 <= g_.n * g_.zero_bytes;
  }

  float any_scale(int64_t at) const {
    switch (weight_.type) {
      case ort::ElementType::kFloat16: return to_float(static_cast<const Half*>(weight_.scales)[at]);
      case ort::ElementType::kBfloat16: return to_float(static_cast<const Bfloat*>(weight_.scales)[at]);
      default: return static_cast<const float*>(weight_.scales)[at];
    }
  }

  __attribute__((noinline)) void any_scaling(int64_t row, int64_t block, Floats& scales, Floats& zeros) const {
    float each_scale[S::kLanes] = {};
    float each_zero[S::kLanes] = {};
    for (int64_t i = 0; i < blocks_ && block + i < g_.k_blocks; ++i) {
      each_scale[i] = any_scale(row * g_.groups + shared(block + i, g_.scale_repeat));
      const int64_t at = row * g_.zero_bytes + shared(kWhole ? block + i : (block + i) / 2, g_.zero_repeat);
      each_zero[i] = kNumbers.values[one_zero(at, (block + i) % 2 ? 4 : 0)];
    }
    scales = S::spread(S::load(each_scale), spread_);
    zeros = S::spread(S::load(each_zero), spread_);
  }

  const Weight& weight_;
  const Geometry& g_;
  Way way_ = Way::kAny;
  const float* floats_ = nullptr;  // the scales, where they are float32
  int block_bits_ = 0;
  int64_t blocks_;  // in a chunk; 1 where a block is longer
  int64_t row_bytes_;
  bool short_three_bits_;  // whether what is read as 4-bit codes is blocks of 16 codes of 3 bits
  typename S::Spread spread_;
  typename S::Planes planes_{};
};

}  // namespace zq2onnx
