// One node of a session on a GPU: its kernels are loaded with it, and launched at every run.
#pragma once

#include <atomic>
#include <memory>

#include "../inputs.h"
#include "plan.h"

namespace zq2onnx::cuda {

class Node {
 public:
  // Throws Error where attributes or constant inputs are not those of the operator, or a kernel does not load.
  Node(const Operator& op, ort::ElementType type, const ort::Api* api, const ort::KernelInfo* info);

  // Launches on the stream of the run, and waits for nothing: may be captured in a CUDA graph. Throws Error. May run
  // on several threads at once, as a session may.
  void compute(ort::KernelContext* context) const;

  const ort::Api* api() const { return inputs_.api(); }

 private:
  struct Release {
    const ort::Api* api;
    void operator()(ort::Allocator* allocator) const { api->call<ort::ReleaseAllocator>(allocator); }
  };

  int ordinal() const;
  Plan plan(const RunInputs& inputs, const Addresses& addresses) const;
  void require_memory(size_t bytes) const;

  NodeInputs inputs_;
  std::unique_ptr<ort::Allocator, Release> allocator_;  // of the device's memory
  std::shared_ptr<Device> device_;
  Sizes sizes_;  // those that are known of the node
  Candidates candidates_;
  mutable std::atomic<size_t> had_{0};  // the most scratch memory that there was for a run
};

}  // namespace zq2onnx::cuda
