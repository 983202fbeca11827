// The CUDA driver, opened at run time: the library loads where there is none, and then knows no GPU.
//
// As with ONNX Runtime, the ABI is stated by ourselves: types and constants are those of CUDA 12's `cuda.h`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace zq2onnx::cuda {

using Result = int;  // CUresult: 0 is success
using DeviceHandle = int;
using Context = struct ContextHandle*;
using Module = struct ModuleHandle*;
using Function = struct FunctionHandle*;
using Stream = struct StreamHandle*;

enum class DeviceAttribute : int { kMajor = 75, kMinor = 76 };
enum class FunctionAttribute : int { kMaxDynamicShared = 8 };
enum class CacheConfig : int { kPreferShared = 1 };
enum class CaptureMode : int { kRelaxed = 2 };

// `CUlaunchAttribute`, of which one is used.
struct alignas(8) LaunchAttribute {
  static constexpr int kProgrammaticSerialization = 6;
  int id;
  char padding[4];
  int value[16];
};
static_assert(sizeof(LaunchAttribute) == 72, "a union of 64 bytes behind 8");

// `CUlaunchConfig`.
struct LaunchConfig {
  unsigned grid[3], block[3], shared;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};
static_assert(offsetof(LaunchConfig, stream) == 32 && sizeof(LaunchConfig) == 56, "as cuda.h lays it out");

// The functions that are used, by their names in libcuda.
struct Driver {
  Result (*cuInit)(unsigned);
  Result (*cuDriverGetVersion)(int*);
  Result (*cuGetErrorString)(Result, const char**);
  Result (*cuDeviceGetCount)(int*);
  Result (*cuDeviceGet)(DeviceHandle*, int);
  Result (*cuDeviceGetName)(char*, int, DeviceHandle);
  Result (*cuDeviceGetAttribute)(int*, DeviceAttribute, DeviceHandle);
  Result (*cuDevicePrimaryCtxRetain)(Context*, DeviceHandle);
  Result (*cuDevicePrimaryCtxRelease_v2)(DeviceHandle);
  Result (*cuCtxGetCurrent)(Context*);
  Result (*cuCtxPushCurrent_v2)(Context);
  Result (*cuCtxPopCurrent_v2)(Context*);
  Result (*cuModuleLoadData)(Module*, const void*);
  Result (*cuModuleUnload)(Module);
  Result (*cuModuleGetFunction)(Function*, Module, const char*);
  Result (*cuThreadExchangeStreamCaptureMode)(CaptureMode*);
  Result (*cuFuncSetCacheConfig)(Function, CacheConfig);
  Result (*cuFuncSetAttribute)(Function, FunctionAttribute, int);
  Result (*cuLaunchKernelEx)(const LaunchConfig*, Function, void**, void**);
  Result (*cuFuncLoad)(Function);  // null before CUDA 12.4
  bool dependent_launches;         // whether they may be captured in a graph: since CUDA 12.3

  // Throws Error that names the call, and what the driver says of it.
  void check(Result result, const char* call) const;
};

// The oldest driver that runs what the bundle holds, as CUDA counts: 12.0.
constexpr int kLeastDriver = 12000;

// What there is: looked for once.
struct FoundDriver {
  const Driver* driver = nullptr;  // null where there is none that can be used
  int version = 0;                 // as 12040 for CUDA 12.4; 0 where it is not known
  std::string why_not;             // in words, where there is none
};
const FoundDriver& find_driver();

// "12.4".
std::string version_text(int version);

}  // namespace zq2onnx::cuda
