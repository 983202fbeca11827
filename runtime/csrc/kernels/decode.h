// Unpacking of one stored block: the layouts of `zq2onnx/layout.py`.
#pragma once

#include <cstdint>
#include <cstring>

#include "product.h"

namespace zq2onnx {

// Writes the codes of a block of `size`. `stored` is the block's bytes; `high`, where half bytes are stored, those
// of the high halves.
template <Storage storage>
void decode_block(const uint8_t* stored, const uint8_t* high, int64_t size, uint8_t* codes) {
  if constexpr (storage == Storage::kWholeBytes) {
    std::memcpy(codes, stored, static_cast<size_t>(size));
  } else if constexpr (storage == Storage::kFourBits) {
    for (int64_t at = 0; at < size / 2; ++at) {
      codes[2 * at] = stored[at] & 15;
      codes[2 * at + 1] = stored[at] >> 4;
    }
  } else if constexpr (storage == Storage::kHalfBytes) {
    for (int64_t at = 0; at < size / 2; ++at) {
      codes[2 * at] = static_cast<uint8_t>((stored[at] & 15) | (high[at] & 15) << 4);
      codes[2 * at + 1] = static_cast<uint8_t>((stored[at] >> 4) | (high[at] & 0xf0));
    }
  } else if constexpr (storage == Storage::kTwoBits) {
    const int64_t half = size / 2;
    for (int64_t at = 0; at < half / 2; ++at) {
      const unsigned byte = stored[at];
      codes[2 * at] = byte & 3;
      codes[2 * at + 1] = byte >> 4 & 3;
      codes[half + 2 * at] = byte >> 2 & 3;
      codes[half + 2 * at + 1] = static_cast<uint8_t>(byte >> 6);
    }
  } else {
    static_assert(storage == Storage::kThreeBits);
    // Plane i holds quarter i and bit i of the last quarter.
    const int64_t quarter = size / 4;
    const int64_t plane = size / 8;
    for (int64_t at = 0; at < plane; ++at) {
      unsigned last = 0;
      for (int64_t i = 0; i < 3; ++i) {
        const unsigned byte = stored[i * plane + at];
        codes[i * quarter + 2 * at] = byte & 7;
        codes[i * quarter + 2 * at + 1] = byte >> 4 & 7;
        last |= (byte >> 3 & 0x11) << i;
      }
      codes[3 * quarter + 2 * at] = last & 15;
      codes[3 * quarter + 2 * at + 1] = static_cast<uint8_t>(last >> 4);
    }
  }
}

// The zero point of a block of a row.
template <Storage storage>
int zero_point(const Weight& weight, int64_t row, int64_t block) {
  const Geometry& g = *weight.geometry;
  if constexpr (storage == Storage::kWholeBytes) {
    return weight.zero_points[row * g.zero_bytes + block / g.zero_repeat];
  } else {
    const int64_t at = row * g.zero_bytes + block / 2 / g.zero_repeat;
    const int shift = block % 2 ? 4 : 0;
    const int low = weight.zero_points[at] >> shift & 15;
    if constexpr (storage != Storage::kHalfBytes) return low;
    return low | (weight.zero_points[at + g.n * g.zero_bytes] >> shift & 15) << 4;
  }
}

}  // namespace zq2onnx
