// Kernels for AVX-512 (F, BW, DQ, VL), and VNNI for integers.
#if defined(__x86_64__)

// GCC 12 warns of the undefined operands in its own header.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "../floats.h"
#include "product.h"
#include "target.h"

ZQ2ONNX_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")

#include "find.h"

namespace zq2onnx {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  using Floats = __m512;
  using Words = __m512i;

  static constexpr int kFewTokens = 8;
  static constexpr int kManyRows = 8;
  static constexpr int kManyVectors = 2;

  // Rows that share what is loaded of the activations, as the 32 registers allow.
  static constexpr int rows_at_once(int tokens) { return tokens <= 2 ? 4 : 2; }

  static Floats zero() { return _mm512_setzero_ps(); }
  static Floats broadcast(float value) { return _mm512_set1_ps(value); }
  static Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static Floats load_integers(const int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  static void store(float* to, Floats values) { _mm512_storeu_ps(to, values); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats subtract_product(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
  static Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static float sum(Floats values) { return _mm512_reduce_add_ps(values); }

  // A value that the compiler must keep in a register.
  template <typename T>
  static T hold(T value) {
    asm("" : "+v"(value));
    return value;
  }

  static void store_words(void* to, Words words) { _mm512_storeu_si512(to, words); }
  static Words broadcast_bits(uint32_t bits) { return _mm512_set1_epi32(static_cast<int>(bits)); }
  static Words no_words() { return _mm512_setzero_si512(); }
  static Words load_words(const void* from) { return _mm512_loadu_si512(from); }
  static Words load_words(const void* from, int64_t bytes) {
    return _mm512_maskz_loadu_epi8(bytes >= 64 ? ~__mmask64{0} : (__mmask64{1} << bytes) - 1, from);
  }
  static Words both(Words a, Words b) { return _mm512_and_si512(a, b); }
  // a | (b & mask)
  static Words add_bits(Words a, Words b, Words mask) { return _mm512_ternarylogic_epi32(a, b, mask, 0xf8); }
  static Words either(Words a, Words b) { return _mm512_or_si512(a, b); }
  template <int bits>
  static Words shift_right(Words words) {
    return _mm512_srli_epi32(words, bits);
  }
  template <int bits>
  static Words shift_left(Words words) {
    return _mm512_slli_epi32(words, bits);
  }
  // Whether 8-bit codes are multiplied as numbers with a sign.
  static constexpr bool kSignedBytes = false;

  // total + the sum of four products in each word: of code bytes, which have no sign, with activations.
  template <int bits>
  static Words dot(Words total, Words codes, Words activations) {
    return _mm512_dpbusd_epi32(total, codes, activations);
  }
  static Floats to_floats(Words words) { return _mm512_cvtepi32_ps(words); }

  // Values of a chunk's blocks, one to each of the block's lanes.
  struct Spread {
    Words block, word, shift;
    bool one_word;  // whether the zero points of all blocks lie in one
  };
  static Spread make_spread(int lanes_of_block) {
    alignas(64) int32_t block[kLanes], word[kLanes], shift[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      block[lane] = lane / lanes_of_block;
      word[lane] = block[lane] / 8;
      shift[lane] = block[lane] % 8 * 4;
    }
    return {load_words(block), load_words(word), load_words(shift), word[kLanes - 1] == 0};
  }
  static Floats spread(Floats values, const Spread& spread) {
    return _mm512_permutexvar_ps(spread.block, values);
  }
  // Reads 8 bytes. A table is looked up by the last four bits of a word, whatever the others are.
  static Floats spread_nibbles(const uint8_t* nibbles, const Spread& spread) {
    Words all;
    if (spread.one_word) {
      int32_t word;
      std::memcpy(&word, nibbles, sizeof word);
      all = _mm512_set1_epi32(word);
    } else {
      const __m128i both_words = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(nibbles));
      all = _mm512_permutexvar_epi32(spread.word, _mm512_castsi128_si512(both_words));
    }
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(all, spread.shift), load(kNumbers.values));
  }

  // Where the words of a plane are among those of three vectors: in the first two, then in the third.
  struct Planes {
    Words in_two[3], in_third[3];
    int words_of_plane;
  };
  static Planes make_planes(int words_of_plane) {
    Planes planes;
    planes.words_of_plane = words_of_plane;
    for (int plane = 0; plane < 3; ++plane) {
      alignas(64) int32_t two[kLanes], third[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const int at = lane / words_of_plane * 3 * words_of_plane + plane * words_of_plane + lane % words_of_plane;
        two[lane] = at % 32;
        third[lane] = at < 32 ? lane : 16 + at - 32;
      }
      planes.in_two[plane] = load_words(two);
      planes.in_third[plane] = load_words(third);
    }
    return planes;
  }
  static Words gather(const uint8_t* mixed, const Planes& planes, int plane) {
    if (planes.words_of_plane == 8) {  // two long pieces, each loaded to where it belongs
      return _mm512_mask_loadu_epi32(load_words(mixed + 32 * plane), 0xff00, mixed + 64 + 32 * plane);
    }
    const Words two = _mm512_permutex2var_epi32(load_words(mixed), planes.in_two[plane], load_words(mixed + 64));
    return _mm512_permutex2var_epi32(two, planes.in_third[plane], load_words(mixed + 128));
  }
};

}  // namespace

bool find_avx512(Storage storage, Activation activation, int64_t block, Kernel& kernel) {
  return find_kernel_of<Avx512>(storage, activation, block, kernel);
}

}  // namespace zq2onnx

ZQ2ONNX_END_TARGET
#endif
