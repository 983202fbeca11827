// One node of a session: created with it, computed at every run.
#pragma once

#include <string>

#include "operators.h"
#include "ort_abi.h"
#include "run.h"
#include "tensors.h"

namespace zq2onnx {

class Node {
 public:
  // Throws Error where attributes or constant inputs are not those of the operator.
  Node(const Operator& op, ort::ElementType type, const ort::Api* api, const ort::KernelInfo* info);

  // Throws Error where inputs do not fit. May run on several threads at once, as a session may.
  void compute(ort::KernelContext* context) const;

  const ort::Api* api() const { return api_; }
  const std::string& label() const { return label_; }

 private:
  // Reads the inputs that are not constants.
  Tensors read_inputs(const ort::KernelContext* context) const;

  const ort::Api* api_;
  std::string label_;  // operator and name, for errors
  Requirements requirements_;
  Functions functions_;
  Tensors constants_;  // checked; ONNX Runtime keeps them where they are as long as the node
};

}  // namespace zq2onnx
