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

// to[r] = sum over k of a[k] * U[k, r], accumulated in float32.
using BranchIn = void (*)(const float* a, const void* u, int64_t k, int64_t rank, float* to);
BranchIn find_branch_in(ort::ElementType type);

// out[i] += sum over r of t[r] * V[r, i], for a few columns i; `v` starts at the first, its rows are `stride` apart.
using BranchOut = void (*)(const float* t, const void* v, int64_t rank, int64_t stride, int64_t columns, float* out);
BranchOut find_branch_out(ort::ElementType type);

// to[i] = from[i], in the node's float type, at element `offset`.
using Narrow = void (*)(const float* from, int64_t size, int64_t offset, void* to);
Narrow find_narrow(ort::ElementType type);

// Bytes of an element.
int64_t size_of(ort::ElementType type);

// Where the `at`th element of a tensor is.
const void* element(const void* data, ort::ElementType type, int64_t at);

}  // namespace zq2onnx
