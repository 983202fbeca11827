#include "support.h"

#include "../error.h"

namespace zq2onnx::cuda {
namespace {

constexpr struct {
  ort::ElementType type;
  const char* name;
} kTypes[] = {{ort::ElementType::kFloat16, "float16"},
              {ort::ElementType::kBfloat16, "bfloat16"},
              {ort::ElementType::kFloat, "float32"}};

std::string why_not_on(const DeviceFacts& device, const std::vector<const Kernel*>& kernels, const Operator& op) {
  for (const auto& [type, name] : kTypes) {
    if (covers(kernels, op, type)) continue;
    return "no kernel for it is compiled for " + device.name + " (sm_" + std::to_string(device.capability) +
           ") in " + name;
  }
  return "";
}

}  // namespace

FoundBundle look_for_bundle() {
  try {
    return {find_bundle(), ""};
  } catch (const Error& error) {
    return {nullptr, error.what()};
  }
}

WhyNot why_not() {
  WhyNot why;
  const FoundDevices& found = find_devices();
  const FoundBundle compiled = found.devices.empty() ? FoundBundle{} : look_for_bundle();
  why.fill(found.devices.empty() ? found.why_none : compiled.why_none);
  if (!compiled.bundle) return why;
  for (const DeviceFacts& device : found.devices) {
    const std::vector<const Kernel*> kernels = compiled.bundle->kernels_for(device.capability);
    for (size_t op = 0; op < kOperators.size(); ++op) {
      if (why[op].empty()) why[op] = why_not_on(device, kernels, kOperators[op]);
    }
  }
  return why;
}

}  // namespace zq2onnx::cuda
