// The table of operators: `zq2onnx/opset.py` says what they mean, `zq2onnx/layout.py` how they are stored.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

namespace zq2onnx {

// How a block of codes is stored.
enum class Storage { kTwoBits, kThreeBits, kFourBits, kHalfBytes, kWholeBytes };

// What activations are multiplied as.
enum class Activation { kFloat, kInt8PerToken, kInt8PerBlock };

struct Operator {
  const char* name;
  int bits;
  Activation activation;
  bool lorc;
  bool cuda_pays;  // whether its CUDA kernels are measured, on a GPU, never to be slower than its function
  bool pays;       // the same of its CPU kernels, by the variants that are measured

  constexpr Storage storage() const {
    switch (bits) {
      case 2: return Storage::kTwoBits;
      case 3: return Storage::kThreeBits;
      case 4: return Storage::kFourBits;
      default: return activation == Activation::kInt8PerBlock ? Storage::kWholeBytes : Storage::kHalfBytes;
    }
  }
  constexpr size_t input_count() const { return lorc ? 9 : 5; }
};

// Inputs, in order.
enum Input : size_t { kA, kB, kScales, kZeroPoints, kBias, kU, kV, kUScales, kVScales, kInputs };
constexpr std::array<const char*, kInputs> kInputNames = {
    "A", "B", "scales", "zero_points", "bias", "U", "V", "U_scales", "V_scales"};

constexpr std::array<Operator, 24> kOperators = {{
    {"MatMulW8A16", 8, Activation::kFloat, false, false, true},
    {"MatMulW8A16LoRC", 8, Activation::kFloat, true, false, true},
    {"MatMulW4A16", 4, Activation::kFloat, false, false, true},
    {"MatMulW4A16LoRC", 4, Activation::kFloat, true, false, true},
    {"MatMulW3A16", 3, Activation::kFloat, false, false, true},
    {"MatMulW3A16LoRC", 3, Activation::kFloat, true, false, true},
    {"MatMulW2A16", 2, Activation::kFloat, false, false, true},
    {"MatMulW2A16LoRC", 2, Activation::kFloat, true, false, true},
    {"MatMulW8A8", 8, Activation::kInt8PerToken, false, false, true},
    {"MatMulW8A8LoRC", 8, Activation::kInt8PerToken, true, false, true},
    {"MatMulW4A8", 4, Activation::kInt8PerToken, false, false, true},
    {"MatMulW4A8LoRC", 4, Activation::kInt8PerToken, true, false, true},
    {"MatMulW3A8", 3, Activation::kInt8PerToken, false, false, true},
    {"MatMulW3A8LoRC", 3, Activation::kInt8PerToken, true, false, true},
    {"MatMulW2A8", 2, Activation::kInt8PerToken, false, false, true},
    {"MatMulW2A8LoRC", 2, Activation::kInt8PerToken, true, false, true},
    {"MatMulW8A8Block", 8, Activation::kInt8PerBlock, false, false, false},
    {"MatMulW8A8BlockLoRC", 8, Activation::kInt8PerBlock, true, false, false},
    {"MatMulW4A8Block", 4, Activation::kInt8PerBlock, false, false, false},
    {"MatMulW4A8BlockLoRC", 4, Activation::kInt8PerBlock, true, false, false},
    {"MatMulW3A8Block", 3, Activation::kInt8PerBlock, false, false, false},
    {"MatMulW3A8BlockLoRC", 3, Activation::kInt8PerBlock, true, false, false},
    {"MatMulW2A8Block", 2, Activation::kInt8PerBlock, false, false, true},
    {"MatMulW2A8BlockLoRC", 2, Activation::kInt8PerBlock, true, false, true},
}};

}  // namespace zq2onnx
