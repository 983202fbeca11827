// What this processor, and the operating system on it, can do.
#pragma once

#include <string>

namespace zq2onnx {

// Instruction sets that kernels are made for; false on other processors.
bool has_avx2();         // and FMA
bool has_avx_vnni();
bool has_avx512();       // F, BW, DQ, VL and VNNI
bool has_dot_product();  // of AArch64

// Names of the instruction sets found that kernels may be made for, separated by blanks.
std::string cpu_features();

}  // namespace zq2onnx
