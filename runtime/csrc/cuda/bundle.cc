#include "bundle.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <set>

#include "../error.h"
#include "json.h"
#include "sha256.h"

namespace zq2onnx::cuda {
namespace {

constexpr int64_t kFormat = 1;
constexpr int64_t kMostBytes = int64_t{64} << 20;     // of a file: a bundle has less in all
constexpr int64_t kMostManifest = int64_t{16} << 20;  // values take many times the memory of their text
constexpr size_t kMostKernels = 10000;
constexpr size_t kMostArguments = 64;
constexpr const char* kRemedy = "an intact bundle (zq2onnx kernels build)";

std::string read_file(const std::string& path, int64_t most) {
  struct stat found {};
  if (stat(path.c_str(), &found) || !S_ISREG(found.st_mode)) throw Error(path + " is no file", kRemedy);
  if (found.st_size > most) throw Error(path + " has more than " + std::to_string(most) + " bytes", kRemedy);
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), {}};
  if (!file) throw Error(path + " cannot be read", kRemedy);
  return content;
}

ort::ElementType type_named(const std::string& name) {
  if (name == "fp16") return ort::ElementType::kFloat16;
  if (name == "bf16") return ort::ElementType::kBfloat16;
  if (name == "fp32") return ort::ElementType::kFloat;
  throw Error("dtype " + name, "fp16, bf16 or fp32");
}

Size read_size(const Json& value) {
  const std::string& name = value.text("a size");
  if (const auto size = size_named(name)) return *size;
  throw Error("size " + name, "one that this library knows");
}

// The type of an array as the library passes it.
std::string type_of(Array array, const std::string& dtype, const std::string& x_dtype) {
  switch (array) {
    case Array::kX: return "*" + x_dtype;
    case Array::kB:
    case Array::kZeroPoints:
    case Array::kU:
    case Array::kV: return "*u8";
    case Array::kT:
    case Array::kSums:
    case Array::kXScales: return "*fp32";
    default: return "*" + dtype;
  }
}

Argument read_argument(const Json& value, const std::string& dtype, const std::string& x_dtype) {
  const std::string& name = value.at("name").text("an argument's name");
  const std::string& type = value.at("type").text("an argument's type");
  Argument argument{};
  argument.multiple_of = value.at("multiple_of").integer("multiple_of", 1, 4096);
  const auto array = array_named(name);
  const auto size = size_named(name);
  if (array && type == type_of(*array, dtype, x_dtype)) {
    argument.is_array = true;
    argument.array = *array;
  } else if (size && type == "i32") {
    argument.size = *size;
  } else {
    throw Error("argument " + name + " of type " + type, "one that this library passes");
  }
  return argument;
}

int read_capability(const std::string& architecture) {
  const bool right = architecture.size() >= 5 && architecture.size() <= 6 && architecture.compare(0, 3, "sm_") == 0 &&
                     std::all_of(architecture.begin() + 3, architecture.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!right) throw Error("architecture " + architecture, "one as sm_90");
  return std::atoi(architecture.c_str() + 3);
}

// A name of a file in the bundle's own folder.
std::string read_file_name(const Json& value) {
  const std::string& name = value.text("file");
  if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
    throw Error("file " + name, "a name without a folder");
  }
  return name;
}

void read_launch(const Json& value, Kernel& kernel) {
  const std::string& dtype = value.at("dtype").text("dtype");
  const std::string& x_dtype = value.at("x_dtype").text("x_dtype");
  kernel.type = type_named(dtype);
  kernel.codes = x_dtype == "i8";
  if (!kernel.codes && x_dtype != dtype) throw Error("x_dtype " + x_dtype, "i8 or " + dtype);
  for (const Json& argument : value.at("arguments").items("arguments")) {
    kernel.arguments.push_back(read_argument(argument, dtype, x_dtype));
  }
  for (const Json& pointer : value.at("hidden").items("hidden")) {
    pointer.at("bytes").integer("bytes of a hidden pointer", 0, 0);  // a kernel that wants memory there cannot run
    ++kernel.hidden;
  }
  if (kernel.arguments.size() + kernel.hidden > kMostArguments) throw Error("too many arguments", "64 at most");
  kernel.shared = static_cast<unsigned>(value.at("shared").integer("shared", 0, 256 << 10));
  kernel.threads = static_cast<unsigned>(value.at("threads").integer("threads", 32, 1024));
  kernel.dependent = value.at("dependent").truth("dependent");
}

void read_use(const Json& value, Kernel& kernel) {
  kernel.aligned = value.at("aligned").truth("aligned");
  for (const Json& condition : value.at("when").items("when")) {
    kernel.when.push_back({read_size(condition.at("size")), condition.at("at_least").integer("at_least", 0, kMostSize),
                           condition.at("at_most").integer("at_most", 0, kMostSize),
                           condition.at("multiple_of").integer("multiple_of", 1, kMostSize)});
  }
  const std::vector<Json>& axes = value.at("grid").items("grid");
  if (axes.size() != kernel.grid.size()) throw Error("grid of " + std::to_string(axes.size()) + " axes", "3");
  for (size_t axis = 0; axis < axes.size(); ++axis) {
    for (const Json& extent : axes[axis].items("an axis")) {
      const std::vector<Json>& pair = extent.items("an extent");
      if (pair.size() != 2) throw Error("an extent of " + std::to_string(pair.size()), "a size and a tile");
      kernel.grid[axis].push_back({read_size(pair[0]), pair[1].integer("a tile", 1, kMostSize)});
    }
  }
}

