#include "run.h"

#include <algorithm>

#include "error.h"

namespace zq2onnx {
namespace {

std::vector<float> as_floats(const Tensor& tensor, int64_t size) {
  std::vector<float> values(static_cast<size_t>(size));
  find_widen(tensor.type)(tensor.data, size, values.data());
  return values;
}

}  // namespace

Run::Run(const Requirements& requirements, const Tensors& tensors, int64_t tokens, void* y, Functions functions)
    : requirements_(requirements),
      tensors_(tensors),
      geometry_(requirements.geometry),
      tokens_(tokens),
      y_(y),
      functions_(functions),
      rounds_(requirements.op->activation != Activation::kFloat) {
  const auto size = [](int64_t a, int64_t b) { return static_cast<size_t>(a) * static_cast<size_t>(b); };
  if (requirements.type != ort::ElementType::kFloat) wide_.resize(size(tokens, geometry_.k));
  if (rounds_) {
    const bool per_block = requirements.op->activation == Activation::kInt8PerBlock;
    codes_.resize(size(tokens, geometry_.k));
    scales_.resize(size(tokens, per_block ? geometry_.k_blocks : 1));
  }
  if (requirements.op->lorc) {
    rank_ = tensors[kU]->shape[1];
    branch_in_ = find_branch_in(tensors[kU]->type);
    branch_out_ = find_branch_out(tensors[kV]->type);
    components_.resize(size(tokens, rank_));
    factor_scales_ = as_floats(*tensors[kUScales], rank_);
    const std::vector<float> v_scales = as_floats(*tensors[kVScales], rank_);
    for (size_t r = 0; r < v_scales.size(); ++r) factor_scales_[r] *= v_scales[r];
  }
}

void Run::start(const ort::Api* api, const ort::KernelContext* context) {
  const auto each = [&](void (*step)(void*, size_t), int64_t count) {
    check(api->call<ort::KernelContextParallelFor>(context, step, static_cast<size_t>(count), size_t{0},
                                                   static_cast<void*>(this)));
  };
  if (!wide_.empty() || rounds_ || branch_in_) {
    each([](void* run, size_t token) { static_cast<Run*>(run)->prepare_token(static_cast<int64_t>(token)); },
         tokens_);
  }
  each([](void* run, size_t piece) { static_cast<Run*>(run)->multiply_rows(static_cast<int64_t>(piece)); },
       (geometry_.n + Tile::kMaxRows - 1) / Tile::kMaxRows);
}

void Run::prepare_token(int64_t token) {
  const int64_t k = geometry_.k;
  const void* own = element(tensors_[kA]->data, requirements_.type, token * k);
  const float* a = static_cast<const float*>(own);
  if (!wide_.empty()) {
    float* wide = wide_.data() + token * k;
    functions_.widen(own, k, wide);
    a = wide;
  }
  if (rounds_) round_token(token, a);
  if (branch_in_) {
    float* components = components_.data() + token * rank_;
    branch_in_(a, tensors_[kU]->data, k, rank_, components);
    for (int64_t r = 0; r < rank_; ++r) components[r] *= factor_scales_[static_cast<size_t>(r)];
  }
}

void Run::round_token(int64_t token, const float* a) {
  const int64_t k = geometry_.k;
  int8_t* codes = codes_.data() + token * k;
  if (requirements_.op->activation == Activation::kInt8PerToken) {
    scales_[static_cast<size_t>(token)] = round_to_int8(a, k, codes);
    return;
  }
  float* scales = scales_.data() + token * geometry_.k_blocks;
  for (int64_t index = 0; index < geometry_.k_blocks; ++index) {
    const int64_t start = index * geometry_.block;
    scales[index] = round_to_int8(a + start, std::min(geometry_.block, k - start), codes + start);
  }
}

void Run::multiply_rows(int64_t piece) {
  const Weight weight{&geometry_, static_cast<const uint8_t*>(tensors_[kB]->data),
                      static_cast<const uint8_t*>(tensors_[kZeroPoints]->data), tensors_[kScales]->data};
  const float* floats = wide_.empty() ? static_cast<const float*>(tensors_[kA]->data) : wide_.data();
  const Activations activations{rounds_ ? nullptr : floats, codes_.data(), scales_.data()};
  float out[Tile::kMaxTokens * Tile::kMaxRows];
  Tile tile{};
  tile.row = piece * Tile::kMaxRows;
  tile.rows = std::min(Tile::kMaxRows, geometry_.n - tile.row);
  for (tile.token = 0; tile.token < tokens_; tile.token += Tile::kMaxTokens) {
    tile.tokens = std::min(Tile::kMaxTokens, tokens_ - tile.token);
    functions_.product(weight, activations, tile, out);
    finish(tile, out);
  }
}

// Adds branch and bias, and writes the tile.
void Run::finish(const Tile& tile, float* out) {
  float bias[Tile::kMaxRows] = {};
  if (tensors_[kBias]) {
    const auto& [data, type, shape] = *tensors_[kBias];
    functions_.widen(element(data, type, tile.row), tile.rows, bias);
    if (geometry_.rows != geometry_.n) {  // each half byte's result has its own
      float high[Tile::kMaxRows];
      functions_.widen(element(data, type, geometry_.n + tile.row), tile.rows, high);
      for (int64_t r = 0; r < tile.rows; ++r) bias[r] += high[r];
    }
  }
  for (int64_t t = 0; t < tile.tokens; ++t) {
    float* row = out + t * Tile::kMaxRows;
    const int64_t token = tile.token + t;
    if (branch_out_ && rank_ > 0) {
      const void* v = element(tensors_[kV]->data, tensors_[kV]->type, tile.row);
      branch_out_(components_.data() + token * rank_, v, rank_, geometry_.n, tile.rows, row);
    }
    for (int64_t r = 0; r < tile.rows; ++r) row[r] += bias[r];
    functions_.narrow(row, tile.rows, token * geometry_.n + tile.row, y_);
  }
}

}  // namespace zq2onnx
