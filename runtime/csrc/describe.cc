// What the library is and would do, as text: for `zq2onnx runtime info` and for tests.

#include <algorithm>
#include <cstring>
#include <string>

#include "cpu.h"
#include "error.h"
#include "kernels/product.h"
#include "select.h"

namespace zq2onnx {
namespace {

Wish given(const char* value, const char* name, const char* variable) {
  return value ? Wish{value, name} : environment(variable);
}

std::string describe(const char* ops, const char* provider) {
  std::string text = "api\t" + std::to_string(ort::kApiVersion) + "\ncpu\t" + cpu_features() + "\n";
  text += "kernels\t" + usable_variants() + "\n";
  const Selection selection =
      select_operators({given(ops, "ops", "ZQ2ONNX_OPS"), given(provider, "provider", "ZQ2ONNX_PROVIDER")});
  for (size_t index = 0; index < kOperators.size(); ++index) {
    const Verdict& verdict = selection.verdicts[index];
    text += std::string("operator\t") + kOperators[index].name + "\t" + (verdict.registered ? "yes" : "no") +
            "\t" + verdict.why + "\n";
  }
  return text;
}

}  // namespace
}  // namespace zq2onnx

// Writes lines of tab-separated fields to `buffer`, cut to `size` bytes with a terminating zero; returns the
// bytes that all of it needs. Null for `ops` or `provider`: the environment decides.
extern "C" __attribute__((visibility("default"))) size_t zq2onnx_describe(const char* ops, const char* provider,
                                                                           char* buffer, size_t size) {
  std::string text;
  try {
    text = zq2onnx::describe(ops, provider);
  } catch (const std::exception& error) {
    text = std::string("error\t") + error.what() + "\n";
  }
  if (buffer && size > 0) {
    const size_t length = std::min(size - 1, text.size());
    std::memcpy(buffer, text.data(), length);
    buffer[length] = '\0';
  }
  return text.size() + 1;
}
