#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace zq2onnx {
namespace {

void add(std::string& names, bool found, const char* name) {
  if (found) names += (names.empty() ? "" : " ") + std::string(name);
}

}  // namespace

#if defined(__x86_64__)

// The compiler's support library also asks the operating system whether it saves the registers.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

// Not every compiler that knows the instructions knows their name.
bool has_avx_vnni() {
  unsigned a, b, c, d;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1u << 4;
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

#else

bool has_avx2() { return false; }
bool has_avx_vnni() { return false; }
bool has_avx512() { return false; }

#endif

#if defined(__aarch64__) && defined(__linux__)
bool has_dot_product() { return getauxval(AT_HWCAP) & 1ul << 20; }  // HWCAP_ASIMDDP
#else
bool has_dot_product() { return false; }
#endif

std::string cpu_features() {
  std::string names;
#if defined(__x86_64__)
  add(names, __builtin_cpu_supports("avx2"), "avx2");
  add(names, __builtin_cpu_supports("fma"), "fma");
  add(names, has_avx_vnni(), "avxvnni");
  add(names, __builtin_cpu_supports("avx512f"), "avx512f");
  add(names, __builtin_cpu_supports("avx512bw"), "avx512bw");
  add(names, __builtin_cpu_supports("avx512dq"), "avx512dq");
  add(names, __builtin_cpu_supports("avx512vl"), "avx512vl");
  add(names, __builtin_cpu_supports("avx512vnni"), "avx512vnni");
#elif defined(__aarch64__)
  add(names, true, "neon");
  add(names, has_dot_product(), "dotprod");
#endif
  return names;
}

}  // namespace zq2onnx
