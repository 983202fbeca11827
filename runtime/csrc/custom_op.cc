#include "custom_op.h"

#include <climits>
#include <memory>
#include <vector>

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

ort::Status* create(const ort::CustomOp* custom, const ort::Api* api, const ort::KernelInfo* info, void** node) {
  return guard(api, [&] { *node = std::make_unique<Node>(*of(custom).op, of(custom).type, api, info).release(); });
}

ort::Status* compute(void* node, ort::KernelContext* context) {
  const Node& self = *static_cast<const Node*>(node);
  return guard(self.api(), [&] { self.compute(context); });
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
  made.version = ort::kApiVersion;
  made.GetName = [](const ort::CustomOp* self) { return of(self).op->name; };
  made.GetExecutionProviderType = [](const ort::CustomOp*) { return "CPUExecutionProvider"; };
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
  made.CreateKernelV2 = create;
  made.KernelComputeV2 = compute;
  made.KernelDestroy = [](void* node) { delete static_cast<Node*>(node); };
  made.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  made.GetEndVersion = [](const ort::CustomOp*) { return INT_MAX; };
  return made;
}

std::vector<Registration> make_all(const Operator& op) {
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

}  // namespace

std::vector<const ort::CustomOp*> registrations(size_t op) {
  static const auto& all = *new std::vector<std::vector<Registration>>([] {
    std::vector<std::vector<Registration>> made;
    for (const Operator& each : kOperators) made.push_back(make_all(each));
    return made;
  }());
  std::vector<const ort::CustomOp*> found;
  for (const Registration& each : all[op]) found.push_back(&each);
  return found;
}

}  // namespace zq2onnx
