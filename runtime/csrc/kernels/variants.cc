#include "product.h"

namespace zq2onnx {
namespace {

// Best first. Tuned kernels have translation units of their own, compiled for their instruction set.
constexpr Variant kVariants[] = {
    {"generic", [] { return true; }, find_generic},
};

}  // namespace

ProductKernel find_product(Storage storage, Activation activation, ort::ElementType type) {
  for (const Variant& variant : kVariants) {
    if (!variant.usable()) continue;
    if (ProductKernel kernel = variant.find(storage, activation, type)) return kernel;
  }
  return nullptr;
}

}  // namespace zq2onnx
