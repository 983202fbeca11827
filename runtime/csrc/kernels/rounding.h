// Activations to int8, for each set of instructions that a kernel is compiled for: loops that compilers make vectors
// of.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cstdint>
#include <limits>

#include "../floats.h"

namespace zq2onnx {

// `s = max|a| / 127`, `code = round(a / s)`, half to even. Where a value is infinite or no number the scale is none
// either, and so is what is made of it.
//
// `Set` only tells apart what each translation unit makes of this.
template <class Set>
struct Rounding {
  static float scale(const float* a, int64_t size) {
    uint32_t greatest = 0;  // of finite numbers, the order of magnitudes is that of their bits
    for (int64_t at = 0; at < size; ++at) greatest = std::max(greatest, bits_of(a[at]) & 0x7fffffffu);
    if (greatest >= 0x7f800000u) return std::numeric_limits<float>::quiet_NaN();
    return std::max(float_of(greatest) / 127.0f, FLT_MIN);  // 0 / 0 is no number
  }

  static void round(const float* a, int64_t size, float scale, int8_t* codes) {
    if (scale != scale) {
      for (int64_t at = 0; at < size; ++at) codes[at] = 0;
      return;
    }
    // Beyond 2^23 floats are integers: the sum is rounded to one, and its last bits are it.
    constexpr float kRound = 0x1.8p23f;
    for (int64_t at = 0; at < size; ++at) {
      codes[at] = static_cast<int8_t>(static_cast<uint8_t>(bits_of(a[at] / scale + kRound)));
    }
  }
};

}  // namespace zq2onnx
