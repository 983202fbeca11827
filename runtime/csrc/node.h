// One node of a session on the CPU: created with it, computed at every run.
#pragma once

#include "inputs.h"
#include "run.h"

namespace zq2onnx {

class Node {
 public:
  // Throws Error where attributes or constant inputs are not those of the operator.
  Node(const Operator& op, ort::ElementType type, const ort::Api* api, const ort::KernelInfo* info);

  // Throws Error where inputs do not fit. May run on several threads at once, as a session may.
  void compute(ort::KernelContext* context) const;

  const ort::Api* api() const { return inputs_.api(); }

 private:
  NodeInputs inputs_;
  Functions functions_;
};

}  // namespace zq2onnx
