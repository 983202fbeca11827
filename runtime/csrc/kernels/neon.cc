// Kernels for NEON, which every AArch64 has.
#if defined(__aarch64__)

#include <arm_neon.h>

#include "product.h"

#include "neon.h"

namespace zq2onnx {

bool find_neon(Storage storage, Activation activation, int64_t block, Kernel& kernel) {
  return find_kernel_of<Neon>(storage, activation, block, kernel);
}

}  // namespace zq2onnx

#endif
