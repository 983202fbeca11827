// The cases that a test has written, and which registration of an operator takes one.
#pragma once

#include <fstream>
#include <iterator>

#include "onnx_runtime.h"

namespace zq2onnx::ort {

// Reads nodes, in the order of KernelInfo's fields.
class Reader {
 public:
  explicit Reader(const char* path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    if (bytes_.empty()) fail(std::string(path) + " holds no cases");
  }
  bool done() const { return at_ == bytes_.size(); }

  KernelInfo node() {
    KernelInfo node;
    node.op = text();
    for (int64_t left = number(); left > 0; --left) {
      const std::string name = text();
      node.attributes[name] = number();
    }
    for (int64_t left = number(); left > 0; --left) node.inputs.push_back(value());
    node.expected = numbers();
    node.allowed = numbers();
    return node;
  }

 private:
  void copy(void* to, size_t size) {
    if (bytes_.size() - at_ < size) fail("the cases end too soon");
    std::memcpy(to, bytes_.data() + at_, size);
    at_ += size;
  }
  int64_t number() {
    int64_t value;
    copy(&value, sizeof value);
    return value;
  }
  std::string text() {
    std::string value(static_cast<size_t>(number()), '\0');
    copy(value.data(), value.size());
    return value;
  }
  std::vector<double> numbers() {
    std::vector<double> values(static_cast<size_t>(number()));
    copy(values.data(), values.size() * sizeof(double));
    return values;
  }
  std::unique_ptr<Value> value() {
    auto value = std::make_unique<Value>();
    value->info.type = static_cast<ElementType>(number());
    if (value->info.type == ElementType::kUndefined) return nullptr;
    for (int64_t axes = number(); axes > 0; --axes) value->info.shape.push_back(number());
    const size_t bytes = value->count() * size_of(value->info.type);
    value->memory = std::make_unique<Memory>(bytes);
    copy(value->memory->data(), bytes);
    return value;
  }

  std::vector<char> bytes_;
  size_t at_ = 0;
};

inline bool fits(const CustomOp* op, const KernelInfo& node) {
  if (node.op != op->GetName(op) || node.inputs.size() != op->GetInputTypeCount(op)) return false;
  for (size_t index = 0; index < node.inputs.size(); ++index) {
    if (node.inputs[index] && node.inputs[index]->info.type != op->GetInputType(op, index)) return false;
  }
  return true;
}

}  // namespace zq2onnx::ort
