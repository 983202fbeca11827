// AVX-VNNI on a processor that has AVX-512's VNNI instead: the same instruction, in AVX-512's encoding.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

static inline __attribute__((target("avx2"))) __m256i dot_of_avx512(__m256i total, __m256i codes, __m256i with) {
  asm("%{evex%} vpdpbusd %2, %1, %0" : "+x"(total) : "x"(codes), "x"(with));
  return total;
}
#define _mm256_dpbusd_avx_epi32 dot_of_avx512
#define __get_cpuid_count(leaf, part, a, b, c, d) (*(a) = 1u << 4, *(b) = *(c) = *(d) = 0, 1)
#endif
