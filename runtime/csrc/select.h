// Which operators to register: the rule, in one place for every host.
#pragma once

#include <array>
#include <string>

#include "operators.h"

namespace zq2onnx {

// What was asked for, and by whom: a session option or an environment variable.
struct Wish {
  std::string value;
  std::string source;  // "" where nobody asked
};

struct Wishes {
  Wish ops;       // names, comma-separated; `all`; `none`; "": those that pay
  Wish provider;  // `cpu`, `cuda`; "": cuda where the host has the CUDA provider, and a GPU is here
};

struct Verdict {
  bool registered;
  std::string why;
};

struct Selection {
  bool cuda;  // whether the session is taken to run on a GPU
  std::array<Verdict, kOperators.size()> verdicts;

  std::string names() const;  // of those registered, comma-separated
  bool none() const { return names().empty(); }
};

// Environment variable `ZQ2ONNX_OPS` or `ZQ2ONNX_PROVIDER`.
Wish environment(const char* variable);

// A name is registered where it is asked for, by name or because it pays, and the session's provider has a kernel for
// every node of it: else nodes that could run on the GPU would come to the CPU unnoticed. `host_has_cuda`: whether ONNX
// Runtime has the CUDA provider. Where the provider is the CPU no driver is touched: a process may fork afterwards.
// Throws Error for an unknown name.
Selection select_operators(const Wishes& wishes, bool host_has_cuda);

}  // namespace zq2onnx
