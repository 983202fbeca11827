// What the library is and would do, as text: for `zq2onnx runtime info` and for tests.

#include <algorithm>
#include <cstring>
#include <string>

#include "cpu.h"
#include "cuda/support.h"
#include "error.h"
#include "kernels/product.h"
#include "select.h"

namespace zq2onnx {
namespace {

Wish given(const char* value, const char* name, const char* variable) {
  return value ? Wish{value, name} : environment(variable);
}

// A field of a line: what would end it, in a folder's name say, is a blank.
std::string field(std::string text) {
  std::replace_if(text.begin(), text.end(), [](unsigned char c) { return c < ' '; }, ' ');
  return text;
}

// Driver, GPUs and kernels.
std::string describe_cuda() {
  const cuda::FoundDriver& driver = cuda::find_driver();
  const cuda::FoundDevices& found = cuda::find_devices();
  const cuda::FoundBundle compiled = cuda::look_for_bundle();
  std::string text = "driver\t" + (driver.version ? cuda::version_text(driver.version) : "") + "\t" +
                     (found.devices.empty() ? found.why_none : "") + "\n";
  for (const cuda::DeviceFacts& device : found.devices) {
    text += "gpu\t" + field(device.name) + "\tsm_" + std::to_string(device.capability) + "\n";
  }
  return text + "bundle\t" + field(cuda::bundle_folder()) + "\t" + field(compiled.why_none) + "\n";
}

std::string describe(const char* ops, const char* provider) {
  std::string text = "api\t" + std::to_string(ort::kApiVersion) + "\ncpu\t" + cpu_features() + "\n";
  text += "kernels\t" + usable_variants() + "\n";
  const Wishes wishes{given(ops, "ops", "ZQ2ONNX_OPS"), given(provider, "provider", "ZQ2ONNX_PROVIDER")};
  const Selection selection = select_operators(wishes, true);
  text += std::string("provider\t") + (selection.cuda ? "cuda" : "cpu") + "\n";
  if (selection.cuda) text += describe_cuda();
  for (size_t index = 0; index < kOperators.size(); ++index) {
    const Verdict& verdict = selection.verdicts[index];
    text += std::string("operator\t") + kOperators[index].name + "\t" + (verdict.registered ? "yes" : "no") +
            "\t" + field(verdict.why) + "\n";
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
