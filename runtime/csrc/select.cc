#include "select.h"

#include <algorithm>
#include <cstdlib>
#include <optional>

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

bool on_cuda(const Wish& wish) {
  const std::string value = trimmed(wish.value);
  if (value.empty() || value == "cpu") return false;  // no CUDA kernels are bundled yet
  if (value == "cuda") return true;
  throw Error(wish.source + " is '" + value + "'", "cpu or cuda");
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

Selection select_operators(const Wishes& wishes) {
  const auto asked = asked_operators(wishes.ops);
  const bool cuda = on_cuda(wishes.provider);
  Selection selection{};
  for (size_t index = 0; index < kOperators.size(); ++index) {
    const Operator& op = kOperators[index];
    Verdict& verdict = selection.verdicts[index];
    const bool pays = op.pays && is_measured(op.storage(), op.activation);
    const bool wanted = asked ? (*asked)[index] : pays;
    verdict.registered = wanted && (!cuda || op.cuda);
    if (!wanted) {
      verdict.why = asked     ? "not asked for"
                    : op.pays ? "no kernel for this processor is measured to be faster than its function"
                              : "its function is faster for some shapes";
    } else if (cuda && !op.cuda) {
      verdict.why = "has no CUDA kernel: its function runs on the GPU";
    } else {
      verdict.why = asked ? "asked for" : "faster than its function";
    }
  }
  return selection;
}

}  // namespace zq2onnx
