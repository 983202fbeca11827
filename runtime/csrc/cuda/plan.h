// How one run of a node is launched: which kernels, in which memory. `zq2onnx/runtime/kernels/manifest.py` has the rule.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "device.h"
#include "problem.h"

namespace zq2onnx::cuda {

// The addresses of arrays; null where one is absent.
class Addresses {
 public:
  const void*& operator[](Array array) { return values_[static_cast<size_t>(array)]; }
  const void* operator[](Array array) const { return values_[static_cast<size_t>(array)]; }

  // Whether all begin at multiples of 16 bytes.
  bool aligned() const;

 private:
  std::array<const void*, static_cast<size_t>(Array::kCount)> values_{};
};

using LoadedKernels = std::vector<std::shared_ptr<const LoadedKernel>>;

// Kernels that a node may need, the preferred first.
struct Candidates {
  LoadedKernels prologues, products;
};

// Those that a node of these sizes may need for some run, loaded: no run loads anything. Throws Error.
Candidates load_candidates(Device& device, const std::shared_ptr<const Bundle>& bundle, const Sizes& sizes,
                           ort::ElementType type);

// The kernels of one run, and the memory that it needs beside its inputs.
class Plan {
 public:
  // `sizes` are those of node and run. Throws Error where no kernel takes them.
  Plan(const Candidates& candidates, const Sizes& sizes, bool aligned);

  // Bytes of scratch memory, which must begin at a multiple of 256.
  size_t scratch_bytes() const { return scratch_bytes_; }

  // Launches, in order, on a stream of the device, which is current. Throws Error.
  void launch(Addresses addresses, char* scratch, Stream stream) const;

 private:
  void place_scratch(ort::ElementType type);
  // Whether there was anything to launch.
  bool launch_one(const LoadedKernel& loaded, const Addresses& addresses, Stream stream, bool dependent) const;

  struct Place {
    Array array;
    size_t at;
  };

  Sizes sizes_;
  const LoadedKernel* prologue_ = nullptr;  // null where there is none
  const LoadedKernel* product_ = nullptr;
  std::vector<Place> scratch_;
  size_t scratch_bytes_ = 0;
};

}  // namespace zq2onnx::cuda
