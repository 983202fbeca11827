#include "device.h"

#include "../error.h"

namespace zq2onnx::cuda {
namespace {

constexpr unsigned kUnaskedShared = 48 << 10;  // bytes that a block may have without the attribute

const Driver& require_driver() {
  const FoundDriver& found = find_driver();
  if (!found.driver) throw Error(found.why_not, "");
  return *found.driver;
}

int read_capability(const Driver& driver, DeviceHandle handle) {
  int major = 0, minor = 0;
  driver.check(driver.cuDeviceGetAttribute(&major, DeviceAttribute::kMajor, handle), "cuDeviceGetAttribute");
  driver.check(driver.cuDeviceGetAttribute(&minor, DeviceAttribute::kMinor, handle), "cuDeviceGetAttribute");
  return 10 * major + minor;
}

DeviceFacts read_facts(const Driver& driver, int ordinal) {
  DeviceHandle handle = 0;
  char name[256] = "";
  driver.check(driver.cuDeviceGet(&handle, ordinal), "cuDeviceGet");
  driver.check(driver.cuDeviceGetName(name, sizeof name - 1, handle), "cuDeviceGetName");
  return {name, read_capability(driver, handle)};
}

FoundDevices look_for_devices() {
  FoundDevices found;
  try {
    const Driver& driver = require_driver();
    int count = 0;
    driver.check(driver.cuDeviceGetCount(&count), "cuDeviceGetCount");
    for (int ordinal = 0; ordinal < count; ++ordinal) found.devices.push_back(read_facts(driver, ordinal));
    if (count == 0) found.why_none = "the driver sees no GPU";
  } catch (const Error& error) {
    found = {{}, error.what()};
  }
  return found;
}

// While it lives, what the thread calls does not break a graph that another one captures.
class Relaxed {
 public:
  explicit Relaxed(const Driver& driver) : driver_(driver) { driver_.cuThreadExchangeStreamCaptureMode(&mode_); }
  ~Relaxed() { driver_.cuThreadExchangeStreamCaptureMode(&mode_); }
  Relaxed(const Relaxed&) = delete;
  Relaxed& operator=(const Relaxed&) = delete;

 private:
  const Driver& driver_;
  CaptureMode mode_ = CaptureMode::kRelaxed;  // then the one that was before
};

}  // namespace

const FoundDevices& find_devices() {
  static const auto& found = *new FoundDevices(look_for_devices());
  return found;
}

std::shared_ptr<Device> Device::open(int ordinal) {
  static std::mutex mutex;
  static auto& open = *new std::map<int, std::weak_ptr<Device>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Device> device = open[ordinal].lock();
  if (!device) open[ordinal] = device = std::make_shared<Device>(ordinal);
  return device;
}

Device::Device(int ordinal) : driver_(require_driver()) {
  driver_.check(driver_.cuDeviceGet(&handle_, ordinal), "cuDeviceGet");
  capability_ = read_capability(driver_, handle_);
  driver_.check(driver_.cuDevicePrimaryCtxRetain(&context_, handle_), "cuDevicePrimaryCtxRetain");
}

// What fails when things end, as at the end of the process, where the driver may be gone before us, is of no concern.
Device::~Device() { driver_.cuDevicePrimaryCtxRelease_v2(handle_); }

std::shared_ptr<const LoadedKernel> Device::load(const std::shared_ptr<const Bundle>& bundle, const Kernel& kernel) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::shared_ptr<const LoadedKernel> loaded = loaded_[&kernel].lock();
  if (!loaded) loaded_[&kernel] = loaded = std::make_shared<LoadedKernel>(shared_from_this(), bundle, kernel);
  return loaded;
}

Device::Current::Current(const Device& device) : device_(device) {
  const Driver& driver = device.driver_;
  Context current = nullptr;
  driver.check(driver.cuCtxGetCurrent(&current), "cuCtxGetCurrent");
  if (current == device.context_) return;
  driver.check(driver.cuCtxPushCurrent_v2(device.context_), "cuCtxPushCurrent");
  pushed_ = true;
}

Device::Current::~Current() {
  Context popped = nullptr;
  if (pushed_) device_.driver_.cuCtxPopCurrent_v2(&popped);
}

LoadedKernel::LoadedKernel(std::shared_ptr<Device> device, std::shared_ptr<const Bundle> bundle, const Kernel& kernel)
    : device_(std::move(device)), bundle_(std::move(bundle)), kernel_(kernel) {
  const std::string content = read_kernel(*bundle_, kernel);  // PTX is text: the terminating zero belongs to it
  const Driver& driver = device_->driver();
  const Device::Current current(*device_);
  const Relaxed relaxed(driver);
  try {
    driver.check(driver.cuModuleLoadData(&module_, content.c_str()), "cuModuleLoadData");
    driver.check(driver.cuModuleGetFunction(&function_, module_, kernel.symbol.c_str()), "cuModuleGetFunction");
    if (kernel.shared > kUnaskedShared) {
      driver.check(driver.cuFuncSetCacheConfig(function_, CacheConfig::kPreferShared), "cuFuncSetCacheConfig");
      driver.check(driver.cuFuncSetAttribute(function_, FunctionAttribute::kMaxDynamicShared,
                                             static_cast<int>(kernel.shared)),
                   "cuFuncSetAttribute");
    }
    if (driver.cuFuncLoad) driver.check(driver.cuFuncLoad(function_), "cuFuncLoad");  // else the first launch may load
  } catch (const Error& error) {
    if (module_) driver.cuModuleUnload(module_);
    throw Error(kernel.file + ": " + error.what(), "");
  }
}

LoadedKernel::~LoadedKernel() {
  try {
    const Device::Current current(*device_);
    const Relaxed relaxed(device_->driver());
    device_->driver().cuModuleUnload(module_);
  } catch (const Error&) {  // there is no context any more
  }
}

void LoadedKernel::launch(const unsigned (&grid)[3], void** addresses, Stream stream, bool dependent) const {
  LaunchAttribute attribute{};
  attribute.id = LaunchAttribute::kProgrammaticSerialization;
  attribute.value[0] = 1;
  const LaunchConfig config{{grid[0], grid[1], grid[2]}, {kernel_.threads, 1, 1}, kernel_.shared, stream,
                            &attribute, dependent && device_->driver().dependent_launches ? 1u : 0u};
  const Driver& driver = device_->driver();
  driver.check(driver.cuLaunchKernelEx(&config, function_, addresses, nullptr), "cuLaunchKernelEx");
}

}  // namespace zq2onnx::cuda
