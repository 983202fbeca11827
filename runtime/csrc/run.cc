#include "run.h"

#include <algorithm>

#include "error.h"
#include "scratch.h"

namespace zq2onnx {
namespace {

// Channels of U that are summed by one piece: a single token's branch is work for all threads.
constexpr int64_t kSegment = 512;

// Products below which a step is done at once by the thread that asks: waking others takes longer.
constexpr int64_t kLittle = 1 << 17;

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

}  // namespace

Run::Run(const Requirements& requirements, const TensorRefs& tensors, int64_t tokens, void* y,
         const Functions& functions)
    : requirements_(requirements),
      tensors_(tensors),
      geometry_(requirements.geometry),
      all_tokens_(tokens),
      y_(y),
      functions_(functions),
      form_(functions.kernel.form(tokens)) {
  if (!requirements.op->lorc) return;
  rank_ = tensors[kU]->shape[1];
  branch_in_ = functions.kernel.branch.in(tensors[kU]->type);
  branch_out_ = functions.kernel.branch.out(tensors[kV]->type);
}

const float* Run::floats() const {
  if (memory_.wide) return memory_.wide;
  return static_cast<const float*>(tensors_[kA]->data) + first_ * geometry_.k;
}

int64_t Run::segments() const { return rank_ ? divide_up(geometry_.k, kSegment) : 0; }

int64_t Run::groups() const { return divide_up(tokens_, form_.group); }

void Run::start(const ort::Api* api, const ort::KernelContext* context) {
  const int64_t most = std::min(all_tokens_, Tile::kMaxTokens);
  const auto size = [](int64_t a, int64_t b = 1) { return static_cast<size_t>(a) * static_cast<size_t>(b); };
  const size_t wide = requirements_.type == ort::ElementType::kFloat ? 0 : size(most, geometry_.k);
  const size_t prepared = size(form_.bytes(geometry_, most));
  const size_t partial = size(most, segments()) * size(rank_);
  const size_t components = size(most, rank_);
  size_t bytes = Scratch::rounded(prepared);
  for (size_t count : {wide, partial, components, size(rank_)}) bytes += Scratch::rounded(count * sizeof(float));
  Scratch scratch(bytes);
  memory_.prepared = scratch.take<std::byte>(prepared);
  memory_.wide = wide ? scratch.take<float>(wide) : nullptr;
  memory_.partial = scratch.take<float>(partial);
  memory_.components = scratch.take<float>(components);
  memory_.factor_scales = scratch.take<float>(size(rank_));
  scale_factors();
  for (first_ = 0; first_ < all_tokens_; first_ += Tile::kMaxTokens) {
    tokens_ = std::min(Tile::kMaxTokens, all_tokens_ - first_);
    compute_tokens(api, context);
  }
}

void Run::scale_factors() {
  if (!rank_) return;
  const auto& u = *tensors_[kUScales];
  const auto& v = *tensors_[kVScales];
  for (int64_t r = 0; r < rank_; ++r) {
    float each[2];
    functions_.widen(element(u.data, u.type, r), 1, &each[0]);
    functions_.widen(element(v.data, v.type, r), 1, &each[1]);
    memory_.factor_scales[r] = each[0] * each[1];
  }
}

void Run::compute_tokens(const ort::Api* api, const ort::KernelContext* context) {
  const auto each = [&](void (*step)(void*, size_t), int64_t count, int64_t products) {
    if (products < kLittle) {
      for (int64_t at = 0; at < count; ++at) step(this, static_cast<size_t>(at));
      return;
    }
    check(api->call<ort::KernelContextParallelFor>(context, step, static_cast<size_t>(count), size_t{0},
                                                   static_cast<void*>(this)));
  };
  const int64_t numbers = tokens_ * geometry_.k;
  if (memory_.wide) {
    each([](void* run, size_t at) { static_cast<Run*>(run)->widen_token(static_cast<int64_t>(at)); }, tokens_,
         numbers);
  }
  each([](void* run, size_t at) { static_cast<Run*>(run)->prepare_piece(static_cast<int64_t>(at)); },
       groups() + divide_up(tokens_, Branch::kTokens) * segments(), numbers * (rank_ + 1));
  sum_components();
  each([](void* run, size_t at) { static_cast<Run*>(run)->multiply_rows(static_cast<int64_t>(at)); },
       divide_up(geometry_.n, Tile::kMaxRows), numbers * geometry_.n);
}

void Run::widen_token(int64_t token) {
  const int64_t k = geometry_.k;
  functions_.widen(element(tensors_[kA]->data, requirements_.type, (first_ + token) * k), k,
                   memory_.wide + token * k);
}

void Run::prepare_piece(int64_t piece) {
  if (piece < groups()) {
    form_.prepare(geometry_, floats(), tokens_, piece * form_.group, memory_.prepared);
    return;
  }
  const int64_t at = piece - groups();
  const int64_t token = at / segments() * Branch::kTokens;
  const int64_t segment = at % segments();
  const int64_t channel = segment * kSegment;
  const int64_t stride = segments() * rank_;
  const auto& u = *tensors_[kU];
  branch_in_(floats() + token * geometry_.k + channel, geometry_.k, std::min(Branch::kTokens, tokens_ - token),
             element(u.data, u.type, channel * rank_), std::min(kSegment, geometry_.k - channel), rank_,
             memory_.partial + token * stride + segment * rank_, stride);
}

void Run::sum_components() {
  for (int64_t token = 0; token < (rank_ ? tokens_ : 0); ++token) {
    float* to = memory_.components + token * rank_;
    std::fill_n(to, rank_, 0.0f);
    for (int64_t segment = 0; segment < segments(); ++segment) {
      const float* part = memory_.partial + (token * segments() + segment) * rank_;
      for (int64_t r = 0; r < rank_; ++r) to[r] += part[r];
    }
    for (int64_t r = 0; r < rank_; ++r) to[r] *= memory_.factor_scales[r];
  }
}

void Run::multiply_rows(int64_t piece) {
  const Weight weight{&geometry_, static_cast<const uint8_t*>(tensors_[kB]->data),
                      static_cast<const uint8_t*>(tensors_[kZeroPoints]->data), tensors_[kScales]->data,
                      tensors_[kScales]->type};
  alignas(64) float out[Tile::kMaxTokens * Tile::kMaxRows];
  const int64_t row = piece * Tile::kMaxRows;
  // Few bytes of many rows, asked for long before they are used.
  for (int64_t r = 0; r < rank_; ++r) {
    __builtin_prefetch(element(tensors_[kV]->data, tensors_[kV]->type, r * geometry_.n + row));
  }
  const Tile tile{tokens_, row, std::min(Tile::kMaxRows, geometry_.n - row)};
  form_.multiply(weight, memory_.prepared, tile, out);
  finish(tile, out);
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
  if (rank_) {
    const auto& v = *tensors_[kV];
    branch_out_(memory_.components, element(v.data, v.type, tile.row), rank_, geometry_.n, tile.tokens, tile.rows,
                out);
  }
  void* y = static_cast<char*>(y_) + (first_ * geometry_.n + tile.row) * size_of(requirements_.type);
  functions_.narrow(out, bias, tile.tokens, tile.rows, geometry_.n, y);
}

}  // namespace zq2onnx
