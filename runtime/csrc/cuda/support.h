// What CUDA sessions can be given on this machine: which operators the compiled kernels run on its GPUs.
#pragma once

#include <array>
#include <string>

#include "device.h"

namespace zq2onnx::cuda {

// The bundle, or why there is none that can be used.
struct FoundBundle {
  std::shared_ptr<const Bundle> bundle;
  std::string why_none;
};
FoundBundle look_for_bundle();

// For each operator why its kernels cannot run here; "" where they can, for every shape and float type and on every GPU
// that the process sees: a session may be given any of them.
using WhyNot = std::array<std::string, kOperators.size()>;
WhyNot why_not();

}  // namespace zq2onnx::cuda
