// What is done to each token before the product: to float32, to int8, and through the branch's first factor.
#pragma once

#include <cstdint>

#include "../ort_abi.h"

namespace zq2onnx {

// to[0..size) as float32.
using Widen = void (*)(const void* from, int64_t size, float* to);
Widen find_widen(ort::ElementType type);

// Rounds values that share a scale: `s = max|a| / 127`, `code = round(a / s)`, half to even; returns s.
//
// Where a value is infinite or no number the scale is none either, and so is what is made of it.
float round_to_int8(const float* a, int64_t size, int8_t* codes);

// to[i] = from[i], in the node's float type, at element `offset`.
using Narrow = void (*)(const float* from, int64_t size, int64_t offset, void* to);
Narrow find_narrow(ort::ElementType type);

// Bytes of an element.
int64_t size_of(ort::ElementType type);

// Where the `at`th element of a tensor is.
const void* element(const void* data, ort::ElementType type, int64_t at);

}  // namespace zq2onnx
