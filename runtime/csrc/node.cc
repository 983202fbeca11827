#include "node.h"

#include <algorithm>

#include "error.h"

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

}  // namespace

Node::Node(const Operator& op, ort::ElementType type, const ort::Api* api, const ort::KernelInfo* info)
    : api_(api), requirements_{&op, type, {}} {
  label_ = std::string(op.name) + " '" + node_name(api, info) + "'";
  try {
    requirements_.geometry = read_geometry(op, api, info);
    constants_ = read_constants(op, api, info);
    requirements_.check_constants(refer_to(constants_));
  } catch (const Error& error) {
    throw Error(label_ + ": " + error.what(), "");
  }
  functions_ = {find_widen(type), find_narrow(type),
                find_kernel(op.storage(), op.activation, requirements_.geometry.block)};
}

Tensors Node::read_inputs(const ort::KernelContext* context) const {
  Tensors tensors;
  size_t count = 0;
  check(api_->call<ort::KernelContextGetInputCount>(context, &count));
  for (size_t index = 0; index < count && index < requirements_.op->input_count(); ++index) {
    if (constants_[index]) continue;
    const ort::Value* value = nullptr;
    check(api_->call<ort::KernelContextGetInput>(context, index, &value));
    if (value) tensors[index] = read_tensor(api_, value);
  }
  return tensors;
}

void Node::compute(ort::KernelContext* context) const {
  try {
    const Tensors inputs = read_inputs(context);
    TensorRefs tensors = refer_to(inputs);
    bool computed = false;  // whether any input but A is not constant
    for (size_t index = kB; index < kInputs; ++index) {
      computed |= tensors[index] != nullptr;
      if (constants_[index]) tensors[index] = &*constants_[index];
    }
    requirements_.check_presence(tensors);
    if (computed) requirements_.check_constants(tensors);
    Shape shape = tensors[kA]->shape;
    const int64_t tokens = token_count(shape, std::max(requirements_.geometry.n, requirements_.geometry.k));
    shape.back() = requirements_.geometry.n;
    ort::Value* output = nullptr;
    void* y = nullptr;
    check(api_->call<ort::KernelContextGetOutput>(context, size_t{0}, static_cast<const int64_t*>(shape.data()),
                                                  shape.size(), &output));
    check(api_->call<ort::GetTensorMutableData>(output, &y));
    if (tokens == 0) return;
    Run run(requirements_, tensors, tokens, y, functions_);
    run.start(api_, context);
  } catch (const Error& error) {
    throw Error(label_ + ": " + error.what(), "");
  }
}

}  // namespace zq2onnx
