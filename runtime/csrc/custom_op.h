// Our operators as ONNX Runtime sees them: a static table of its `OrtCustomOp`.
#pragma once

#include <vector>

#include "operators.h"
#include "ort_abi.h"

namespace zq2onnx {

// The registrations of an operator, one for each choice of its inputs' types: of its CPU kernel, and with `cuda` also of
// its CUDA kernel, so that ONNX Runtime chooses by the provider that a node is given to. They live as long as the process.
//
// Types are spelt out rather than left open (`any`): that would need a function that infers shapes, and ONNX Runtime
// up to 1.20 at least crashes in preparing its argument where an optional input is absent.
std::vector<const ort::CustomOp*> registrations(size_t op, bool cuda);

}  // namespace zq2onnx
