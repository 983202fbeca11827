#include "custom_op.h"

#include <climits>
#include <memory>
#include <vector>

#include "cuda/node.h"
#include "error.h"
#include "node.h"

namespace zq2onnx {
namespace {

constexpr ort::ElementType kFloatTypes[] = {ort::ElementType::kFloat, ort::ElementType::kFloat16,
                                            ort::ElementType::kBfloat16};

struct Registration : ort::CustomOp {
  const Operator* op;
  ort::ElementType type;
  ort::ElementType u, v;  // the same, or int8
};

const Registration& of(const ort::CustomOp* custom) { return *static_cast<const Registration*>(custom); }

template <typename Made>
ort::Status* create(const ort::CustomOp* custom, const ort::Api* api, const ort::KernelInfo* info, void** node) {
  return guard(api, [&] { *node = std::make_unique<Made>(*of(custom).op, of(custom).type, api, info).release(); });
}

template <typename Made>
ort::Status* compute(void* node, ort::KernelContext* context) {
  const Made& self = *static_cast<const Made*>(node);
  return guard(self.api(), [&] { self.compute(context); });
}

// What is done by the node's own class.
template <typename Made>
void set_node(ort::CustomOp& made) {
  made.CreateKernelV2 = create<Made>;
  made.KernelComputeV2 = compute<Made>;
  made.KernelDestroy = [](void* node) { delete static_cast<Made*>(node); };
}

void set_provider(ort::CustomOp& made, bool cuda) {
  if (cuda) {
    made.GetExecutionProviderType = [](const ort::CustomOp*) { return "CUDAExecutionProvider"; };
    set_node<cuda::Node>(made);
  } else {
    made.GetExecutionProviderType = [](const ort::CustomOp*) { return "CPUExecutionProvider"; };
    set_node<Node>(made);
  }
}

ort::ElementType input_type(const ort::CustomOp* custom, size_t index) {
  switch (index) {
    case kB:
    case kZeroPoints: return ort::ElementType::kUint8;
    case kU: return of(custom).u;
    case kV: return of(custom).v;
    default: return of(custom).type;
  }
}

Registration make(const Operator& op, ort::ElementType type, ort::ElementType u, ort::ElementType v) {
  Registration made{};
  made.op = &op;
  made.type = type;
  made.u = u;
  made.v = v;
  made.version = ort::kCustomOpVersion;
  made.GetName = [](const ort::CustomOp* self) { return of(self).op->name; };
  made.GetInputType = input_type;
  made.GetInputTypeCount = [](const ort::CustomOp* self) { return of(self).op->input_count(); };
  made.GetOutputType = [](const ort::CustomOp* self, size_t) { return of(self).type; };
  made.GetOutputTypeCount = [](const ort::CustomOp*) { return size_t{1}; };
  made.GetInputCharacteristic = [](const ort::CustomOp*, size_t index) {
    return index == kBias ? ort::Characteristic::kOptional : ort::Characteristic::kRequired;
  };
  made.GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::Characteristic::kRequired; };
  made.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return ort::MemoryType::kDefault; };
  const auto none = [](const ort::CustomOp*) { return 0; };
  made.GetVariadicInputMinArity = none;
  made.GetVariadicInputHomogeneity = none;
  made.GetVariadicOutputMinArity = none;
  made.GetVariadicOutputHomogeneity = none;
  made.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  made.GetEndVersion = [](const ort::CustomOp*) { return INT_MAX; };
  return made;
}

std::vector<Registration> make_types(const Operator& op) {
  std::vector<Registration> made;
  for (const ort::ElementType type : kFloatTypes) {
    made.push_back(make(op, type, type, type));
    if (!op.lorc) continue;
    made.push_back(make(op, type, ort::ElementType::kInt8, ort::ElementType::kInt8));
    made.push_back(make(op, type, ort::ElementType::kInt8, type));
    made.push_back(make(op, type, type, ort::ElementType::kInt8));
  }
  return made;
}

// Of the CPU, then of CUDA.
std::vector<Registration> make_all(const Operator& op) {
  std::vector<Registration> made;
  for (const bool cuda : {false, true}) {
    for (Registration each : make_types(op)) {
      set_provider(each, cuda);
      made.push_back(each);
    }
  }
  return made;
}

}  // namespace

std::vector<const ort::CustomOp*> registrations(size_t op, bool cuda) {
  static const auto& all = *new std::vector<std::vector<Registration>>([] {
    std::vector<std::vector<Registration>> made;
    for (const Operator& each : kOperators) made.push_back(make_all(each));
    return made;
  }());
  const size_t count = all[op].size() / (cuda ? 1 : 2);
  std::vector<const ort::CustomOp*> found;
  for (size_t index = 0; index < count; ++index) found.push_back(&all[op][index]);
  return found;
}

}  // namespace zq2onnx
