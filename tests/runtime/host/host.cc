// A host of the operator library that is not ONNX Runtime: runs single nodes, and compares them with what is expected.
//
//   host            what the library says of the processor and of its kernels
//   host CASES      the same, then every case by every set of kernels that the processor can run
//   host CASES 64   there are 64 bytes beyond every array: qemu-x86_64 also reads what a masked load leaves out
//
// For processors that ONNX Runtime is not at hand for, under an emulator. `test_hosted_kernels.py` writes the cases.

#include <cmath>
#include <sstream>

#include "../../../runtime/csrc/floats.h"
#include "cases.h"

using namespace zq2onnx::ort;

extern "C" Status* RegisterCustomOps(SessionOptions*, const ApiBase*);
extern "C" size_t zq2onnx_describe(const char* ops, const char* provider, char* buffer, size_t size);

namespace {

void compare(const KernelInfo& node, const Value& output) {
  if (output.count() != node.expected.size()) fail(node.op + ": wrong shape");
  for (size_t at = 0; at < node.expected.size(); ++at) {
    float found;
    zq2onnx::with_type(output.info.type, [&](auto value) {
      std::memcpy(&value, output.memory->data() + at * sizeof value, sizeof value);
      found = zq2onnx::to_float(value);
    });
    if (std::fabs(found - node.expected[at]) <= node.allowed[at]) continue;
    std::ostringstream message;
    message << node.op << " with";
    for (const auto& [name, value] : node.attributes) message << ' ' << name << '=' << value;
    message << ": element " << at << " is " << found << ", expected " << node.expected[at] << " +- "
            << node.allowed[at];
    fail(message.str());
  }
}

void run(const SessionOptions& options, const KernelInfo& node) {
  for (const CustomOp* op : options.domain->ops) {
    if (!fits(op, node)) continue;
    void* kernel = nullptr;
    KernelContext context{&node, {}};
    check(op->CreateKernelV2(op, api(), &node, &kernel));
    check(op->KernelComputeV2(kernel, &context));
    op->KernelDestroy(kernel);
    return compare(node, context.output);
  }
  fail(node.op + ": nothing is registered for such inputs");
}

// Prints what the library says, and returns the names of the kernels.
std::istringstream describe() {
  std::string text(zq2onnx_describe("none", "cpu", nullptr, 0), '\0');
  zq2onnx_describe("none", "cpu", text.data(), text.size());
  std::istringstream lines(text), kernels;
  for (std::string key, rest; std::getline(lines, key, '\t') && std::getline(lines, rest);) {
    if (key == "cpu" || key == "kernels") std::printf("%s: %s\n", key.c_str(), rest.c_str());
    if (key == "kernels") kernels.str(rest);
  }
  return kernels;
}

}  // namespace

int main(int count, char** arguments) {
  std::istringstream kernels = describe();
  if (count < 2) return 0;
  if (count > 2) Memory::spare = static_cast<size_t>(std::atoi(arguments[2]));
  const ApiBase base{[](uint32_t) noexcept { return api(); }, []() noexcept { return "none"; }};
  SessionOptions options;
  options.entries = {{"ai.zq2onnx.ops", "all"}, {"ai.zq2onnx.provider", "cpu"}};
  check(RegisterCustomOps(&options, &base));
  for (std::string kernel; kernels >> kernel;) {
    setenv("ZQ2ONNX_KERNEL", kernel.c_str(), 1);
    Reader reader(arguments[1]);
    int cases = 0;
    for (; !reader.done(); ++cases) run(options, reader.node());
    std::printf("%s: %d cases passed\n", kernel.c_str(), cases);
    std::fflush(stdout);
  }
}
