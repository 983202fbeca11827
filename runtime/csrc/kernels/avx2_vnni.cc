// Kernels for integers with AVX-VNNI, on processors that have no AVX-512; the others are those for AVX2.
#include "product.h"

#if defined(ZQ2ONNX_AVX_VNNI)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "../floats.h"
#include "target.h"

ZQ2ONNX_BEGIN_TARGET("avx2,fma,avxvnni")

#include "avx2.h"

namespace zq2onnx {
namespace {

struct Avx2Vnni : Avx2 {
  static constexpr bool kSignedBytes = false;

  template <int bits>
  static Words dot(Words total, Words codes, Words activations) {
    return _mm256_dpbusd_avx_epi32(total, codes, activations);
  }
};

}  // namespace

bool find_avx2_vnni(Storage storage, Activation activation, int64_t block, Kernel& kernel) {
  return find_kernel_of<Avx2Vnni, false>(storage, activation, block, kernel);
}

}  // namespace zq2onnx

ZQ2ONNX_END_TARGET
#endif
