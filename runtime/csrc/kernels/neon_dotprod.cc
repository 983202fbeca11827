// Kernels for integers with NEON's dot-product extension; the others are those for NEON.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "../floats.h"
#include "product.h"
#include "target.h"

#if defined(__clang__)
ZQ2ONNX_BEGIN_TARGET("dotprod")
#else
ZQ2ONNX_BEGIN_TARGET("arch=armv8.2-a+dotprod")
#endif

#include "neon.h"

namespace zq2onnx {
namespace {

struct NeonDotprod : Neon {
  // total + the sum of four products in each word: of code bytes with activations.
  template <int bits>
  static Words dot(Words total, Words codes, Words activations) {
    // By its name: not every compiler has the intrinsic where the extension is one function's.
    asm("sdot %0.4s, %1.16b, %2.16b" : "+w"(total) : "w"(codes), "w"(activations));
    return total;
  }
};

}  // namespace

bool find_neon_dotprod(Storage storage, Activation activation, int64_t block, Kernel& kernel) {
  return find_kernel_of<NeonDotprod, false>(storage, activation, block, kernel);
}

}  // namespace zq2onnx

ZQ2ONNX_END_TARGET
#endif
