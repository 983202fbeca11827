// The part of ONNX Runtime's C ABI that a custom-operator library needs, stated by ourselves.
//
// ONNX Runtime ships no headers in its Python packages. Its ABI is stable: `OrtApi` is an append-only table of
// function pointers, so naming the slots that are used, by index, fits every release since the version asked
// for. `OrtCustomOp` is a struct that the library fills, of the version that it says: its fields up to 17 are below.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zq2onnx::ort {

constexpr uint32_t kApiVersion = 18;       // the first with KernelContext_GetScratchBuffer
constexpr uint32_t kCustomOpVersion = 17;  // of `CustomOp`: ONNX Runtime reads no field that a later one has

struct Status;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct CustomOpDomain;
struct Value;
struct TypeAndShape;
struct ShapeInferContext;
struct MemoryInfo;

enum class ElementType : int32_t {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kFloat16 = 10,
  kBfloat16 = 16,
};
enum class Characteristic : int32_t { kRequired = 0, kOptional = 1 };
enum class MemoryType : int32_t { kDefault = 0 };
enum class ErrorCode : int32_t { kFail = 1, kInvalidArgument = 2 };

// A function of `OrtApi` by its slot.
template <size_t slot, typename Signature>
struct Slot;

template <size_t slot, typename Result, typename... Arguments>
struct Slot<slot, Result(Arguments...)> {
  static constexpr size_t kIndex = slot;
  using Pointer = Result (*)(Arguments...) noexcept;
};

using CreateStatus = Slot<0, Status*(ErrorCode, const char*)>;
using CreateCustomOpDomain = Slot<26, Status*(const char*, CustomOpDomain**)>;
using CustomOpDomainAdd = Slot<27, Status*(CustomOpDomain*, const struct CustomOp*)>;
using AddCustomOpDomain = Slot<28, Status*(SessionOptions*, CustomOpDomain*)>;
using GetTensorMutableData = Slot<51, Status*(Value*, void**)>;
using GetTensorElementType = Slot<60, Status*(const TypeAndShape*, ElementType*)>;
using GetDimensionsCount = Slot<61, Status*(const TypeAndShape*, size_t*)>;
using GetDimensions = Slot<62, Status*(const TypeAndShape*, int64_t*, size_t)>;
using GetTensorTypeAndShape = Slot<65, Status*(const Value*, TypeAndShape**)>;
using MemoryInfoGetId = Slot<72, Status*(const MemoryInfo*, int*)>;
using AllocatorAlloc = Slot<75, Status*(struct Allocator*, size_t, void**)>;
using AllocatorFree = Slot<76, Status*(struct Allocator*, void*)>;
using KernelInfoGetAttributeInt64 = Slot<86, Status*(const KernelInfo*, const char*, int64_t*)>;
using KernelContextGetInputCount = Slot<88, Status*(const KernelContext*, size_t*)>;
using KernelContextGetInput = Slot<90, Status*(const KernelContext*, size_t, const Value**)>;
using KernelContextGetOutput = Slot<91, Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)>;
using ReleaseStatus = Slot<93, void(Status*)>;
using ReleaseTypeAndShape = Slot<99, void(TypeAndShape*)>;
using GetAvailableProviders = Slot<125, Status*(char***, int*)>;
using ReleaseAvailableProviders = Slot<126, Status*(char**, int)>;
using AddSessionConfigEntry = Slot<130, Status*(SessionOptions*, const char*, const char*)>;
using ReleaseAllocator = Slot<132, void(struct Allocator*)>;
using KernelContextGetGpuComputeStream = Slot<193, Status*(const KernelContext*, void**)>;
using HasSessionConfigEntry = Slot<237, Status*(const SessionOptions*, const char*, int*)>;
using GetSessionConfigEntry = Slot<238, Status*(const SessionOptions*, const char*, char*, size_t*)>;
using KernelInfoGetNodeName = Slot<244, Status*(const KernelInfo*, char*, size_t*)>;
using KernelInfoGetConstantInput = Slot<249, Status*(const KernelInfo*, size_t, int*, const Value**)>;
using KernelContextParallelFor =
    Slot<274, Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>;
using KernelContextGetScratchBuffer = Slot<277, Status*(const KernelContext*, const MemoryInfo*, size_t, void**)>;
using KernelInfoGetAllocator = Slot<278, Status*(const KernelInfo*, MemoryType, struct Allocator**)>;

// `OrtAllocator`, its fields of every version.
struct Allocator {
  uint32_t version;
  void* (*Alloc)(Allocator*, size_t);
  void (*Free)(Allocator*, void*);
  const MemoryInfo* (*Info)(const Allocator*);
};

// `OrtApi`: a table of pointers.
struct Api {
  template <typename S, typename... Arguments>
  auto call(Arguments... arguments) const noexcept {
    const auto* table = reinterpret_cast<void* const*>(this);
    return reinterpret_cast<typename S::Pointer>(table[S::kIndex])(arguments...);
  }
};

struct ApiBase {
  const Api* (*GetApi)(uint32_t version) noexcept;
  const char* (*GetVersionString)() noexcept;
};

// `OrtCustomOp` as of version 17.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, size_t);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, size_t);
  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShape)(const CustomOp*, ShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
};

static_assert(sizeof(CustomOp) == 22 * sizeof(void*), "a field is missing or too many");

}  // namespace zq2onnx::ort
