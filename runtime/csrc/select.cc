#include "select.h"

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "cuda/support.h"
#include "error.h"
#include "kernels/product.h"

namespace zq2onnx {
namespace {

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t");
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

std::string known_names() {
  std::string names;
  for (const Operator& op : kOperators) names += (names.empty() ? "" : ", ") + std::string(op.name);
  return names;
}

using Asked = std::array<bool, kOperators.size()>;

void ask_for(const std::string& name, const Wish& wish, Asked& asked) {
  for (size_t index = 0; index < kOperators.size(); ++index) {
    if (name == kOperators[index].name) {
      asked[index] = true;
      return;
    }
  }
  throw Error(wish.source + " names the operator '" + name + "'", "all, none, or of " + known_names());
}

// Nothing where nobody asked.
std::optional<Asked> asked_operators(const Wish& wish) {
  const std::string value = trimmed(wish.value);
  if (value.empty()) return std::nullopt;
  Asked asked{};
  if (value == "all") asked.fill(true);
  if (value == "all" || value == "none") return asked;
  for (size_t start = 0; start <= value.size();) {
    const size_t end = std::min(value.find(',', start), value.size());
    const std::string name = trimmed(value.substr(start, end - start));
    if (!name.empty()) ask_for(name, wish, asked);
    start = end + 1;
  }
  return asked;
}

bool on_cuda(const Wish& wish, bool host_has_cuda) {
  const std::string value = trimmed(wish.value);
  if (value == "cpu") return false;
  if (value == "cuda") return true;
  // Kernels do not matter: without them names are left out, rather than registered for the CPU alone.
  if (value.empty()) return host_has_cuda && !cuda::find_devices().devices.empty();
  throw Error(wish.source + " is '" + value + "'", "cpu or cuda");
}

// `asked`: whether it was asked for; nothing where nobody asked for any.
Verdict verdict_on_cpu(const Operator& op, std::optional<bool> asked) {
  if (asked) return {*asked, *asked ? "asked for" : "not asked for"};
  if (!op.pays) return {false, "its function is faster for some shapes"};
  if (is_measured(op.storage(), op.activation)) return {true, "faster than its function"};
  return {false, "no kernel for this processor is measured to be faster than its function"};
}

Verdict verdict_on_cuda(const Operator& op, std::optional<bool> asked, const std::string& why_not) {
  if (asked && !*asked) return {false, "not asked for"};
  if (!why_not.empty()) return {false, why_not + ": left to its function"};
  if (asked) return {true, "asked for"};
  if (op.cuda_pays) return {true, "faster than its function"};
  return {false, "its CUDA kernel is not measured on a GPU yet, and registered only if asked for"};
}

}  // namespace

Wish environment(const char* variable) {
  const char* value = std::getenv(variable);
  return value ? Wish{value, variable} : Wish{};
}

std::string Selection::names() const {
  std::string names;
  for (size_t index = 0; index < kOperators.size(); ++index) {
    if (verdicts[index].registered) names += (names.empty() ? "" : ",") + std::string(kOperators[index].name);
  }
  return names;
}

Selection select_operators(const Wishes& wishes, bool host_has_cuda) {
  const auto asked = asked_operators(wishes.ops);
  Selection selection{on_cuda(wishes.provider, host_has_cuda), {}};
  const cuda::WhyNot why_not = selection.cuda ? cuda::why_not() : cuda::WhyNot{};
  for (size_t op = 0; op < kOperators.size(); ++op) {
    const auto wanted = asked ? std::optional<bool>((*asked)[op]) : std::nullopt;
    selection.verdicts[op] = selection.cuda ? verdict_on_cuda(kOperators[op], wanted, why_not[op])
                                            : verdict_on_cpu(kOperators[op], wanted);
  }
  return selection;
}

}  // namespace zq2onnx
