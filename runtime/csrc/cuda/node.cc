#include "node.h"

#include <algorithm>

namespace zq2onnx::cuda {
namespace {

ort::Allocator* device_allocator(const ort::Api* api, const ort::KernelInfo* info) {
  ort::Allocator* allocator = nullptr;
  check(api->call<ort::KernelInfoGetAllocator>(info, ort::MemoryType::kDefault, &allocator));
  return allocator;
}

// Of one run, from ONNX Runtime's own arena: it knows on which stream it is used, so that what is given back when
// kernels are launched is not given to another stream before they have run.
class RunScratch {
 public:
  RunScratch(const ort::Api* api, const ort::KernelContext* context, ort::Allocator* allocator, size_t bytes)
      : allocator_(allocator) {
    if (!bytes) return;
    const ort::MemoryInfo* info = allocator->Info(allocator);
    check(api->call<ort::KernelContextGetScratchBuffer>(context, info, bytes, &data_));
  }
  ~RunScratch() {
    if (data_) allocator_->Free(allocator_, data_);
  }
  RunScratch(const RunScratch&) = delete;
  RunScratch& operator=(const RunScratch&) = delete;

  char* data() const { return static_cast<char*>(data_); }

 private:
  ort::Allocator* allocator_;
  void* data_ = nullptr;
};

}  // namespace

Node::Node(const Operator& op, ort::ElementType type, const ort::Api* api, const ort::KernelInfo* info)
    : inputs_(op, type, api, info), allocator_(device_allocator(api, info), Release{api}) {
  inputs_.naming([&] {
    device_ = Device::open(ordinal());
    sizes_ = node_sizes(op, inputs_.requirements().geometry);
    candidates_ = load_candidates(*device_, find_bundle(), sizes_, type);
  });
}

int Node::ordinal() const {
  int ordinal = 0;
  check(api()->call<ort::MemoryInfoGetId>(allocator_->Info(allocator_.get()), &ordinal));
  return ordinal;
}

// What takes a run's memory ends the process where there is none. So where more is wanted than there was, it is first
// taken in a way that fails with a status, and given back to the arena, where the run finds it.
void Node::require_memory(size_t bytes) const {
  size_t had = had_.load();
  if (bytes <= had) return;
  void* data = nullptr;
  check(api()->call<ort::AllocatorAlloc>(allocator_.get(), bytes, &data));
  check(api()->call<ort::AllocatorFree>(allocator_.get(), data));
  while (bytes > had && !had_.compare_exchange_weak(had, bytes)) {
  }
}

Plan Node::plan(const RunInputs& inputs, const Addresses& addresses) const {
  const TensorRefs& tensors = inputs.tensors();
  const auto is_int8 = [&](Input input) { return tensors[input] && tensors[input]->type == ort::ElementType::kInt8; };
  Sizes sizes = sizes_;
  add_run(sizes, {inputs.tokens(), tensors[kU] ? tensors[kU]->shape[1] : 0, tensors[kBias] != nullptr, is_int8(kU),
                  is_int8(kV)});
  return {candidates_, sizes, addresses.aligned()};
}

void Node::compute(ort::KernelContext* context) const {
  inputs_.naming([&] {
    const RunInputs inputs(inputs_, context);
    Addresses addresses;
    for (size_t index = 0; index < kInputs; ++index) {
      const Tensor* tensor = inputs.tensors()[index];
      addresses[static_cast<Array>(index)] = tensor ? tensor->data : nullptr;
    }
    addresses[Array::kY] = inputs.make_output(context);
    if (inputs.tokens() == 0) return;
    void* stream = nullptr;
    check(api()->call<ort::KernelContextGetGpuComputeStream>(static_cast<const ort::KernelContext*>(context), &stream));
    if (!stream) throw Error("ONNX Runtime gives no stream", "a session on the CUDA provider");
    const Plan launches = plan(inputs, addresses);
    require_memory(launches.scratch_bytes());
    const RunScratch scratch(api(), context, allocator_.get(), launches.scratch_bytes());
    const Device::Current current(*device_);
    launches.launch(addresses, scratch.data(), static_cast<Stream>(stream));
  });
}

}  // namespace zq2onnx::cuda
