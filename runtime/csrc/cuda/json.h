// JSON as the kernel bundle's manifest uses it: read whole, into values.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace zq2onnx::cuda {

class Json {
 public:
  // Throws Error where the text is no JSON, is nested deeper than a manifest is, or holds a number that is no
  // 64-bit integer.
  static Json parse(std::string_view text);

  // Each throws Error, with `what` in it, where the value is of another kind or out of bounds.
  const std::string& text(const char* what) const;
  bool truth(const char* what) const;
  int64_t integer(const char* what, int64_t least, int64_t most) const;
  const std::vector<Json>& items(const char* what) const;
  const Json& at(const char* key) const;  // of an object

 private:
  friend class JsonReader;
  enum class Kind { kNull, kTruth, kInteger, kText, kArray, kObject };

  [[noreturn]] static void fail(const std::string& what, const char* required);

  Kind kind_ = Kind::kNull;
  int64_t integer_ = 0;  // of a truth: 0 or 1
  std::string text_;
  std::vector<Json> items_;         // of an array, or the values of an object
  std::vector<std::string> keys_;  // of an object
};

}  // namespace zq2onnx::cuda
