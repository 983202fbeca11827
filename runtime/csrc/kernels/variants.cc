#include <cstdlib>
#include <iterator>

#include "../error.h"
#include "product.h"

namespace zq2onnx {
namespace {

// Best first. Tuned kernels have translation units of their own, compiled for their instruction set.
constexpr Variant kVariants[] = {
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

ProductKernel find_product(Storage storage, Activation activation, ort::ElementType type) {
  for (const Variant* variant = first_variant(); variant != std::end(kVariants); ++variant) {
    if (!variant->usable()) continue;
    if (ProductKernel kernel = variant->find(storage, activation, type)) return kernel;
  }
  return find_generic(storage, activation, type);
}

std::string usable_variants() {
  std::string names;
  for (const Variant& variant : kVariants) {
    if (variant.usable()) names += (names.empty() ? "" : " ") + std::string(variant.name);
  }
  return names;
}

}  // namespace zq2onnx
