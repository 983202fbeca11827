// Vectors of NEON, as every AArch64 has them. To be included once in a translation unit, after its target is set.
#pragma once

#include "find.h"

namespace zq2onnx {
namespace {

struct Neon {
  static constexpr int kLanes = 4;
  using Floats = float32x4_t;
  using Words = uint32x4_t;

  static constexpr int kFewTokens = 4;
  // 16 sums, 4 vectors of tokens, a weight: of 32 registers.
  static constexpr int kManyRows = 4;
  static constexpr int kManyVectors = 4;

  // Rows that share what is loaded of the activations, as the registers allow.
  static constexpr int rows_at_once(int tokens) { return tokens <= 2 ? 4 : 2; }

  static Floats zero() { return vdupq_n_f32(0.0f); }
  static Floats broadcast(float value) { return vdupq_n_f32(value); }
  static Floats load(const float* from) { return vld1q_f32(from); }
  static Floats load_integers(const int8_t* from) {
    uint32_t four;
    std::memcpy(&four, from, sizeof four);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  }
  static void store(float* to, Floats values) { vst1q_f32(to, values); }
  static Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static Floats subtract_product(Floats a, Floats b, Floats c) { return vfmsq_f32(c, a, b); }
  static Floats subtract(Floats a, Floats b) { return vsubq_f32(a, b); }
  static Floats multiply(Floats a, Floats b) { return vmulq_f32(a, b); }
  static float sum(Floats values) { return vaddvq_f32(values); }

  // A value that the compiler must keep in a register.
  template <typename T>
  static T hold(T value) {
    asm("" : "+w"(value));
    return value;
  }

  static void store_words(void* to, Words words) { vst1q_u32(static_cast<uint32_t*>(to), words); }
  static Words broadcast_bits(uint32_t bits) { return vdupq_n_u32(bits); }
  static Words no_words() { return vdupq_n_u32(0); }
  // Rows need not lie at a multiple of four.
  static Words load_words(const void* from) {
    return vreinterpretq_u32_u8(vld1q_u8(static_cast<const uint8_t*>(from)));
  }
  static Words load_words(const void* from, int64_t bytes) {
    uint8_t there[16] = {};
    std::memcpy(there, from, static_cast<size_t>(std::min<int64_t>(bytes, sizeof there)));
    return load_words(there);
  }
  static Words both(Words a, Words b) { return vandq_u32(a, b); }
  static Words add_bits(Words a, Words b, Words mask) { return either(a, both(b, mask)); }
  static Words either(Words a, Words b) { return vorrq_u32(a, b); }
  static Words exclusive_or(Words a, Words b) { return veorq_u32(a, b); }
  template <int bits>
  static Words shift_right(Words words) {
    if constexpr (bits == 0) {
      return words;
    } else {
      return vshrq_n_u32(words, bits);
    }
  }
  template <int bits>
  static Words shift_left(Words words) {
    return vshlq_n_u32(words, bits);
  }

  // Bytes are multiplied as numbers with a sign, and products of two added up in 16 bits, which pairs of -128..127 and
  // -127..127 do not exceed.
  static constexpr bool kSignedBytes = true;

  // total + the sum of four products in each word: of code bytes with activations.
  template <int bits>
  static Words dot(Words total, Words codes, Words activations) {
    const int8x16_t c = vreinterpretq_s8_u32(codes);
    const int8x16_t a = vreinterpretq_s8_u32(activations);
    const int16x8_t low = vmull_s8(vget_low_s8(c), vget_low_s8(a));
    const int16x8_t pairs = vpaddq_s16(low, vmull_high_s8(c, a));
    return vreinterpretq_u32_s32(vpadalq_s16(vreinterpretq_s32_u32(total), pairs));
  }
  static Floats to_floats(Words words) { return vcvtq_f32_s32(vreinterpretq_s32_u32(words)); }

  // Values of a chunk's blocks, one to each of the block's lanes: the bytes of each, and where a nibble is.
  struct Spread {
    uint8x16_t bytes;
    int32x4_t shift;
  };
  static Spread make_spread(int lanes_of_block) {
    uint8_t bytes[16];
    int32_t shift[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int block = lane / lanes_of_block;
      for (int byte = 0; byte < 4; ++byte) bytes[4 * lane + byte] = static_cast<uint8_t>(4 * block + byte);
      shift[lane] = -4 * block;
    }
    return {vld1q_u8(bytes), vld1q_s32(shift)};
  }
  static Floats spread(Floats values, const Spread& spread) {
    return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(values), spread.bytes));
  }
  // Reads 2 bytes: no more blocks than lanes are in a chunk.
  static Floats spread_nibbles(const uint8_t* nibbles, const Spread& spread) {
    uint16_t all;
    std::memcpy(&all, nibbles, sizeof all);
    return to_floats(both(vshlq_u32(vdupq_n_u32(all), spread.shift), broadcast_bits(15)));
  }

  // Where the bytes of a plane's words are among those of three vectors.
  struct Planes {
    uint8x16_t bytes[3];
  };
  static Planes make_planes(int words_of_plane) {
    Planes planes;
    for (int plane = 0; plane < 3; ++plane) {
      uint8_t bytes[16];
      for (int lane = 0; lane < kLanes; ++lane) {
        const int at = lane / words_of_plane * 3 * words_of_plane + plane * words_of_plane + lane % words_of_plane;
        for (int byte = 0; byte < 4; ++byte) bytes[4 * lane + byte] = static_cast<uint8_t>(4 * at + byte);
      }
      planes.bytes[plane] = vld1q_u8(bytes);
    }
    return planes;
  }
  static Words gather(const uint8_t* mixed, const Planes& planes, int plane) {
    const uint8x16x3_t all = {{vld1q_u8(mixed), vld1q_u8(mixed + 16), vld1q_u8(mixed + 32)}};
    return vreinterpretq_u32_u8(vqtbl3q_u8(all, planes.bytes[plane]));
  }
};

}  // namespace
}  // namespace zq2onnx
