// A stand-in for libcuda that has no GPU: it keeps account of contexts, modules and launches as the driver would, refuses
// what the driver would refuse, and tells of every call on standard output. A module's image is text:
//
//   NAME SYMBOL SIZE SIZE ..      the bytes of each of the function's parameters
//
//   STAND_IN_GPUS      name:capability, comma-separated; default "Stand-in:90"
//   STAND_IN_VERSION   of CUDA; default 12040
//   STAND_IN_FAIL      call=code, comma-separated: what that call returns
//   STAND_IN_CURRENT   set: threads begin with the first device's context

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "../../../runtime/csrc/cuda/driver.h"

namespace zq2onnx::cuda {

struct ContextHandle {
  int device;
  int held;
};
struct FunctionHandle {
  std::string name;
  std::vector<size_t> sizes;
  unsigned shared_allowed;
};
struct ModuleHandle {
  std::string symbol;
  FunctionHandle function;
  Context context;
};

}  // namespace zq2onnx::cuda

using namespace zq2onnx::cuda;

namespace {

constexpr Result kInvalidValue = 1, kNoBinary = 209, kInvalidImage = 200, kInvalidContext = 201, kNotFound = 500;

std::string variable(const char* name, const char* unset) {
  const char* value = std::getenv(name);
  return value ? value : unset;
}

// Pairs as `a:1,b:2`.
std::vector<std::pair<std::string, int>> pairs(const std::string& text, char between) {
  std::vector<std::pair<std::string, int>> found;
  std::istringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    const size_t at = item.rfind(between);
    found.push_back({item.substr(0, at), std::atoi(item.c_str() + at + 1)});
  }
  return found;
}

const std::vector<std::pair<std::string, int>>& gpus() {
  static const auto found = pairs(variable("STAND_IN_GPUS", "Stand-in:90"), ':');
  return found;
}

// What is to be returned, if the call is to fail.
Result failure(const char* call) {
  static const auto wanted = pairs(variable("STAND_IN_FAIL", ""), '=');
  for (const auto& [name, code] : wanted) {
    if (name == call) return code;
  }
  return 0;
}

std::vector<ContextHandle>& contexts() {
  static std::vector<ContextHandle> made = [] {
    std::vector<ContextHandle> all;
    for (int device = 0; device < static_cast<int>(gpus().size()); ++device) all.push_back({device, 0});
    return all;
  }();
  return made;
}

std::vector<Context>& current() {
  thread_local std::vector<Context> stack = std::getenv("STAND_IN_CURRENT") && !contexts().empty()
                                                ? std::vector<Context>{&contexts()[0]}
                                                : std::vector<Context>{};
  return stack;
}

bool is_device(int device) { return 0 <= device && device < static_cast<int>(gpus().size()); }

}  // namespace

