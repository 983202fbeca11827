// Vectors of AVX2 and FMA. To be included where these are the target: see target.h.
#pragma once

#include "find.h"

namespace zq2onnx {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  using Floats = __m256;
  using Words = __m256i;

  static constexpr int kFewTokens = 8;
  // 8 sums, 2 vectors of tokens, a weight: of 16 registers.
  static constexpr int kManyRows = 4;
  static constexpr int kManyVectors = 2;

  // Rows that share what is loaded of the activations, as the registers allow.
  static constexpr int rows_at_once(int tokens) { return tokens == 1 ? 4 : 2; }

  static Floats zero() { return _mm256_setzero_ps(); }
  static Floats broadcast(float value) { return _mm256_set1_ps(value); }
  static Floats load(const float* from) { return _mm256_loadu_ps(from); }
  static Floats load_integers(const int8_t* from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }
  static void store(float* to, Floats values) { _mm256_storeu_ps(to, values); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats subtract_product(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
  static Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static float sum(Floats values) {
    __m128 sums = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    sums = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
    return _mm_cvtss_f32(_mm_add_ss(sums, _mm_movehdup_ps(sums)));
  }

  // A value that the compiler must keep in a register.
  template <typename T>
  static T hold(T value) {
    asm("" : "+x"(value));
    return value;
  }

  static void store_words(void* to, Words words) { _mm256_storeu_si256(static_cast<Words*>(to), words); }
  static Words broadcast_bits(uint32_t bits) { return _mm256_set1_epi32(static_cast<int>(bits)); }
  static Words no_words() { return _mm256_setzero_si256(); }
  static Words load_words(const void* from) { return _mm256_loadu_si256(static_cast<const Words*>(from)); }
  // Rows are of whole words.
  static Words load_words(const void* from, int64_t bytes) {
    const Words lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const Words words = _mm256_set1_epi32(static_cast<int>(std::min<int64_t>(bytes / 4, kLanes)));
    return _mm256_maskload_epi32(static_cast<const int*>(from), _mm256_cmpgt_epi32(words, lanes));
  }
  static Words both(Words a, Words b) { return _mm256_and_si256(a, b); }
  static Words add_bits(Words a, Words b, Words mask) { return either(a, both(b, mask)); }
  static Words either(Words a, Words b) { return _mm256_or_si256(a, b); }
  static Words exclusive_or(Words a, Words b) { return _mm256_xor_si256(a, b); }
  template <int bits>
  static Words shift_right(Words words) {
    return _mm256_srli_epi32(words, bits);
  }
  template <int bits>
  static Words shift_left(Words words) {
    return _mm256_slli_epi32(words, bits);
  }

  // Products of two bytes are added up in 16 bits, which pairs of -128..127 and -127..127 do not exceed: 8-bit codes
  // are taken as numbers with a sign.
  static constexpr bool kSignedBytes = true;

  // total + the sum of four products in each word: of code bytes with activations.
  template <int bits>
  static Words dot(Words total, Words codes, Words activations) {
    Words pairs;
    if constexpr (bits <= 4) {
      pairs = _mm256_maddubs_epi16(codes, activations);
    } else {
      pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(activations, codes));
    }
    return _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static Floats to_floats(Words words) { return _mm256_cvtepi32_ps(words); }

  // Values of a chunk's blocks, one to each of the block's lanes.
  struct Spread {
    Words block, shift;
  };
  static Spread make_spread(int lanes_of_block) {
    alignas(32) int32_t block[kLanes], shift[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      block[lane] = lane / lanes_of_block;
      shift[lane] = block[lane] * 4;
    }
    return {load_words(block), load_words(shift)};
  }
  static Floats spread(Floats values, const Spread& spread) {
    return _mm256_permutevar8x32_ps(values, spread.block);
  }
  // Reads 4 bytes: no more blocks than lanes are in a chunk.
  static Floats spread_nibbles(const uint8_t* nibbles, const Spread& spread) {
    uint32_t all;
    std::memcpy(&all, nibbles, sizeof all);
    return to_floats(both(_mm256_srlv_epi32(broadcast_bits(all), spread.shift), broadcast_bits(15)));
  }

  // Where the words of a plane are among those of three vectors: the lane, and whether it is not of the first.
  struct Planes {
    Words lane[3], in_second[3], in_third[3];
  };
  static Planes make_planes(int words_of_plane) {
    Planes planes;
    for (int plane = 0; plane < 3; ++plane) {
      alignas(32) int32_t from[kLanes], second[kLanes], third[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const int at = lane / words_of_plane * 3 * words_of_plane + plane * words_of_plane + lane % words_of_plane;
        from[lane] = at % kLanes;
        second[lane] = at / kLanes == 1 ? -1 : 0;
        third[lane] = at / kLanes == 2 ? -1 : 0;
      }
      planes.lane[plane] = load_words(from);
      planes.in_second[plane] = load_words(second);
      planes.in_third[plane] = load_words(third);
    }
    return planes;
  }
  static Words gather(const uint8_t* mixed, const Planes& planes, int plane) {
    const auto from = [&](int vector) {
      return _mm256_permutevar8x32_epi32(load_words(mixed + 32 * vector), planes.lane[plane]);
    };
    const Words two = _mm256_blendv_epi8(from(0), from(1), planes.in_second[plane]);
    return _mm256_blendv_epi8(two, from(2), planes.in_third[plane]);
  }
};

}  // namespace
}  // namespace zq2onnx
