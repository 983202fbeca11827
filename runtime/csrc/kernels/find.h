// All kernels of one set of vector instructions.
#pragma once

#include "branches.h"
#include "few_floats.h"
#include "few_integers.h"
#include "many_floats.h"
#include "many_integers.h"

namespace zq2onnx {

template <class S, Storage storage>
void take_floats(Kernel& kernel) {
  using F = FewFloats<S, storage>;
  using M = ManyFloats<S, storage>;
  kernel.few = {1, F::bytes, F::prepare, F::multiply};
  kernel.many = {S::kLanes, M::bytes, M::prepare, M::multiply};
}

template <class S, Storage storage, bool per_block>
void take_integers(Kernel& kernel) {
  using F = FewIntegers<S, storage, per_block>;
  using M = ManyIntegers<S, storage, per_block>;
  kernel.few = {1, F::bytes, F::prepare, F::multiply};
  kernel.many = {S::kLanes, M::bytes, M::prepare, M::multiply};
}

template <class S, Storage storage, bool floats>
void take(Activation activation, Kernel& kernel) {
  if constexpr (storage != Storage::kWholeBytes) {
    if constexpr (floats) {
      if (activation == Activation::kFloat) return take_floats<S, storage>(kernel);
    }
    if (activation == Activation::kInt8PerToken) return take_integers<S, storage, false>(kernel);
  }
  if constexpr (storage != Storage::kHalfBytes) take_integers<S, storage, true>(kernel);
}

// Whether there is a kernel, and which. A lane of 3-bit codes takes 32 of one block, which shorter blocks lack. Without
// `floats`, a set that multiplies integers alone better than another leaves all else to it.
template <class S, bool floats = true>
bool find_kernel_of(Storage storage, Activation activation, int64_t block, Kernel& kernel) {
  if (storage == Storage::kThreeBits && block < 32) storage = Storage::kFourBits;  // ChunkReader makes them so
  if (!floats && activation == Activation::kFloat) return false;
  kernel.few_tokens = S::kFewTokens;
  kernel.branch = {Branches<S>::in, Branches<S>::out};
  switch (storage) {
    case Storage::kTwoBits: take<S, Storage::kTwoBits, floats>(activation, kernel); break;
    case Storage::kThreeBits: take<S, Storage::kThreeBits, floats>(activation, kernel); break;
    case Storage::kFourBits: take<S, Storage::kFourBits, floats>(activation, kernel); break;
    case Storage::kHalfBytes: take<S, Storage::kHalfBytes, floats>(activation, kernel); break;
    case Storage::kWholeBytes: take<S, Storage::kWholeBytes, floats>(activation, kernel); break;
  }
  return true;
}

}  // namespace zq2onnx
