// Kernels for AVX2 and FMA.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "../floats.h"
#include "product.h"
#include "target.h"

ZQ2ONNX_BEGIN_TARGET("avx2,fma")

#include "avx2.h"

namespace zq2onnx {

bool find_avx2(Storage storage, Activation activation, int64_t block, Kernel& kernel) {
  return find_kernel_of<Avx2>(storage, activation, block, kernel);
}

}  // namespace zq2onnx

ZQ2ONNX_END_TARGET
#endif
