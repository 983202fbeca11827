"""What `driver.h` says of CUDA's ABI, against the header that Triton's package brings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runtime.test_hosted_kernels import SOURCES

CHECKS = """
#include <cuda.h>
#include <cstddef>
#include <type_traits>
#include "driver.h"
using namespace zq2onnx::cuda;
#define SAME(ours, theirs) static_assert(static_cast<int>(ours) == static_cast<int>(theirs), "")
SAME(DeviceAttribute::kMajor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME(DeviceAttribute::kMinor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME(FunctionAttribute::kMaxDynamicShared, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
SAME(CacheConfig::kPreferShared, CU_FUNC_CACHE_PREFER_SHARED);
SAME(CaptureMode::kRelaxed, CU_STREAM_CAPTURE_MODE_RELAXED);
SAME(LaunchAttribute::kProgrammaticSerialization, CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
SAME(sizeof(LaunchConfig), sizeof(CUlaunchConfig));
SAME(offsetof(LaunchConfig, grid), offsetof(CUlaunchConfig, gridDimX));
SAME(offsetof(LaunchConfig, block), offsetof(CUlaunchConfig, blockDimX));
SAME(offsetof(LaunchConfig, shared), offsetof(CUlaunchConfig, sharedMemBytes));
SAME(offsetof(LaunchConfig, stream), offsetof(CUlaunchConfig, hStream));
SAME(offsetof(LaunchConfig, attributes), offsetof(CUlaunchConfig, attrs));
SAME(offsetof(LaunchConfig, attribute_count), offsetof(CUlaunchConfig, numAttrs));
SAME(sizeof(LaunchAttribute), sizeof(CUlaunchAttribute));
SAME(alignof(LaunchAttribute), alignof(CUlaunchAttribute));
SAME(offsetof(LaunchAttribute, value), offsetof(CUlaunchAttribute, value));
SAME(sizeof(Result), sizeof(CUresult));
SAME(sizeof(DeviceHandle), sizeof(CUdevice));
// Every function takes as many arguments as in the header, each of the same size.
template <typename... A> struct Sizes {};
template <typename R, typename... A>
constexpr auto sizes(R (*)(A...)) { return Sizes<std::integral_constant<size_t, sizeof(A)>...>{}; }
#define FUNCTION(name, theirs) \\
  static_assert(std::is_same_v<decltype(sizes(Driver{}.name)), decltype(sizes(&theirs))>, #name)
FUNCTION(cuInit, cuInit);
FUNCTION(cuDriverGetVersion, cuDriverGetVersion);
FUNCTION(cuGetErrorString, cuGetErrorString);
FUNCTION(cuDeviceGetCount, cuDeviceGetCount);
FUNCTION(cuDeviceGet, cuDeviceGet);
FUNCTION(cuDeviceGetName, cuDeviceGetName);
FUNCTION(cuDeviceGetAttribute, cuDeviceGetAttribute);
FUNCTION(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain);
FUNCTION(cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxRelease);
FUNCTION(cuCtxGetCurrent, cuCtxGetCurrent);
FUNCTION(cuCtxPushCurrent_v2, cuCtxPushCurrent);
FUNCTION(cuCtxPopCurrent_v2, cuCtxPopCurrent);
FUNCTION(cuModuleLoadData, cuModuleLoadData);
FUNCTION(cuModuleUnload, cuModuleUnload);
FUNCTION(cuModuleGetFunction, cuModuleGetFunction);
FUNCTION(cuThreadExchangeStreamCaptureMode, cuThreadExchangeStreamCaptureMode);
FUNCTION(cuFuncSetCacheConfig, cuFuncSetCacheConfig);
FUNCTION(cuFuncSetAttribute, cuFuncSetAttribute);
FUNCTION(cuFuncLoad, cuFuncLoad);
FUNCTION(cuLaunchKernelEx, cuLaunchKernelEx);
""".replace("\\\\", "\\")


def test_structures_and_numbers_are_cudas(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    if not (headers / "cuda.h").is_file() or shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler, and a Triton that brings cuda.h")
    source = tmp_path / "abi.cc"
    source.write_text(CHECKS)
    command = ["c++", "-std=c++17", "-fsyntax-only", f"-I{headers}", f"-I{SOURCES / 'cuda'}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
