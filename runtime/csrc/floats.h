// float16 and bfloat16 as storage: converted to and from float32, in which everything is computed.
#pragma once

#include <cstdint>
#include <cstring>

#include "ort_abi.h"

namespace zq2onnx {

struct Half {
  uint16_t bits;
};

struct Bfloat {
  uint16_t bits;
};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(float value) { return value; }
inline float to_float(int8_t value) { return static_cast<float>(value); }
inline float to_float(Bfloat value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

inline float to_float(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t rest = value.bits & 0x7fffu;
  if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | rest << 13);  // infinite, or no number
  if (rest >= 0x0400u) return float_of(sign | ((rest << 13) + 0x38000000u));
  // Subnormal: `rest` steps of 2^-24.
  return float_of(sign | bits_of(static_cast<float>(rest) * 0x1p-24f));
}

template <typename T>
T from_float(float value);

template <>
inline float from_float<float>(float value) {
  return value;
}

template <>
inline Bfloat from_float<Bfloat>(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};  // half to even
}

template <>
inline Half from_float<Half>(float value) {
  const uint32_t bits = bits_of(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t rest = bits & 0x7fffffffu;
  const auto with_sign = [sign](uint32_t half) { return Half{static_cast<uint16_t>(sign | half)}; };
  if (rest > 0x7f800000u) return with_sign(0x7e00u);
  if (rest >= 0x477ff000u) return with_sign(0x7c00u);  // 65520 and more
  if (rest >= 0x38800000u) return with_sign((rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13);
  // Subnormal: the addition rounds to steps of 2^-24, half to even, and leaves their number in the last bits.
  return with_sign(bits_of(float_of(rest) + 0.5f) - bits_of(0.5f));
}

// Calls `body` with a value of the type that `type` stands for: float, Half, Bfloat or int8_t.
template <typename Body>
auto with_type(ort::ElementType type, Body&& body) {
  switch (type) {
    case ort::ElementType::kFloat16: return body(Half{});
    case ort::ElementType::kBfloat16: return body(Bfloat{});
    case ort::ElementType::kInt8: return body(int8_t{});
    default: return body(float{});
  }
}

}  // namespace zq2onnx
