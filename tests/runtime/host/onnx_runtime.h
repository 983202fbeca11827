// So much of ONNX Runtime's interface that the operator library registers, is created and runs. Arrays end where no
// memory is, so that reading or writing beyond them ends the program.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../../../runtime/csrc/ort_abi.h"

namespace zq2onnx::ort {

[[noreturn]] inline void fail(const std::string& message) {
  std::printf("error: %s\n", message.c_str());
  std::exit(1);
}

// Bytes that end where a page begins that must not be touched, or `spare` bytes before; and so much sooner that they
// begin at a multiple of `alignment`.
class Memory {
 public:
  inline static size_t spare = 0;
  inline static size_t alignment = 1;

  explicit Memory(size_t bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t filled = (bytes + spare + alignment + page - 1) / page * page;
    size_ = filled + page;
    start_ = static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (start_ == MAP_FAILED || mprotect(start_ + filled, page, PROT_NONE)) fail("out of memory");
    data_ = start_ + (filled - spare - bytes) / alignment * alignment;
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { munmap(start_, size_); }
  char* data() const { return data_; }

 private:
  char* start_;
  size_t size_;
  char* data_;
};

inline size_t size_of(ElementType type) {
  switch (type) {
    case ElementType::kFloat: return 4;
    case ElementType::kFloat16:
    case ElementType::kBfloat16: return 2;
    default: return 1;
  }
}

// What the library knows by pointers only.
struct Status {
  std::string message;
};

struct TypeAndShape {
  ElementType type;
  std::vector<int64_t> shape;
};

struct Value {
  TypeAndShape info;
  std::unique_ptr<Memory> memory;
  size_t count() const {
    size_t count = 1;
    for (const int64_t axis : info.shape) count *= static_cast<size_t>(axis);
    return count;
  }
};

struct CustomOpDomain {
  std::vector<const CustomOp*> ops;
};

struct SessionOptions {
  std::map<std::string, std::string> entries;
  const CustomOpDomain* domain = nullptr;
};

// A node, its inputs, and what it must return.
struct KernelInfo {
  std::string op;
  std::map<std::string, int64_t> attributes;
  std::vector<std::unique_ptr<Value>> inputs;  // null: left out
  std::vector<double> expected, allowed;
};

struct KernelContext {
  const KernelInfo* node;
  Value output;
};

struct MemoryInfo {
  int device;
};

// The device's: what is taken from it must be given back. Tells of both on standard output.
struct Arena : Allocator {
  MemoryInfo memory{0};
  size_t most = SIZE_MAX;  // bytes that it has at once
  std::mutex mutex;
  std::map<void*, std::unique_ptr<Memory>> taken;

