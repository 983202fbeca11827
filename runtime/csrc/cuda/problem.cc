#include "problem.h"

#include <algorithm>
#include <string>

#include "../error.h"

namespace zq2onnx::cuda {
namespace {

constexpr int64_t kWholeBytes = 9;         // the bits of codes that are stored as whole bytes
constexpr int64_t kNoBound = 1 << 30;      // the group of a row that has one scale
constexpr int64_t kNoShift = 30;           // its power of two
constexpr int64_t kRoundTile = 256;        // channels that the prologue reads at once
constexpr int64_t kRankTile = 16;          // ranks that it multiplies at once
constexpr int64_t kTokenTile = 16;         // tokens that it reads at once
constexpr int64_t kMostParts = 16;
constexpr int64_t kEnoughBlocks = 64;

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

// -1 where it is no power of two.
int64_t shift_of(int64_t size) { return size & (size - 1) ? -1 : __builtin_ctzll(static_cast<uint64_t>(size)); }

template <typename Name, typename Names>
std::optional<Name> named(const Names& names, std::string_view name) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) return std::nullopt;
  return static_cast<Name>(found - names.begin());
}

// Kernels find a zero point by its group: a byte is of one scale's blocks, or of two blocks with a scale each.
void require_zero_points_by_group(const Geometry& g, bool whole) {
  const bool fits = whole || g.scale_repeat == 1
                        ? g.zero_repeat == g.scale_repeat
                        : g.zero_repeat * 2 == g.scale_repeat || (g.groups == 1 && g.zero_bytes == 1);
  if (fits) return;
  throw Error("attributes scale_repeat = " + std::to_string(g.scale_repeat) +
                  " and zero_point_repeat = " + std::to_string(g.zero_repeat),
              "zero points that are shared by as many blocks as scales are");
}

// Of what is indexed by 32-bit integers.
void require_indexable(const char* what, int64_t a, int64_t b, int64_t c = 1) {
  int64_t product;
  if (!__builtin_mul_overflow(a, b, &product) && !__builtin_mul_overflow(product, c, &product) &&
      product <= kMostSize) {
    return;
  }
  throw Error(std::string(what) + " have more than 2^31 - 1 elements", "fewer on a GPU");
}

}  // namespace

std::optional<Size> size_named(std::string_view name) { return named<Size>(kSizeNames, name); }

std::optional<Array> array_named(std::string_view name) { return named<Array>(kArrayNames, name); }

Sizes kind_sizes(const Operator& op) {
  Sizes sizes;
  sizes[Size::kBits] = op.storage() == Storage::kWholeBytes ? kWholeBytes : op.bits;
  switch (op.activation) {
    case Activation::kFloat: sizes[Size::kRounds] = 0; break;
    case Activation::kInt8PerToken: sizes[Size::kRounds] = 1; break;
    case Activation::kInt8PerBlock: sizes[Size::kRounds] = 2; break;
  }
  return sizes;
}

Sizes node_sizes(const Operator& op, const Geometry& g) {
  const bool whole = op.storage() == Storage::kWholeBytes;
  const bool by_block = op.activation == Activation::kInt8PerBlock;
  require_zero_points_by_group(g, whole);
  // Kernels count up to a tile beyond a row.
  require_indexable("rows of B", std::max(divide_up(g.k, kRoundTile) + 1, divide_up(g.k_blocks * g.block, kRoundTile)),
                    kRoundTile);
  require_indexable("zero_points", g.rows, g.zero_bytes);
  require_indexable("scales", g.n, g.groups);
  Sizes sizes = kind_sizes(op);
  sizes[Size::kN] = g.n;
  sizes[Size::kK] = g.k;
  sizes[Size::kBlock] = g.block;
  sizes[Size::kBlocksOfK] = g.k_blocks;
  sizes[Size::kKPadded] = divide_up(g.k, kRoundTile) * kRoundTile;
  sizes[Size::kRowBytes] = g.k_blocks * g.block_bytes;
  sizes[Size::kGroup] = g.groups > 1 ? g.block * g.scale_repeat : kNoBound;
  sizes[Size::kGroupShift] = g.groups > 1 ? shift_of(g.block * g.scale_repeat) : kNoShift;
  sizes[Size::kGroups] = g.groups;
  sizes[Size::kZeroBytes] = g.zero_bytes;
  sizes[Size::kZeroPacked] = g.scale_repeat == 1 && !whole;
  sizes[Size::kXShift] = by_block ? shift_of(g.block) : kNoShift;
  sizes[Size::kXBlocks] = by_block ? g.k_blocks : 1;
  return sizes;
}

void add_run(Sizes& sizes, const RunSizes& run) {
  const int64_t ranks = std::max<int64_t>(run.rank, 1);
  const int64_t blocks = divide_up(run.tokens, kTokenTile) * divide_up(ranks, kRankTile);
  const int64_t parts = std::min({kMostParts, sizes[Size::kKPadded] / kRoundTile, kEnoughBlocks / blocks});
  sizes[Size::kM] = run.tokens;
  sizes[Size::kRank] = run.rank;
  sizes[Size::kRankOrOne] = ranks;
  sizes[Size::kParts] = std::max<int64_t>(1, parts);
  sizes[Size::kHasBias] = run.bias;
  sizes[Size::kUInt8] = run.int8_u;
  sizes[Size::kVInt8] = run.int8_v;
  require_indexable("tokens", run.tokens, 1);
  require_indexable("factors", run.rank, std::max(sizes[Size::kN], sizes[Size::kK]));
  require_indexable("branches of all tokens", run.tokens, run.rank, sizes[Size::kParts]);
}

}  // namespace zq2onnx::cuda
