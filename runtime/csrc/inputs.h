// What a node is given: attributes and constants with the session, everything else at every run.
#pragma once

#include <string>
#include <utility>

#include "error.h"
#include "operators.h"
#include "ort_abi.h"
#include "tensors.h"

namespace zq2onnx {

class NodeInputs {
 public:
  // Throws Error where attributes or constant inputs are not those of the operator.
  NodeInputs(const Operator& op, ort::ElementType type, const ort::Api* api, const ort::KernelInfo* info);

  const ort::Api* api() const { return api_; }
  const Requirements& requirements() const { return requirements_; }
  const Tensors& constants() const { return constants_; }

  // Runs `body`; what it throws names the node.
  template <typename Body>
  auto naming(Body&& body) const {
    try {
      return std::forward<Body>(body)();
    } catch (const Error& error) {
      throw Error(label_ + ": " + error.what(), "");
    }
  }

 private:
  const ort::Api* api_;
  std::string label_;  // operator and name
  Requirements requirements_;
  Tensors constants_;  // checked; ONNX Runtime keeps them where they are as long as the node
};

// The inputs of one run, checked.
class RunInputs {
 public:
  // Throws Error where inputs do not fit.
  RunInputs(const NodeInputs& node, const ort::KernelContext* context);
  RunInputs(const RunInputs&) = delete;
  RunInputs& operator=(const RunInputs&) = delete;

  const TensorRefs& tensors() const { return tensors_; }
  int64_t tokens() const { return tokens_; }

  // Has ONNX Runtime make the output, and returns its data.
  void* make_output(ort::KernelContext* context) const;

 private:
  const NodeInputs& node_;
  Tensors own_;  // those that are no constants
  TensorRefs tensors_;
  int64_t tokens_;
};

}  // namespace zq2onnx