Kernel read_kernel_entry(const Json& value) {
  Kernel kernel;
  kernel.name = value.at("name").text("name");
  try {
    kernel.file = read_file_name(value.at("file"));
    kernel.sha256 = value.at("sha256").text("sha256");
    kernel.symbol = value.at("symbol").text("symbol");
    const std::string& form = value.at("form").text("form");
    if (form != "cubin" && form != "ptx") throw Error("form " + form, "cubin or ptx");
    kernel.ptx = form == "ptx";
    kernel.capability = read_capability(value.at("architecture").text("architecture"));
    kernel.prologue = value.at("kernel").text("kernel") == "prologue";
    kernel.bytes = static_cast<size_t>(value.at("bytes").integer("bytes", 1, kMostBytes));
    read_launch(value, kernel);
    read_use(value, kernel);
  } catch (const Error& error) {
    throw Error("kernel " + kernel.name + ": " + error.what(), "");
  }
  return kernel;
}

std::shared_ptr<const Bundle> read_bundle(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  struct stat found {};
  if (stat(path.c_str(), &found)) throw Error(folder + " holds no manifest.json", "a bundle (zq2onnx kernels build)");
  auto bundle = std::make_shared<Bundle>();
  bundle->folder = folder;
  try {
    const Json manifest = Json::parse(read_file(path, kMostManifest));
    manifest.at("format").integer("format", kFormat, kFormat);
    const std::vector<Json>& kernels = manifest.at("kernels").items("kernels");
    if (kernels.size() > kMostKernels) throw Error(std::to_string(kernels.size()) + " kernels", "10000 at most");
    for (const Json& kernel : kernels) bundle->kernels.push_back(read_kernel_entry(kernel));
  } catch (const Error& error) {
    throw Error(path + ": " + error.what(), kRemedy);
  }
  for (const Kernel& kernel : bundle->kernels) {
    const std::string file = folder + "/" + kernel.file;
    if (stat(file.c_str(), &found) || static_cast<size_t>(found.st_size) != kernel.bytes) {
      throw Error(file + " is not there, or not of " + std::to_string(kernel.bytes) + " bytes", kRemedy);
    }
  }
  return bundle;
}

}  // namespace

std::string bundle_folder() {
  const char* named = std::getenv("ZQ2ONNX_KERNELS");
  if (named && *named) return named;
  Dl_info library{};
  dladdr(reinterpret_cast<const void*>(&bundle_folder), &library);
  const std::string path = library.dli_fname ? library.dli_fname : "";
  const size_t slash = path.rfind('/');
  return (slash == std::string::npos ? "." : path.substr(0, slash)) + "/kernels";
}

std::shared_ptr<const Bundle> find_bundle() {
  static std::mutex mutex;
  static auto& read = *new std::map<std::string, std::shared_ptr<const Bundle>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<const Bundle>& bundle = read[bundle_folder()];
  if (!bundle) bundle = read_bundle(bundle_folder());
  return bundle;
}

std::vector<const Kernel*> Bundle::kernels_for(int capability) const {
  std::vector<const Kernel*> own, portable;
  for (const Kernel& kernel : kernels) {
    if (!kernel.ptx && kernel.capability == capability) own.push_back(&kernel);
    if (kernel.ptx && kernel.capability <= capability) portable.push_back(&kernel);
  }
  return own.empty() ? portable : own;
}

std::string read_kernel(const Bundle& bundle, const Kernel& kernel) {
  const std::string path = bundle.folder + "/" + kernel.file;
  std::string content = read_file(path, kMostBytes);
  if (content.size() != kernel.bytes || sha256(content) != kernel.sha256) {
    throw Error(path + " is not the file that its manifest names", kRemedy);
  }
  return content;
}

bool covers(const std::vector<const Kernel*>& kernels, const Operator& op, ort::ElementType type) {
  const Sizes kind = kind_sizes(op);
  const auto takes_all = [&](const Kernel* kernel, bool prologue) {
    return kernel->prologue == prologue && kernel->type == type && !kernel->aligned && !kernel->codes &&
           std::all_of(kernel->when.begin(), kernel->when.end(), [&](const Condition& condition) {
             const bool of_kind = condition.size == Size::kBits || condition.size == Size::kRounds ||
                                  condition.size == Size::kCodes;
             return of_kind && condition.holds(kind);
           });
  };
  const auto there = [&](bool prologue) {
    return std::any_of(kernels.begin(), kernels.end(), [&](const Kernel* kernel) { return takes_all(kernel, prologue); });
  };
  return there(false) && ((op.activation == Activation::kFloat && !op.lorc) || there(true));
}

}  // namespace zq2onnx::cuda
