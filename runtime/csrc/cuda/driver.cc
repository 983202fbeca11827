#include "driver.h"

#include <dlfcn.h>

#include "../error.h"

namespace zq2onnx::cuda {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";
constexpr int kDependentLaunches = 12030;  // the version whose graphs have edges of their kind

class Symbols {
 public:
  explicit Symbols(void* library) : library_(library) {}

  template <typename Function>
  void find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    if (!function && missing_.empty()) missing_ = name;
  }
  const std::string& missing() const { return missing_; }

 private:
  void* library_;
  std::string missing_;
};

// The name of the first function that is missing; "" where there is none.
std::string find_functions(void* library, Driver& driver) {
  Symbols symbols(library);
#define ZQ2ONNX_FIND(name) symbols.find(driver.name, #name)
  ZQ2ONNX_FIND(cuInit);
  ZQ2ONNX_FIND(cuDriverGetVersion);
  ZQ2ONNX_FIND(cuGetErrorString);
  ZQ2ONNX_FIND(cuDeviceGetCount);
  ZQ2ONNX_FIND(cuDeviceGet);
  ZQ2ONNX_FIND(cuDeviceGetName);
  ZQ2ONNX_FIND(cuDeviceGetAttribute);
  ZQ2ONNX_FIND(cuDevicePrimaryCtxRetain);
  ZQ2ONNX_FIND(cuDevicePrimaryCtxRelease_v2);
  ZQ2ONNX_FIND(cuCtxGetCurrent);
  ZQ2ONNX_FIND(cuCtxPushCurrent_v2);
  ZQ2ONNX_FIND(cuCtxPopCurrent_v2);
  ZQ2ONNX_FIND(cuModuleLoadData);
  ZQ2ONNX_FIND(cuModuleUnload);
  ZQ2ONNX_FIND(cuModuleGetFunction);
  ZQ2ONNX_FIND(cuThreadExchangeStreamCaptureMode);
  ZQ2ONNX_FIND(cuFuncSetCacheConfig);
  ZQ2ONNX_FIND(cuFuncSetAttribute);
  ZQ2ONNX_FIND(cuLaunchKernelEx);
#undef ZQ2ONNX_FIND
  const std::string missing = symbols.missing();
  symbols.find(driver.cuFuncLoad, "cuFuncLoad");
  return missing;
}

std::string told(const Driver& driver, Result result) {
  const char* text = nullptr;
  if (driver.cuGetErrorString(result, &text) || !text) text = "unknown error";
  return std::string(text) + " (" + std::to_string(result) + ")";
}

// Never closed: sessions end when they please.
FoundDriver look_for_driver() {
  FoundDriver found;
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    found.why_not = std::string("no ") + kLibrary + " can be opened";
    return found;
  }
  static Driver driver;
  const std::string missing = find_functions(library, driver);
  if (driver.cuDriverGetVersion) driver.cuDriverGetVersion(&found.version);
  driver.dependent_launches = found.version >= kDependentLaunches;
  if (driver.cuDriverGetVersion && found.version < kLeastDriver) {
    found.why_not = "the driver is of CUDA " + version_text(found.version) + "; required: " + version_text(kLeastDriver) +
                    " or later";
  } else if (!missing.empty()) {
    found.why_not = std::string(kLibrary) + " has no " + missing;
  } else if (const Result result = driver.cuInit(0)) {
    found.why_not = "cuInit: " + told(driver, result);
  } else {
    found.driver = &driver;
  }
  return found;
}

}  // namespace

void Driver::check(Result result, const char* call) const {
  if (result) throw Error(std::string(call) + ": " + told(*this, result), "");
}

const FoundDriver& find_driver() {
  static const auto& found = *new FoundDriver(look_for_driver());
  return found;
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace zq2onnx::cuda
