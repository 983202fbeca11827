// SHA-256 (FIPS 180-4): whether a kernel's file is the one that the manifest was written with.
#pragma once

#include <string>
#include <string_view>

namespace zq2onnx::cuda {

// In lower-case hexadecimal digits.
std::string sha256(std::string_view bytes);

}  // namespace zq2onnx::cuda