#define BEGIN(call) \
  if (const Result failed = failure(#call)) return failed

extern "C" {

Result cuInit(unsigned) {
  BEGIN(cuInit);
  return 0;
}
Result cuDriverGetVersion(int* version) {
  *version = std::atoi(variable("STAND_IN_VERSION", "12040").c_str());
  return 0;
}
Result cuGetErrorString(Result result, const char** text) {
  *text = result == kNoBinary ? "no kernel image is available for execution on the device" : nullptr;
  return *text ? 0 : kInvalidValue;
}
Result cuDeviceGetCount(int* count) {
  BEGIN(cuDeviceGetCount);
  *count = static_cast<int>(gpus().size());
  return 0;
}
Result cuDeviceGet(DeviceHandle* handle, int ordinal) {
  BEGIN(cuDeviceGet);
  if (!is_device(ordinal)) return 101;
  *handle = ordinal;
  return 0;
}
Result cuDeviceGetName(char* name, int size, DeviceHandle device) {
  BEGIN(cuDeviceGetName);
  std::snprintf(name, static_cast<size_t>(size), "%s", gpus()[static_cast<size_t>(device)].first.c_str());
  return 0;
}
Result cuDeviceGetAttribute(int* value, DeviceAttribute attribute, DeviceHandle device) {
  BEGIN(cuDeviceGetAttribute);
  const int capability = gpus()[static_cast<size_t>(device)].second;
  *value = attribute == DeviceAttribute::kMajor ? capability / 10 : capability % 10;
  return 0;
}
Result cuDevicePrimaryCtxRetain(Context* context, DeviceHandle device) {
  BEGIN(cuDevicePrimaryCtxRetain);
  *context = &contexts()[static_cast<size_t>(device)];
  ++(*context)->held;
  std::printf("retain\t%d\n", device);
  return 0;
}
Result cuDevicePrimaryCtxRelease_v2(DeviceHandle device) {
  --contexts()[static_cast<size_t>(device)].held;
  std::printf("release\t%d\n", device);
  return 0;
}
Result cuCtxGetCurrent(Context* context) {
  BEGIN(cuCtxGetCurrent);
  *context = current().empty() ? nullptr : current().back();
  return 0;
}
Result cuCtxPushCurrent_v2(Context context) {
  BEGIN(cuCtxPushCurrent);
  if (!context->held) return kInvalidContext;
  current().push_back(context);
  std::printf("push\t%d\n", context->device);
  return 0;
}
Result cuCtxPopCurrent_v2(Context* context) {
  if (current().empty()) return kInvalidContext;
  *context = current().back();
  current().pop_back();
  std::printf("pop\t%d\n", (*context)->device);
  return 0;
}
Result cuModuleLoadData(Module* module, const void* image) {
  BEGIN(cuModuleLoadData);
  if (current().empty() || !current().back()->held) return kInvalidContext;
  std::istringstream text(static_cast<const char*>(image));
  auto* made = new ModuleHandle{{}, {}, current().back()};
  text >> made->function.name >> made->symbol;
  for (size_t size; text >> size;) made->function.sizes.push_back(size);
  if (made->function.sizes.empty()) {
    delete made;
    return kInvalidImage;
  }
  *module = made;
  std::printf("load\t%s\n", made->function.name.c_str());
  return 0;
}
Result cuModuleUnload(Module module) {
  BEGIN(cuModuleUnload);
  if (current().empty() || current().back() != module->context) return kInvalidContext;
  std::printf("unload\t%s\n", module->function.name.c_str());
  delete module;
  return 0;
}
Result cuModuleGetFunction(Function* function, Module module, const char* symbol) {
  BEGIN(cuModuleGetFunction);
  if (module->symbol != symbol) return kNotFound;
  *function = &module->function;
  return 0;
}
Result cuThreadExchangeStreamCaptureMode(CaptureMode* mode) {
  thread_local CaptureMode current{};
  std::swap(current, *mode);
  return 0;
}
Result cuFuncSetCacheConfig(Function, CacheConfig) { return failure("cuFuncSetCacheConfig"); }
Result cuFuncSetAttribute(Function function, FunctionAttribute, int bytes) {
  BEGIN(cuFuncSetAttribute);
  function->shared_allowed = static_cast<unsigned>(bytes);
  return 0;
}

#ifndef OLD_DRIVER
Result cuFuncLoad(Function) { return failure("cuFuncLoad"); }
Result cuLaunchKernelEx(const LaunchConfig* config, Function function, void** parameters, void**) {
  BEGIN(cuLaunchKernelEx);
  if (current().empty()) return kInvalidContext;
  if (config->shared > (48u << 10) && config->shared > function->shared_allowed) return kInvalidValue;
  std::ostringstream line;  // printed at once: threads may print too
  line << "launch\t" << function->name;
  for (const auto& sizes : {config->grid, config->block}) line << '\t' << sizes[0] << ' ' << sizes[1] << ' ' << sizes[2];
  line << '\t' << config->shared << '\t' << static_cast<void*>(config->stream) << '\t';
  for (unsigned index = 0; index < config->attribute_count; ++index) {
    line << config->attributes[index].id << '=' << config->attributes[index].value[0] << ' ';
  }
  line << '\t' << std::hex;
  for (size_t index = 0; index < function->sizes.size(); ++index) {
    uint64_t value = 0;
    std::memcpy(&value, parameters[index], function->sizes[index]);
    line << value << ' ';
  }
  std::printf("%s\n", line.str().c_str());
  return 0;
}
#endif

}  // extern "C"
