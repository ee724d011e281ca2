// The kernel variants of the grouped linear layer: their tile shapes, when each is correct, and which one runs where
// nothing was measured. See grouped.h and nexus/variants.h.
#include <algorithm>
#include <iterator>
#include <vector>

#include "data/cuda/gemv.h"
#include "data/cuda/grouped.h"
#include "data/cuda/hopper.h"

namespace nexus::cuda {
namespace {

// Shared memory: the pipeline's stages, or the float32 tile of the epilogue that follows in the same bytes; then 12
// bytes a row (its input row, output row and scale). The kernels static_assert the same sums.
constexpr size_t mma_shared(int bm, int bn, int bk, int stages) {
  const size_t pipeline = static_cast<size_t>(stages) * (bm + bn) * bk * 2;
  const size_t tile = static_cast<size_t>(bm) * (bn + 8) * 4;
  return std::max(pipeline, tile) + static_cast<size_t>(bm) * 12;
}
constexpr size_t simt_shared(int bm, int bn, int bk) {
  const size_t pipeline = static_cast<size_t>(2) * bk * (bm + bn + 8) * 4;
  const size_t tile = static_cast<size_t>(bm) * (bn + 8) * 4;
  return std::max(pipeline, tile) + static_cast<size_t>(bm) * 12;
}
constexpr Variant mma(const char* name, int bm, int bn, int bk, int stages, int warps, bool share_sm = false) {
  return {name, Kernel::kMma, SumOrder::kMma16, bm, bn, bk, stages, warps, mma_shared(bm, bn, bk, stages), share_sm};
}
// The walk's stages, 12 bytes a row of this tile and the next, and where the next is.
constexpr size_t wide_shared(int bm, int bn, int bk, int stages) {
  return static_cast<size_t>(stages) * (bm + bn) * bk * 2 + static_cast<size_t>(2) * bm * 12 + 16;
}
constexpr Variant simt(const char* name, int bm, int bn, int bk, int warps) {
  return {name, Kernel::kSimt, SumOrder::kSimt1, bm, bn, bk, 2, warps, simt_shared(bm, bn, bk)};
}

// Decode: 16 rows, narrow so that a handful of experts still cover the chip, 40 KiB of weights in flight per block,
// three blocks per SM.
constexpr Variant kMma16 = mma("mma_16x32x128_s6", 16, 32, 128, 6, 4);
// Beside a neighbour's block: half the shared memory, and at most 72 registers a thread with lanes, too.
constexpr Variant kMma16Share = mma("mma_16x32x128_s3", 16, 32, 128, 3, 4, true);
constexpr Variant kMma64 = mma("mma_64x128x64_s4", 64, 128, 64, 4, 4);
// Many rows: up to 80×64 per warp, where ldmatrix traffic and mma.sync balance; 256 columns because L2 feeds no smaller
// tile at full rate, and 160 rows because experts with about 128, 256 or 512 of them then need no tile for a few. On an
// H200 at 4096 tokens 14 to 23 % faster than tiles of 128 rows without its walk (docs/kernels/log.md, entry 10).
constexpr Variant kMmaWide{"mma_160x256x64_s3",         Kernel::kMma, SumOrder::kMma16, 160, 256, 64, 3, 8,
                           wide_shared(160, 256, 64, 3)};
// Where a block has no room for that, n is less than a tile or k is short: two blocks per SM hide one another's
// prologue and epilogue.
constexpr Variant kMma128x128 = mma("mma_128x128x64_s3", 128, 128, 64, 3, 4);
// Whole steps on an H200, us in wide tiles and in those of 64 rows: GPT-OSS at 32 rows an expert 467 and 446, at 64 488
// and 579; Qwen3 at 32 346 and 352, at 64 389 and 469. With fewer tiles than about a chip has SMs the narrow ones win:
// 512/1024/8/2 at 512 tokens, 64 tiles and 16, 57 and 46; at 4096, 448 and 112, 118 and 146.
constexpr int64_t kShortK = 256, kWideRows = 32, kWideTiles = 96;

// The rest is for Hopper, as measured on an H200 in whole steps rather than by linear layers alone
// (docs/kernels/log.md, entry 6): a step takes 3 to 5 us less where both layers of an MLP run the same kernel, so the
// rules give them the same where they can.
//
// Up to so many rows in all, tiles of 256 columns do not cover the chip, but 16x32 ones do (measured on GPT-OSS and
// Mixtral at 2 tokens).
constexpr int64_t kHandfulOfRows = 8;
// Mean rows an expert. Up to kFewRows, weights are all that matters, and the shapes with stages of 128 elements of k
// read them fastest (us, against 256x64x64: Qwen3 at 64 tokens, 4 rows, 283 and 288, Mixtral, 16 rows, 639 and 652).
// Which of them, by the tile's columns and rows: up to kHandful 128 columns (Qwen3 at 8 tokens 132 against 134), up to
// kFewerRows 256, from there tiles of 64 rows and 128 columns: where a few experts have most of the tokens, two tiles
// of 32 read their weights twice (OLMoE at 64 tokens, 8 rows, skewed, 116 against 111, even 194 against 195). With
// more rows hot experts have several tiles of 64 as well, and those of 128 columns read twice as much of their inputs:
// above kNarrowMost rows in all, or kNarrowMore where the mean is above kMoreRows (Qwen3 at 256 tokens, 16 rows, in
// 256x64x64 and 128x64x128: skewed 165 and 173, even 298 and 289; OLMoE, 32 rows, 161 and 180, even the same; but
// Mixtral at 128 tokens, 32 rows, 695 and 658, skewed 774 and 735). Over kPairRows, where one block's tile does not
// hold an expert, L2 is the limit, and blocks share weights in pairs: that wins up to 4 % at 700 W (Mixtral and
// DeepSeek-V2-Lite at 16384 tokens, 4096 and 1536 rows), 7 at 256 rows (Mixtral at 1024 tokens), and loses 1 to 2 % at
// 64 to 128. The rows an expert really has are cut up on the device (PairTurn in hopper_shape.h), so uneven loads do
// not lose. Beside a neighbour it was measured above kSharePairRows only.
constexpr int64_t kHandful = 2, kFewerRows = 4, kMoreRows = 24, kFewRows = 48, kPairRows = 160, kSharePairRows = 3072;
constexpr int64_t kNarrowMost = 1024, kNarrowMore = 512;
// Layers of few weights have too few tiles of 256 columns. Counted for the second layer, of which a gated first has
// twice as many: 512/1024/8/2, 8 MB, takes 17 us at 64 tokens and 25 at 512 against 28 and 41 in tiles of 160 rows and
// 256 columns. 1024/2048/16/2, 67 MB, is as fast either way at 64, but takes 67 us at 512, 64 rows an expert, instead
// of 72, and at 96 87 instead of 80 (log, entry 27).
constexpr int64_t kNarrowFewerRows = 32, kNarrowRows = 160;
constexpr int64_t kSomeWeightBytes = 96 << 20, kSomeRows = 72;
// Odd widths (hopper_rest.cuh). Rows of weights that begin in the middle of lines are twice as many requests of L2, of
// which a pair needs half, so pairs win from the rows an expert on that one block's tile does not hold
// (2056/776/64/8 at 128 rows 264 us alone and 286 in pairs, at 160 324 and 306, at 512 792 and 670, at 2048 2657 and
// 2407). Where only columns are left behind whole tiles they win 1 to 3 % (2880/2880/32/4 at 512 and 2048 rows). Few
// rows: 256x64x64 but for layers of few weights (520/1032/8/2 at 64 tokens 28.1 and 24.2) and at some 8 rows
// (1032/1048/16/2 49.5 and 48.1; at 2 36.4 and 37.2).
constexpr int64_t kFewerRestRows = 8, kPairRestRows = 152;
constexpr Variant kMmaGuarded{"mma_guarded_64x128x64_s2", Kernel::kMmaGuarded, SumOrder::kMma16, 64, 128, 64, 2, 4,
                              mma_shared(64, 128, 64, 2)};
constexpr Variant kGemv{"gemv_1x8", Kernel::kGemv, SumOrder::kGemv, 1, 8, 256, 1, 2, 0};
// Bytes of weights that the rows of a layer read, each for itself: up to kGemvFewBytes some may be read twice, but
// kGemvFewBytesDeep where the deep pipelines of the one launch of both Hopper layers take it otherwise. 16 rows in
// whole steps on an H200: 34 and 38 MB faster so (2048/1024/16/2, 768/1536/16/2), 67 MB slower by 11 to 25 %
// (1024/2048/16/2, 1024/2048/8/2, 2048/1024/16/4), but by the kernels of 8.0 faster there, too. Beyond kGemvMostBytes
// those pipelines read faster whatever the rows.
constexpr int64_t kGemvFewRows = 16, kGemvFewBytes = 70'000'000, kGemvFewBytesDeep = 50'000'000;
constexpr int64_t kGemvMostBytes = 240'000'000;
constexpr Variant kSimt16 = simt("simt_16x64x32", 16, 64, 32, 4);
// Both linear layers of 2048/1024/64/8 on an H200 at 16, 32, 64 and 128 rows an expert, ms: 0.93, 1.08, 1.91, 3.23;
// in tiles of 64x64 1.64, 1.66, 2.52, 4.19, of 128x128 2.40, 2.41, 2.42, 3.65 (docs/kernels/log.md, entry 39).
constexpr Variant kSimt32 = simt("simt_32x128x16", 32, 128, 16, 2);
constexpr Variant kSimt128 = simt("simt_128x128x16", 128, 128, 16, 8);
// Where, counted, what tiles of 128 rows gain by their size is what they lose by their last rows' places.
constexpr int64_t kSimtFewRows = 192;

}  // namespace

extern const Variant kSimt64 = simt("simt_64x64x16", 64, 64, 16, 8);

namespace {

/// Every variant but those made to share an SM. The Hopper ones lie in the files that compile their kernels.
const std::vector<const Variant*>& all() {
  static const auto* const variants = [] {  // never destroyed: layers may be made while the process ends
    return new std::vector<const Variant*>{&kGemv,
                                           &kMma16,
                                           &kMma64,
                                           &kMma128x128,
                                           &kMmaWide,
                                           &kMmaGuarded,
                                           &kWgmmaFew,
                                           &kWgmma,
                                           &kWgmmaPair,
                                           &kWgmmaFewer,
                                           &kWgmmaNarrow,
                                           &kWgmmaNarrowFewer,
                                           &kWgmmaNarrowMore,
                                           &kWgmmaRest,
                                           &kWgmmaPairRest,
                                           &kWgmmaFewRest,
                                           &kWgmmaNarrowFewerRest,
                                           &kSimt16,
                                           &kSimt32,
                                           &kSimt64,
                                           &kSimt128};
  }();
  return *variants;
}

/// Mean rows per expert, rounded up. Routing is known on the device only; experts far over the mean take several tiles.
int64_t mean_rows(const Problem& p) { return (p.rows + p.experts - 1) / p.experts; }

/// Below 64 columns most of the 256 of a tile would be idle; tensor maps count rows in 31 bits, and rows of the input
/// that are copied one by one begin at 32 bits' worth of 16 bytes (input_rows() in hopper_grouped.cuh).
/// A gated layer's weights come in sixteens of rows, eight gates and eight ups (weights_map()).
bool wgmma_fits(const Problem& p) {
  return p.hopper && p.aligned && p.dtype != DType::kF32 && p.n >= 64 && p.experts * p.n < int64_t{1} << 31 &&
         p.rows * (p.k / 8) <= int64_t{1} << 32 && (!p.gated || p.n % 16 == 0);
}

/// When rows are few enough for the matrix-vector kernel: so few over many experts that hardly any two share weights,
/// or with so little to read that it does not matter. A gated layer counts as half of what it is, which is as much as
/// the layer behind it, so that both choose alike.
bool few_for_gemv(const Problem& p) {
  const int64_t width = p.gated ? p.n / 2 : p.n;
  const int64_t bytes = p.rows * p.k * width * static_cast<int64_t>(size_of(p.dtype));
  const bool deep = p.hopper && p.dtype != DType::kF32 && p.rows > kHandfulOfRows;
  const bool few = p.rows == 1 || (p.rows <= kGemvFewRows &&
                                   (4 * p.rows <= p.experts || bytes <= (deep ? kGemvFewBytesDeep : kGemvFewBytes)));
  return p.aligned && few && bytes <= kGemvMostBytes;
}

const Variant& choose_simt(const Problem& p) {
  const int64_t mean = mean_rows(p);
  if (mean <= 8) return kSimt16;
  if (p.n < 128) return kSimt64;
  return mean <= kSimtFewRows ? kSimt32 : kSimt128;
}

/// Tiles of the wide shape, were the rows divided evenly.
int64_t wide_tiles(const Problem& p) {
  return std::min<int64_t>(p.experts, p.rows) * ((mean_rows(p) + 159) / 160) * ((p.n + 255) / 256);
}

const Variant& choose_mma(const Problem& p) {
  const int64_t mean = mean_rows(p);
  if (!p.aligned) return kMmaGuarded;
  if (mean <= 8) return kMma16;
  if (mean > kWideRows && p.n >= 256 && p.k > kShortK && fits(kMmaWide, p))
    return wide_tiles(p) >= kWideTiles ? kMmaWide : kMma64;
  if (mean > 96 && p.n >= 128 && fits(kMma128x128, p)) return kMma128x128;
  return kMma64;
}

/// Whether the shapes with stages of 128 elements of k can read the weights: by eights of rows, whole panels of 64.
bool deep_fits(const Problem& p) { return p.k % 64 == 0 && p.n % 8 == 0; }
/// Whether the shapes of hopper_rest.cuh have anything to do that others have not.
bool odd(const Problem& p) { return p.k % 64 != 0 || p.n % 256 != 0; }

const Variant& choose_wgmma(const Problem& p) {
  const int64_t mean = mean_rows(p), width = p.gated ? p.n / 2 : p.n;
  const int64_t bytes = p.experts * p.k * width * static_cast<int64_t>(size_of(p.dtype));
  if (deep_fits(p)) {
    if (bytes <= kFewWeightBytes && mean <= kNarrowRows)
      return mean <= kNarrowFewerRows ? kWgmmaNarrowFewer : kWgmmaNarrowMore;
    if (bytes <= kSomeWeightBytes && mean > kFewRows && mean <= kSomeRows) return kWgmmaNarrowMore;
    if (mean <= kHandful) return kWgmmaNarrowFewer;
    if (mean <= kFewerRows) return kWgmmaFewer;
    if (mean <= kFewRows && p.rows <= (mean <= kMoreRows ? kNarrowMost : kNarrowMore)) return kWgmmaNarrow;
  }
  const bool odd_k = p.k % 64 != 0;
  if (odd_k && mean <= kFewRows) {
    const bool narrow = bytes <= kFewWeightBytes || (mean > kHandful && mean <= kFewerRestRows);
    return narrow && p.n % 8 == 0 ? kWgmmaNarrowFewerRest : kWgmmaFewRest;
  }
  if (mean <= kFewRows) return kWgmmaFew;
  if (odd(p)) return mean > kPairRestRows ? kWgmmaPairRest : kWgmmaRest;
  return mean <= kPairRows ? kWgmma : kWgmmaPair;
}

}  // namespace

bool fits(const Variant& v, const Problem& p) {
  const bool half = p.dtype != DType::kF32;
  switch (v.kernel) {
    case Kernel::kGemv:
      return p.aligned && p.rows <= kGemvMostRows;
    case Kernel::kSimt:
      return !half && v.shared_bytes <= p.shared_limit;
    case Kernel::kMma:
      // The wide one counts 16-byte words of the input in 32 bits; it has no more rows than the output.
      return half && p.aligned && v.shared_bytes <= p.shared_limit &&
             (&v != &kMmaWide || p.rows <= int64_t{UINT32_MAX} / (p.k / 8));
    case Kernel::kMmaGuarded:
      return half && !p.aligned;
    case Kernel::kWgmma:
      if (!wgmma_fits(p) || v.shared_bytes > p.shared_limit) return false;
      return for_odd_widths(v) ? odd(p) && (v.bk == 64 || p.n % 8 == 0) : v.bk == 64 || deep_fits(p);
  }
  return false;
}

std::vector<const Variant*> candidates(const Problem& problem) {
  std::vector<const Variant*> found;
  std::copy_if(all().begin(), all().end(), std::back_inserter(found),
               [&](const Variant* v) { return fits(*v, problem); });
  return found;
}

SumOrder invariant_order(const Problem& p, const std::string* measured) {
  if (p.dtype == DType::kF32) return SumOrder::kSimt1;
  const bool wgmma = wgmma_fits(p);
  if (measured && *measured == name_of(SumOrder::kMma16)) return SumOrder::kMma16;
  return wgmma ? SumOrder::kWgmma64 : SumOrder::kMma16;
}

const Variant& choose(const Problem& p, const SumOrder* only) {
  if (only == nullptr) {
    if (few_for_gemv(p)) return kGemv;
    if (p.dtype == DType::kF32) return choose_simt(p);
    return wgmma_fits(p) && p.rows > kHandfulOfRows ? choose_wgmma(p) : choose_mma(p);
  }
  switch (*only) {
    case SumOrder::kSimt1:
      return choose_simt(p);
    case SumOrder::kMma16:
      return choose_mma(p);
    case SumOrder::kWgmma64:
      return choose_wgmma(p);
    case SumOrder::kGemv:
      return kGemv;
  }
  return choose_mma(p);
}

const Variant& choose(const Problem& p, const VariantKey& key, const VariantChoice& choice) {
  const auto find = [&](std::string_view name) -> const Variant* {
    const auto found = std::find_if(all().begin(), all().end(), [&](const Variant* v) { return name == v->name; });
    return found != all().end() && fits(**found, p) ? *found : nullptr;
  };
  if (!choice.variant.empty()) {
    if (const Variant* named = find(choice.variant)) return *named;
    throw_invalid("variant: expected a candidate for this layer and " + std::to_string(p.rows) + " rows, got '" +
                  std::string(choice.variant) + "'");
  }
  SumOrder order{};
  const SumOrder* only = nullptr;
  if (choice.batch_invariant) {
    order = invariant_order(p, choice.table ? choice.table->order(key) : nullptr);
    only = &order;
  }
  const auto* measured = choice.table ? choice.table->choice(key, p.rows) : nullptr;
  if (measured != nullptr)
    for (const std::string& name : *measured)
      if (const Variant* known = find(name); known && (!only || known->order == *only)) return *known;
  return choose(p, only);
}

const Variant& choose(DType dtype, int64_t k, int64_t n, int experts, int64_t max_rows, bool aligned,
                      size_t shared_limit, bool hopper) {
  return choose(Problem{dtype, k, n, experts, max_rows, aligned, shared_limit, hopper});
}

const Variant& share_sm(const Variant& variant, const Problem& p) {
  const Variant& chosen = plain_shape(variant);
  if (&chosen == &kMma16) return kMma16Share;
  if (&chosen == &kWgmma || &chosen == &kWgmmaFew) return kWgmmaShare;
  if (&chosen == &kWgmmaPair) return mean_rows(p) <= kSharePairRows ? kWgmmaShare : kWgmmaSharePair;
  return chosen;
}

}  // namespace nexus::cuda
