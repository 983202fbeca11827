// A GPU: what it is, and the kernels that are loaded there.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle.h"
#include "driver.h"

namespace zq2onnx::cuda {

struct DeviceFacts {
  std::string name;
  int capability;  // as 90
};

// The GPUs that this process sees, in the order in which CUDA and ONNX Runtime count them: looked for once.
struct FoundDevices {
  std::vector<DeviceFacts> devices;
  std::string why_none;  // in words, where there is none
};
const FoundDevices& find_devices();

// A device's primary context, the one that ONNX Runtime uses: held as long as anything is loaded there.
class Device : public std::enable_shared_from_this<Device> {
 public:
  // The same object for all who hold it at a time. Throws Error.
  static std::shared_ptr<Device> open(int ordinal);

  explicit Device(int ordinal);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Driver& driver() const { return driver_; }
  int capability() const { return capability_; }

  // A kernel that is loaded there, and unloaded when nobody holds it. Loads what is not loaded. Throws Error.
  std::shared_ptr<const class LoadedKernel> load(const std::shared_ptr<const Bundle>& bundle, const Kernel& kernel);

  // Makes the device's context the calling thread's, until it is destroyed.
  class Current {
   public:
    explicit Current(const Device& device);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    const Device& device_;
    bool pushed_ = false;
  };

 private:
  const Driver& driver_;
  DeviceHandle handle_ = 0;
  int capability_ = 0;
  Context context_ = nullptr;
  std::mutex mutex_;
  std::map<const Kernel*, std::weak_ptr<const LoadedKernel>> loaded_;
};

class LoadedKernel {
 public:
  LoadedKernel(std::shared_ptr<Device> device, std::shared_ptr<const Bundle> bundle, const Kernel& kernel);
  ~LoadedKernel();
  LoadedKernel(const LoadedKernel&) = delete;
  LoadedKernel& operator=(const LoadedKernel&) = delete;

  const Kernel& kernel() const { return kernel_; }

  // Launches on a stream of the device, which is the thread's current one. `addresses` are those of the values of all
  // arguments. Neither waits nor allocates. Throws Error.
  void launch(const unsigned (&grid)[3], void** addresses, Stream stream, bool dependent) const;

 private:
  std::shared_ptr<Device> device_;
  std::shared_ptr<const Bundle> bundle_;
  const Kernel& kernel_;
  Module module_ = nullptr;
  Function function_ = nullptr;
};

}  // namespace zq2onnx::cuda
