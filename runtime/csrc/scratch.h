// Memory for one run of one node.
#pragma once

#include <cstddef>
#include <memory>

namespace zq2onnx {

// Bytes aligned to 64, not initialized. A thread keeps its last for its next run: taking fresh pages from the
// system at every run costs more than filling them. Throws std::bad_alloc.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // The next part, aligned to 64 too. The parts together must not exceed `bytes`, each rounded up to 64.
  template <typename T>
  T* take(size_t count) {
    T* part = reinterpret_cast<T*>(buffer_.memory.get() + taken_);
    taken_ += rounded(count * sizeof(T));
    return part;
  }

  static constexpr size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  struct Buffer {
    std::unique_ptr<std::byte, Free> memory;
    size_t size = 0;
  };
  static Buffer& kept();

  Buffer buffer_;
  size_t taken_ = 0;
};

}  // namespace zq2onnx
