#include "inputs.h"

#include <algorithm>

namespace zq2onnx {
namespace {

std::string node_name(const ort::Api* api, const ort::KernelInfo* info) {
  size_t size = 0;  // with the terminating zero
  check(api->call<ort::KernelInfoGetNodeName>(info, static_cast<char*>(nullptr), &size));
  std::string name(size, '\0');
  check(api->call<ort::KernelInfoGetNodeName>(info, name.data(), &size));
  name.resize(size ? size - 1 : 0);
  return name;
}

int64_t attribute(const ort::Api* api, const ort::KernelInfo* info, const char* name) {
  int64_t value = 0;
  if (ort::Status* status = api->call<ort::KernelInfoGetAttributeInt64>(info, name, &value)) {
    api->call<ort::ReleaseStatus>(status);
    throw Error(std::string("attribute ") + name + " is absent or no integer", "an integer");
  }
  return value;
}

Geometry read_geometry(const Operator& op, const ort::Api* api, const ort::KernelInfo* info) {
  Attributes attributes{};
  attributes.k = attribute(api, info, "K");
  attributes.n = attribute(api, info, "N");
  attributes.block_size = attribute(api, info, "block_size");
  attributes.scale_repeat = attribute(api, info, "scale_repeat");
  attributes.zero_point_repeat = attribute(api, info, "zero_point_repeat");
  if (op.storage() == Storage::kHalfBytes) attributes.stored_rows = attribute(api, info, "stored_rows");
  return make_geometry(op, attributes);
}

Tensors read_constants(const Operator& op, const ort::Api* api, const ort::KernelInfo* info) {
  Tensors tensors;
  for (size_t index = kB; index < op.input_count(); ++index) {
    int constant = 0;
    const ort::Value* value = nullptr;
    // Fails for an input that a node has left out at the end.
    if (ort::Status* status = api->call<ort::KernelInfoGetConstantInput>(info, index, &constant, &value)) {
      api->call<ort::ReleaseStatus>(status);
      continue;
    }
    if (constant && value) tensors[index] = read_tensor(api, value);
  }
  return tensors;
}

Tensors read_others(const NodeInputs& node, const ort::KernelContext* context) {
  const ort::Api* api = node.api();
  Tensors tensors;
  size_t count = 0;
  check(api->call<ort::KernelContextGetInputCount>(context, &count));
  for (size_t index = 0; index < count && index < node.requirements().op->input_count(); ++index) {
    if (node.constants()[index]) continue;
    const ort::Value* value = nullptr;
    check(api->call<ort::KernelContextGetInput>(context, index, &value));
    if (value) tensors[index] = read_tensor(api, value);
  }
  return tensors;
}

}  // namespace

NodeInputs::NodeInputs(const Operator& op, ort::ElementType type, const ort::Api* api, const ort::KernelInfo* info)
    : api_(api), label_(std::string(op.name) + " '" + node_name(api, info) + "'"), requirements_{&op, type, {}} {
  naming([&] {
    requirements_.geometry = read_geometry(op, api, info);
    constants_ = read_constants(op, api, info);
    requirements_.check_constants(refer_to(constants_));
  });
}

RunInputs::RunInputs(const NodeInputs& node, const ort::KernelContext* context)
    : node_(node), own_(read_others(node, context)), tensors_(refer_to(own_)) {
  bool computed = false;  // whether any input but A is not constant
  for (size_t index = kB; index < kInputs; ++index) {
    computed |= tensors_[index] != nullptr;
    if (node.constants()[index]) tensors_[index] = &*node.constants()[index];
  }
  const Requirements& requirements = node.requirements();
  requirements.check_presence(tensors_);
  if (computed) requirements.check_constants(tensors_);
  tokens_ = token_count(tensors_[kA]->shape, std::max(requirements.geometry.n, requirements.geometry.k));
}

void* RunInputs::make_output(ort::KernelContext* context) const {
  const ort::Api* api = node_.api();
  Shape shape = tensors_[kA]->shape;
  shape.back() = node_.requirements().geometry.n;
  ort::Value* output = nullptr;
  void* data = nullptr;
  check(api->call<ort::KernelContextGetOutput>(context, size_t{0}, static_cast<const int64_t*>(shape.data()),
                                               shape.size(), &output));
  check(api->call<ort::GetTensorMutableData>(output, &data));
  return data;
}

}  // namespace zq2onnx
