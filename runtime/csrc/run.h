// One run of one node: the steps, each in pieces that any number of threads may take in any order.
#pragma once

#include <cstdint>

#include "kernels/prepare.h"
#include "kernels/product.h"
#include "ort_abi.h"
#include "tensors.h"

namespace zq2onnx {

struct Functions {
  Widen widen;
  Narrow narrow;
  Kernel kernel;
};

class Run {
 public:
  Run(const Requirements& requirements, const TensorRefs& tensors, int64_t tokens, void* y, const Functions& functions);

  // Runs on ONNX Runtime's own threads. Pieces do not depend on their number: nor does any bit of the result.
  void start(const ort::Api* api, const ort::KernelContext* context);

 private:
  // Memory of the tokens that are computed together.
  struct Memory {
    float* wide;            // A as float32, where it is not so already
    std::byte* prepared;    // A as the kernel reads it
    float* partial;         // A·U, by segments of channels
    float* components;      // A·U with both scales, [tokens, rank]
    float* factor_scales;   // U_scales * V_scales
  };

  void compute_tokens(const ort::Api* api, const ort::KernelContext* context);
  void scale_factors();
  void widen_token(int64_t token);
  void prepare_piece(int64_t piece);
  void sum_components();
  void multiply_rows(int64_t piece);
  void finish(const Tile& tile, float* out);

  const float* floats() const;
  int64_t segments() const;
  int64_t groups() const;

  const Requirements& requirements_;
  const TensorRefs& tensors_;
  const Geometry& geometry_;
  const int64_t all_tokens_;
  void* y_;
  const Functions& functions_;
  const Form& form_;
  int64_t rank_ = 0;  // 0 without a branch
  Branch::In branch_in_ = nullptr;
  Branch::Out branch_out_ = nullptr;
  Memory memory_{};
  int64_t first_ = 0;   // of the tokens that are computed together
  int64_t tokens_ = 0;  // their number
};

}  // namespace zq2onnx
