// One run of one node: the steps, each in pieces that any number of threads may take in any order.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/prepare.h"
#include "kernels/product.h"
#include "ort_abi.h"
#include "tensors.h"

namespace zq2onnx {

struct Functions {
  Widen widen;
  Narrow narrow;
  ProductKernel product;
};

class Run {
 public:
  // Takes the memory that the steps need, so that they themselves allocate none.
  Run(const Requirements& requirements, const Tensors& tensors, int64_t tokens, void* y, Functions functions);

  // Runs on ONNX Runtime's own threads. Pieces do not depend on their number: nor does any bit of the result.
  void start(const ort::Api* api, const ort::KernelContext* context);

 private:
  void prepare_token(int64_t token);
  void round_token(int64_t token, const float* a);
  void multiply_rows(int64_t piece);
  void finish(const Tile& tile, float* out);

  const Requirements& requirements_;
  const Tensors& tensors_;
  const Geometry& geometry_;
  int64_t tokens_;
  void* y_;
  Functions functions_;
  bool rounds_;
  BranchIn branch_in_ = nullptr;  // null without a branch
  BranchOut branch_out_ = nullptr;
  int64_t rank_ = 0;
  std::vector<float> wide_;          // A as float32, where it is not so already
  std::vector<int8_t> codes_;        // A as int8, and its scales
  std::vector<float> scales_;
  std::vector<float> components_;    // A·U with both scales, [tokens, rank]
  std::vector<float> factor_scales_;  // U_scales * V_scales
};

}  // namespace zq2onnx
