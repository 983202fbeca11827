#include "scratch.h"

#include <new>
#include <utility>

namespace zq2onnx {
namespace {

constexpr std::align_val_t kAlignment{64};

}  // namespace

void Scratch::Free::operator()(std::byte* memory) const { ::operator delete(memory, kAlignment); }

Scratch::Buffer& Scratch::kept() {
  static thread_local Buffer buffer;
  return buffer;
}

Scratch::Scratch(size_t bytes) : buffer_(std::exchange(kept(), Buffer{})) {
  if (buffer_.size >= bytes) return;
  buffer_ = Buffer{};  // before more is asked for
  buffer_.memory.reset(static_cast<std::byte*>(::operator new(bytes, kAlignment)));
  buffer_.size = bytes;
}

Scratch::~Scratch() {
  if (buffer_.size > kept().size) kept() = std::move(buffer_);
}

}  // namespace zq2onnx
