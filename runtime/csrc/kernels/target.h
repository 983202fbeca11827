// Instruction sets beyond the compiler's own, for the rest of a translation unit:
//
//   #include <..>                   all that others compile too: what is inline there must not need the set
//   ZQ2ONNX_BEGIN_TARGET("avx2")
//   #include "find.h"
//   ..
//   ZQ2ONNX_END_TARGET              the last line
#pragma once

#define ZQ2ONNX_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define ZQ2ONNX_BEGIN_TARGET(features) \
  ZQ2ONNX_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define ZQ2ONNX_END_TARGET ZQ2ONNX_PRAGMA(clang attribute pop)
#else
// Never taken back: templates are instantiated where the unit ends.
#define ZQ2ONNX_BEGIN_TARGET(features) ZQ2ONNX_PRAGMA(GCC target(features))
#define ZQ2ONNX_END_TARGET
#endif
