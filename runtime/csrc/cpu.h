// What this processor can do.
#pragma once

#include <string>

namespace zq2onnx {

// Names of the instruction sets found that kernels may be made for, separated by blanks.
std::string cpu_features();

}  // namespace zq2onnx
