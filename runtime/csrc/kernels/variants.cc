#include <cstdlib>
#include <iterator>

#include "../cpu.h"
#include "../error.h"
#include "product.h"

namespace zq2onnx {
namespace {

// Kinds of activations by which a variant was measured: benchmarks/cpu_matmul.py, AVX2 beside stock kernels of AVX-512.
constexpr int bit(Activation activation) { return 1 << static_cast<int>(activation); }
constexpr int kFloats = bit(Activation::kFloat);
constexpr int kTokens = bit(Activation::kInt8PerToken);
constexpr int kBlocks = bit(Activation::kInt8PerBlock);

// Best first. Tuned kernels have translation units of their own, compiled for their instruction set.
constexpr Variant kVariants[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512, find_avx512, kFloats | kTokens | kBlocks},
#if defined(ZQ2ONNX_AVX_VNNI)
    {"avx2_vnni", has_avx_vnni, find_avx2_vnni, 0},
#endif
    {"avx2", has_avx2, find_avx2, kFloats | kTokens},
#elif defined(__aarch64__)
    {"neon_dotprod", has_dot_product, find_neon_dotprod, 0},
    {"neon", [] { return true; }, find_neon, 0},
#endif
    {"generic", [] { return true; }, find_generic, 0},
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

// The first variant that has a kernel, and that.
const Variant& find_variant(Storage storage, Activation activation, int64_t block, Kernel& kernel) {
  const Variant* variant = first_variant();
  while (!variant->usable() || !variant->find(storage, activation, block, kernel)) ++variant;
  return *variant;
}

}  // namespace

Kernel find_kernel(Storage storage, Activation activation, int64_t block) {
  Kernel kernel{};
  find_variant(storage, activation, block, kernel);
  return kernel;
}

bool is_measured(Storage storage, Activation activation) {
  Kernel kernel{};
  return find_variant(storage, activation, kMaxBlock, kernel).measured & bit(activation);
}

std::string usable_variants() {
  std::string names;
  for (const Variant& variant : kVariants) {
    if (variant.usable()) names += (names.empty() ? "" : " ") + std::string(variant.name);
  }
  return names;
}

}  // namespace zq2onnx
