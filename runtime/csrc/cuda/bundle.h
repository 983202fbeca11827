// The kernel bundle: what its `manifest.json` says, read with every bound and name checked.
// `zq2onnx/runtime/kernels/manifest.py` says what the fields mean.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "../ort_abi.h"
#include "problem.h"

namespace zq2onnx::cuda {

// What one size must be.
struct Condition {
  Size size;
  int64_t at_least, at_most, multiple_of;

  bool holds(const Sizes& sizes) const {
    const int64_t value = sizes[size];
    return at_least <= value && value <= at_most && value % multiple_of == 0;
  }
};

// One factor of a grid's axis: ceil(size / tile).
struct Extent {
  Size size;
  int64_t tile;
};

// An argument of a launch: the address of an array, or a size.
struct Argument {
  bool is_array;
  Array array;
  Size size;
  int64_t multiple_of;
};

struct Kernel {
  std::string name, file, sha256, symbol;
  bool ptx = false;     // compiled by the driver
  int capability = 0;   // of the architecture, as 90
  bool prologue = false;
  ort::ElementType type{};  // A's
  bool codes = false;   // a prologue that writes, or a product that reads, int8 codes
  bool aligned = false; // arrays begin at multiples of 16 bytes
  bool dependent = false;
  unsigned shared = 0, threads = 0;
  size_t bytes = 0;  // of its file
  std::vector<Condition> when;
  std::array<std::vector<Extent>, 3> grid;
  std::vector<Argument> arguments;
  size_t hidden = 0;  // null pointers that follow them
};

struct Bundle {
  std::string folder;
  std::vector<Kernel> kernels;  // of one architecture in order of preference

  // The kernels for a GPU of this compute capability, as 90: its own, or PTX that its driver compiles; none.
  std::vector<const Kernel*> kernels_for(int capability) const;
};

// `ZQ2ONNX_KERNELS`, or `kernels` beside this library.
std::string bundle_folder();

// The bundle in that folder, read once. Throws Error where there is none, or it is not whole or of another format.
std::shared_ptr<const Bundle> find_bundle();

// A kernel's file. Throws Error where it is not the one that the manifest names.
std::string read_kernel(const Bundle& bundle, const Kernel& kernel);

// Whether kernels run every shape of an operator in a type: there is a product, and a prologue where one is needed,
// that want no more of a problem than its kind.
bool covers(const std::vector<const Kernel*>& kernels, const Operator& op, ort::ElementType type);

}  // namespace zq2onnx::cuda
