#include "cpu.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace zq2onnx {
namespace {

void add(std::string& names, bool found, const char* name) {
  if (found) names += (names.empty() ? "" : " ") + std::string(name);
}

}  // namespace

std::string cpu_features() {
  std::string names;
#if defined(__x86_64__)
  // The compiler's support library also asks the operating system whether it saves the registers.
  add(names, __builtin_cpu_supports("avx2"), "avx2");
  add(names, __builtin_cpu_supports("fma"), "fma");
  add(names, __builtin_cpu_supports("avx512f"), "avx512f");
  add(names, __builtin_cpu_supports("avx512bw"), "avx512bw");
  add(names, __builtin_cpu_supports("avx512vl"), "avx512vl");
  add(names, __builtin_cpu_supports("avx512vbmi"), "avx512vbmi");
  add(names, __builtin_cpu_supports("avx512vnni"), "avx512vnni");
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kSimd = 1ul << 1;      // HWCAP_ASIMD
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  add(names, getauxval(AT_HWCAP) & kSimd, "neon");
  add(names, getauxval(AT_HWCAP) & kDotProduct, "dotprod");
#endif
  return names;
}

}  // namespace zq2onnx