  Arena() {
    version = kApiVersion;
    Alloc = nullptr;  // the library takes what belongs to a stream
    Info = [](const Allocator* self) { return &static_cast<const Arena*>(self)->memory; };
    Free = [](Allocator* self, void* data) { static_cast<Arena*>(self)->give_back(data); };
  }
  void* take(const char* why, size_t bytes) {
    auto made = std::make_unique<Memory>(bytes);
    void* data = made->data();
    std::printf("%s\t%p\t%zu\n", why, data, bytes);
    const std::lock_guard<std::mutex> lock(mutex);
    taken[data] = std::move(made);
    return data;
  }
  void give_back(void* data) {
    std::printf("free\t%p\n", data);
    const std::lock_guard<std::mutex> lock(mutex);
    if (!taken.erase(data)) fail("what is freed was never taken");
  }
};
inline Arena& arena() {
  static Arena made;
  return made;
}

// Of every run: what the library passes on to the driver.
inline void* const kStream = reinterpret_cast<void*>(0x57ea3);

// Whether ONNX Runtime has the CUDA provider.
inline bool has_cuda = false;

using Table = std::vector<void*>;

template <typename S, typename Function>
void set(Table& table, Function function) {
  const typename S::Pointer pointer = function;
  table[S::kIndex] = reinterpret_cast<void*>(pointer);
}

inline Status* copy(const std::string& text, char* to, size_t* size) noexcept {
  if (to) std::memcpy(to, text.c_str(), text.size() + 1);
  *size = text.size() + 1;
  return nullptr;
}

inline void set_sessions(Table& table) {
  set<CreateStatus>(table, [](ErrorCode, const char* message) noexcept { return new Status{message}; });
  set<ReleaseStatus>(table, [](Status* status) noexcept { delete status; });
  set<CreateCustomOpDomain>(table, [](const char*, CustomOpDomain** domain) noexcept -> Status* {
    *domain = new CustomOpDomain;
    return nullptr;
  });
  set<CustomOpDomainAdd>(table, [](CustomOpDomain* domain, const CustomOp* op) noexcept -> Status* {
    domain->ops.push_back(op);
    return nullptr;
  });
  set<AddCustomOpDomain>(table, [](SessionOptions* options, CustomOpDomain* domain) noexcept -> Status* {
    options->domain = domain;
    return nullptr;
  });
  set<AddSessionConfigEntry>(
      table, [](SessionOptions* options, const char* key, const char* value) noexcept -> Status* {
        options->entries[key] = value;
        return nullptr;
      });
  set<HasSessionConfigEntry>(
      table, [](const SessionOptions* options, const char* key, int* found) noexcept -> Status* {
        *found = static_cast<int>(options->entries.count(key));
        return nullptr;
      });
  set<GetSessionConfigEntry>(
      table, [](const SessionOptions* options, const char* key, char* value, size_t* size) noexcept {
        return copy(options->entries.at(key), value, size);
      });
}

inline void set_tensors(Table& table) {
  set<GetTensorMutableData>(table, [](Value* value, void** data) noexcept -> Status* {
    *data = value->memory->data();
    return nullptr;
  });
  set<GetTensorTypeAndShape>(table, [](const Value* value, TypeAndShape** info) noexcept -> Status* {
    *info = new TypeAndShape(value->info);
    return nullptr;
  });
  set<ReleaseTypeAndShape>(table, [](TypeAndShape* info) noexcept { delete info; });
  set<GetTensorElementType>(table, [](const TypeAndShape* info, ElementType* type) noexcept -> Status* {
    *type = info->type;
    return nullptr;
  });
  set<GetDimensionsCount>(table, [](const TypeAndShape* info, size_t* count) noexcept -> Status* {
    *count = info->shape.size();
    return nullptr;
  });
  set<GetDimensions>(table, [](const TypeAndShape* info, int64_t* shape, size_t count) noexcept -> Status* {
    std::copy_n(info->shape.begin(), count, shape);
    return nullptr;
  });
}

inline void set_nodes(Table& table) {
  set<KernelInfoGetNodeName>(table, [](const KernelInfo* node, char* name, size_t* size) noexcept {
    return copy(node->op, name, size);
  });
  set<KernelInfoGetAttributeInt64>(
      table, [](const KernelInfo* node, const char* name, int64_t* value) noexcept -> Status* {
        *value = node->attributes.at(name);
        return nullptr;
      });
  set<KernelInfoGetConstantInput>(
      table, [](const KernelInfo* node, size_t index, int* constant, const Value** value) noexcept -> Status* {
        *value = node->inputs.at(index).get();
        *constant = *value != nullptr;
        return nullptr;
      });
}

inline void set_runs(Table& table) {
  set<KernelContextGetInputCount>(table, [](const KernelContext* context, size_t* count) noexcept -> Status* {
    *count = context->node->inputs.size();
    return nullptr;
  });
  set<KernelContextGetInput>(
      table, [](const KernelContext* context, size_t index, const Value** value) noexcept -> Status* {
        *value = context->node->inputs.at(index).get();
        return nullptr;
      });
  set<KernelContextGetOutput>(
      table,
      [](KernelContext* context, size_t, const int64_t* shape, size_t axes, Value** value) noexcept -> Status* {
        Value& output = context->output;
        output.info = {context->node->inputs[0]->info.type, {shape, shape + axes}};
        output.memory = std::make_unique<Memory>(output.count() * size_of(output.info.type));
        *value = &output;
        return nullptr;
      });
  // Backwards: pieces may be taken in any order.
  set<KernelContextParallelFor>(
      table,
      [](const KernelContext*, void (*each)(void*, size_t), size_t count, size_t, void* data) noexcept -> Status* {
        while (count > 0) each(data, --count);
        return nullptr;
      });
}

inline void set_gpu(Table& table) {
  set<GetAvailableProviders>(table, [](char*** names, int* count) noexcept -> Status* {
    static char cuda[] = "CUDAExecutionProvider", cpu[] = "CPUExecutionProvider";
    static char* all[] = {cuda, cpu};
    *names = has_cuda ? all : all + 1;
    *count = has_cuda ? 2 : 1;
    return nullptr;
  });
  set<ReleaseAvailableProviders>(table, [](char**, int) noexcept -> Status* { return nullptr; });
  set<KernelInfoGetAllocator>(table, [](const KernelInfo*, MemoryType, Allocator** allocator) noexcept -> Status* {
    *allocator = &arena();
    return nullptr;
  });
  set<AllocatorAlloc>(table, [](Allocator*, size_t bytes, void** data) noexcept -> Status* {
    if (bytes > arena().most) return new Status{"Failed to allocate memory for requested buffer"};
    *data = arena().take("probe", bytes);
    return nullptr;
  });
  set<AllocatorFree>(table, [](Allocator*, void* data) noexcept -> Status* {
    arena().give_back(data);
    return nullptr;
  });
  set<ReleaseAllocator>(table, [](Allocator*) noexcept {});
  set<MemoryInfoGetId>(table, [](const MemoryInfo* memory, int* device) noexcept -> Status* {
    *device = memory->device;
    return nullptr;
  });
  set<KernelContextGetGpuComputeStream>(table, [](const KernelContext*, void** stream) noexcept -> Status* {
    *stream = kStream;
    return nullptr;
  });
  set<KernelContextGetScratchBuffer>(
      table, [](const KernelContext*, const MemoryInfo*, size_t bytes, void** data) noexcept -> Status* {
        if (bytes > arena().most) std::abort();  // as ONNX Runtime does: its exception meets no handler
        *data = arena().take("scratch", bytes);
        return nullptr;
      });
}

inline const Table& table() {
  static const Table made = [] {
    Table all(300);
    set_sessions(all);
    set_tensors(all);
    set_nodes(all);
    set_runs(all);
    set_gpu(all);
    return all;
  }();
  return made;
}

inline const Api* api() { return reinterpret_cast<const Api*>(table().data()); }

inline void check(Status* status) {
  if (status) fail(status->message);
}

}  // namespace zq2onnx::ort
