#include <cstdlib>
#include <iterator>

#include "../cpu.h"
#include "../error.h"
#include "product.h"

namespace zq2onnx {
namespace {

// Best first. Tuned kernels have translation units of their own, compiled for their instruction set.
constexpr Variant kVariants[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512, find_avx512},
#if defined(ZQ2ONNX_AVX_VNNI)
    {"avx2_vnni", has_avx_vnni, find_avx2_vnni},
#endif
    {"avx2", has_avx2, find_avx2},
#elif defined(__aarch64__)
    {"neon_dotprod", has_dot_product, find_neon_dotprod},
    {"neon", [] { return true; }, find_neon},
#endif
    {"generic", [] { return true; }, find_generic},
};

// Where to begin in the table: at its top, or at the variant that the environment names.
const Variant* first_variant() {
  const char* named = std::getenv("ZQ2ONNX_KERNEL");
  if (!named || !*named) return kVariants;
  for (const Variant& variant : kVariants) {
    if (std::string(named) == variant.name && variant.usable()) return &variant;
  }
  throw Error("ZQ2ONNX_KERNEL is '" + std::string(named) + "'",
              "of those that this processor can run: " + usable_variants());
}

}  // namespace

Kernel find_kernel(Storage storage, Activation activation, int64_t block) {
  Kernel kernel{};
  for (const Variant* variant = first_variant(); variant != std::end(kVariants); ++variant) {
    if (variant->usable() && variant->find(storage, activation, block, kernel)) break;
  }
  return kernel;
}

std::string usable_variants() {
  std::string names;
  for (const Variant& variant : kVariants) {
    if (variant.usable()) names += (names.empty() ? "" : " ") + std::string(variant.name);
  }
  return names;
}

}  // namespace zq2onnx
