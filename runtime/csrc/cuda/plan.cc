#include "plan.h"

#include <algorithm>
#include <limits>
#include <string>

#include "../error.h"

namespace zq2onnx::cuda {
namespace {

constexpr size_t kAligned = 16;         // what `aligned` kernels want of addresses
constexpr size_t kScratchAligned = 256;  // what CUDA's allocations have
constexpr int64_t kSummed = 128;         // channels whose int8 codes have one sum
constexpr int64_t kMostGrid[3] = {INT32_MAX, 65535, 65535};

bool needs_prologue(const Sizes& sizes) { return sizes[Size::kRounds] || sizes[Size::kRank]; }

// Of what is known of a node; `codes` is what a product wants of a prologue.
bool may_hold(const Kernel& kernel, const Sizes& sizes) {
  return std::all_of(kernel.when.begin(), kernel.when.end(), [&](const Condition& condition) {
    return !is_known_of_node(condition.size) || condition.holds(sizes);
  });
}

bool takes(const Kernel& kernel, const Sizes& sizes, bool aligned) {
  return (aligned || !kernel.aligned) &&
         std::all_of(kernel.when.begin(), kernel.when.end(),
                     [&](const Condition& condition) { return condition.holds(sizes); });
}

const LoadedKernel* first(const LoadedKernels& offered, const Sizes& sizes, bool aligned) {
  for (const auto& loaded : offered) {
    if (takes(loaded->kernel(), sizes, aligned)) return loaded.get();
  }
  return nullptr;
}

std::string text(const Sizes& sizes) {
  std::string text;
  for (const Size size : {Size::kBits, Size::kM, Size::kN, Size::kK, Size::kBlock, Size::kRank}) {
    text += (text.empty() ? "" : ", ") + std::string(kSizeNames[static_cast<size_t>(size)]) + "=" +
            std::to_string(sizes[size]);
  }
  return text;
}

int64_t item_bytes(ort::ElementType type) { return type == ort::ElementType::kFloat ? 4 : 2; }

void require_multiple(const Argument& argument, uint64_t value) {
  if (value % static_cast<uint64_t>(argument.multiple_of) == 0) return;
  const auto name = argument.is_array ? kArrayNames[static_cast<size_t>(argument.array)]
                                      : kSizeNames[static_cast<size_t>(argument.size)];
  throw Error(std::string(name) + " is " + std::to_string(value),
              "a multiple of " + std::to_string(argument.multiple_of));
}

}  // namespace

bool Addresses::aligned() const {
  return std::all_of(values_.begin(), values_.end(),
                     [](const void* value) { return reinterpret_cast<uintptr_t>(value) % kAligned == 0; });
}

Candidates load_candidates(Device& device, const std::shared_ptr<const Bundle>& bundle, const Sizes& sizes,
                           ort::ElementType type) {
  Candidates candidates;
  for (const Kernel* kernel : bundle->kernels_for(device.capability())) {
    if (kernel->type != type || !may_hold(*kernel, sizes)) continue;
    (kernel->prologue ? candidates.prologues : candidates.products).push_back(device.load(bundle, *kernel));
  }
  return candidates;
}

Plan::Plan(const Candidates& candidates, const Sizes& sizes, bool aligned) : sizes_(sizes) {
  for (const auto& product : candidates.products) {
    const Kernel& kernel = product->kernel();
    if (!takes(kernel, sizes_, aligned)) continue;
    sizes_[Size::kCodes] = kernel.codes;
    prologue_ = needs_prologue(sizes_) ? first(candidates.prologues, sizes_, aligned) : nullptr;
    if (needs_prologue(sizes_) && !prologue_) continue;
    product_ = product.get();
    sizes_[Size::kXStride] = sizes_[kernel.codes ? Size::kKPadded : Size::kK];
    sizes_[Size::kXWaits] = sizes_[Size::kRounds] != 0;
    place_scratch(kernel.type);
    return;
  }
  throw Error("no kernel for " + text(sizes_), "a whole bundle (zq2onnx kernels build)");
}

void Plan::place_scratch(ort::ElementType type) {
  const auto place = [&](Array array, int64_t a, int64_t b, int64_t item) {
    int64_t bytes;
    if (__builtin_mul_overflow(a, b, &bytes) || __builtin_mul_overflow(bytes, item, &bytes)) {
      throw Error("no scratch memory for " + text(sizes_), "fewer tokens");
    }
    scratch_.push_back({array, scratch_bytes_});
    scratch_bytes_ += (static_cast<size_t>(bytes) + kScratchAligned - 1) / kScratchAligned * kScratchAligned;
  };
  const int64_t tokens = sizes_[Size::kM];
  const bool codes = sizes_[Size::kCodes];
  if (sizes_[Size::kRank]) place(Array::kT, sizes_[Size::kParts] * tokens, sizes_[Size::kRank], sizeof(float));
  if (!sizes_[Size::kRounds]) return;
  place(Array::kX, tokens, sizes_[Size::kXStride], codes ? 1 : item_bytes(type));
  place(Array::kXScales, tokens, sizes_[Size::kXBlocks], sizeof(float));
  if (codes) place(Array::kSums, tokens, sizes_[Size::kKPadded] / kSummed, sizeof(float));
}

void Plan::launch(Addresses addresses, char* scratch, Stream stream) const {
  for (const auto& [array, at] : scratch_) addresses[array] = scratch + at;
  const bool prepared = prologue_ && launch_one(*prologue_, addresses, stream, false);
  if (!sizes_[Size::kRounds]) addresses[Array::kX] = addresses[Array::kA];
  launch_one(*product_, addresses, stream, prepared && product_->kernel().dependent);
}

bool Plan::launch_one(const LoadedKernel& loaded, const Addresses& addresses, Stream stream, bool dependent) const {
  const Kernel& kernel = loaded.kernel();
  unsigned grid[3] = {1, 1, 1};
  for (size_t axis = 0; axis < 3; ++axis) {
    int64_t extent = 1;
    for (const auto& [size, tile] : kernel.grid[axis]) extent *= (sizes_[size] + tile - 1) / tile;
    if (extent == 0) return false;
    if (extent > kMostGrid[axis]) throw Error("no grid for " + text(sizes_), "fewer tokens");
    grid[axis] = static_cast<unsigned>(extent);
  }
  uint64_t values[64] = {};  // as many as a manifest may have; integers are read as their low half
  void* pointers[64];
  size_t count = 0;
  for (const Argument& argument : kernel.arguments) {
    values[count] = argument.is_array ? reinterpret_cast<uint64_t>(addresses[argument.array])
                                      : static_cast<uint64_t>(sizes_[argument.size]);
    require_multiple(argument, values[count]);
    ++count;
  }
  count += kernel.hidden;
  for (size_t index = 0; index < count; ++index) pointers[index] = &values[index];
  loaded.launch(grid, pointers, stream, dependent);
  return true;
}

}  // namespace zq2onnx::cuda
