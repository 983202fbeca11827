// The library's entry: what ONNX Runtime calls with a session's options.

#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "custom_op.h"
#include "error.h"
#include "select.h"

namespace zq2onnx {
namespace {

constexpr const char* kDomain = "ai.zq2onnx";
// Session options, read at registration: `zq2onnx.runtime.register` sets them; they outrank the environment.
constexpr const char* kOpsEntry = "ai.zq2onnx.ops";
constexpr const char* kProviderEntry = "ai.zq2onnx.provider";
// Written at registration: the names. ONNX Runtime refuses a domain twice, so that a second call must know.
constexpr const char* kRegisteredEntry = "ai.zq2onnx.registered";

bool has_entry(const ort::Api* api, const ort::SessionOptions* options, const char* key) {
  int found = 0;
  check(api->call<ort::HasSessionConfigEntry>(options, key, &found));
  return found != 0;
}

Wish session_entry(const ort::Api* api, const ort::SessionOptions* options, const char* key) {
  if (!has_entry(api, options, key)) return {};
  size_t size = 0;  // with the terminating zero
  check(api->call<ort::GetSessionConfigEntry>(options, key, static_cast<char*>(nullptr), &size));
  std::string value(size, '\0');
  check(api->call<ort::GetSessionConfigEntry>(options, key, value.data(), &size));
  value.resize(size ? size - 1 : 0);
  return {value, std::string("session option ") + key};
}

Wish wish(const ort::Api* api, const ort::SessionOptions* options, const char* key, const char* variable) {
  Wish own = session_entry(api, options, key);
  return own.source.empty() ? environment(variable) : own;
}

bool has_cuda(const ort::Api* api) {
  char** providers = nullptr;
  int count = 0;
  check(api->call<ort::GetAvailableProviders>(&providers, &count));
  bool found = false;
  for (int index = 0; index < count; ++index) found |= std::string(providers[index]) == "CUDAExecutionProvider";
  check(api->call<ort::ReleaseAvailableProviders>(providers, count));
  return found;
}

// One domain for each set of names, shared by all sessions: their number does not grow with that of sessions.
// ONNX Runtime keeps pointers to it, so that none is ever released; the library is never unloaded either.
ort::CustomOpDomain* domain_of(const ort::Api* api, const Selection& selection) {
  static std::mutex mutex;
  static auto& domains = *new std::map<std::tuple<const ort::Api*, bool, std::string>, ort::CustomOpDomain*>;
  const std::lock_guard<std::mutex> lock(mutex);
  ort::CustomOpDomain*& domain = domains[{api, selection.cuda, selection.names()}];
  if (domain) return domain;
  ort::CustomOpDomain* made = nullptr;
  check(api->call<ort::CreateCustomOpDomain>(kDomain, &made));
  for (size_t op = 0; op < kOperators.size(); ++op) {
    if (!selection.verdicts[op].registered) continue;
    for (const ort::CustomOp* each : registrations(op, selection.cuda)) check(api->call<ort::CustomOpDomainAdd>(made, each));
  }
  return domain = made;
}

void register_operators(const ort::Api* api, ort::SessionOptions* options) {
  if (has_entry(api, options, kRegisteredEntry)) return;
  const Wishes wishes{wish(api, options, kOpsEntry, "ZQ2ONNX_OPS"),
                      wish(api, options, kProviderEntry, "ZQ2ONNX_PROVIDER")};
  const Selection selection = select_operators(wishes, has_cuda(api));
  if (!selection.none()) check(api->call<ort::AddCustomOpDomain>(options, domain_of(api, selection)));
  check(api->call<ort::AddSessionConfigEntry>(options, kRegisteredEntry, selection.names().c_str()));
}

}  // namespace
}  // namespace zq2onnx

extern "C" __attribute__((visibility("default"))) zq2onnx::ort::Status* RegisterCustomOps(
    zq2onnx::ort::SessionOptions* options, const zq2onnx::ort::ApiBase* base) {
  using namespace zq2onnx;
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  if (!api) {  // the first slots are in every release
    const std::string message = std::string("zq2onnx: ONNX Runtime is ") + base->GetVersionString() +
                                "; required: 1.18 or later";
    return base->GetApi(1)->call<ort::CreateStatus>(ort::ErrorCode::kFail, message.c_str());
  }
  return guard(api, [&] { register_operators(api, options); });
}
