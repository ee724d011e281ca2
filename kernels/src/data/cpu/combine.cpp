// cpu::combine and the unfused operations: memory-bound loops over rows, widened to float32 in pieces that stay in the
// first cache. Each output element is written by one task, its terms added in slot order.
#include <algorithm>
#include <cstring>

#include "data/backend.h"
#include "data/cpu/isa.h"
#include "data/cpu/step.h"
#include "exec/step.h"

namespace nexus::cpu {
namespace {

constexpr int64_t kPiece = 512;  // columns at a time
int64_t pieces_of(int64_t width) { return (width + kPiece - 1) / kPiece; }

struct Rows {  // a matrix of one dtype seen in pieces of rows
  const Isa& isa;
  DType dtype;
  int64_t size;
  Rows(const Isa& table, DType t) : isa(table), dtype(t), size(static_cast<int64_t>(size_of(t))) {}
  void load(const void* base, int64_t at, int64_t n, float* to) const {
    isa.to_f32[static_cast<int>(dtype)](static_cast<const char*>(base) + at * size, to, n);
  }
  void store(const float* from, void* base, int64_t at, int64_t n) const {
    isa.from_f32[static_cast<int>(dtype)](from, static_cast<char*>(base) + at * size, n);
  }
};

/// body(row, first column, columns) over all rows and pieces; several rows per task so that a task is worth its
/// dispatch.
template <class F>
void for_pieces(int64_t rows, int64_t width, const F& body) {
  const int64_t pieces = pieces_of(width), total = rows * pieces;
  constexpr int64_t kPerTask = 16;
  parallel_for((total + kPerTask - 1) / kPerTask, [&](int64_t task) {
    for (int64_t i = task * kPerTask; i < std::min(total, (task + 1) * kPerTask); ++i) {
      const int64_t c = i % pieces * kPiece;
      body(i / pieces, c, std::min(kPiece, width - c));
    }
  });
}

void run_combine(const CombineArgs& given) {
  const Isa& table = isa();
  CombineArgs a = given;
  if (a.step) {
    a.tokens = step_tokens(*a.step, a.tokens);
    a.out = step_memory("out", a.step->out, a.tokens);
  }
  const Rows rows(table, a.dtype);
  for_pieces(a.tokens, a.width, [&](int64_t t, int64_t c, int64_t n) {
    float sum[kPiece], value[kPiece];
    for (int64_t j = 0; j < a.top_k; ++j) {
      const int64_t slot = t * a.top_k + j;
      const float w = a.weights ? a.weights[slot] : 1.f;
      rows.load(a.rows, slot * a.width + c, n, value);
      if (a.mode == CombineMode::kConcat) {
        table.axpy(w, value, sum, n, true);
        rows.store(sum, a.out, slot * a.width + c, n);
      } else {
        table.axpy(w, value, sum, n, j == 0);
      }
    }
    if (a.mode == CombineMode::kConcat) return;
    if (a.shared) {
      rows.load(a.shared, t * a.width + c, n, value);
      table.axpy(a.shared_scale ? a.shared_scale[t] : 1.f, value, sum, n, false);
    }
    rows.store(sum, a.out, t * a.width + c, n);
  });
}

void run_shared_gate(const SharedGateArgs& given) {
  const Isa& table = isa();
  SharedGateArgs a = given;
  if (a.step) {
    a.tokens = step_tokens(*a.step, a.tokens);
    a.x = step_memory("x", a.step->x, a.tokens);
  }
  const int type = static_cast<int>(a.dtype);
  // The gate is one row against all tokens: the dot kernel with the tokens in the place of the weights.
  std::vector<float> gate(static_cast<size_t>((a.hidden + kPad - 1) / kPad * kPad), 0.f);
  table.to_f32[type](a.weight, gate.data(), a.hidden);
  constexpr int64_t kTokens = 32;
  parallel_for((a.tokens + kTokens - 1) / kTokens, [&](int64_t b) {
    const int64_t first = b * kTokens, n = std::min(kTokens, a.tokens - first);
    const char* x = static_cast<const char*>(a.x) + first * a.hidden * static_cast<int64_t>(size_of(a.dtype));
    table.dot[type]({.x = gate.data(),
                     .ldx = 0,
                     .rows = 1,
                     .w = x,
                     .k = a.hidden,
                     .depth = a.hidden,
                     .columns = n,
                     .c = a.scale + first,
                     .ldc = n});
    table.sigmoid(a.scale + first, a.scale + first, n);
  });
}

}  // namespace

void combine(Stream& stream, const CombineArgs& args) {
  stream.enqueue([args] {
    run_combine(args);
    if (args.ring.slots == nullptr) return;
    const int64_t tokens = args.step ? step_tokens(*args.step, args.tokens) : args.tokens;
    write_counts(args.ring, args.experts, static_cast<int32_t>(tokens), args.counts);
  });
}

void shared_gate(Stream& stream, const SharedGateArgs& args) {
  stream.enqueue([args] { run_shared_gate(args); });
}

void gather_rows(Stream& s, DType dtype, const void* x, const int32_t* order, int64_t first, int64_t n,
                 int32_t rows_per_input, int64_t width, void* out) {
  s.enqueue([=] {
    const int64_t size = static_cast<int64_t>(size_of(dtype));
    for_pieces(n, width, [&](int64_t i, int64_t c, int64_t columns) {
      const int64_t from = order[first + i] / rows_per_input;
      std::memcpy(static_cast<char*>(out) + (i * width + c) * size,
                  static_cast<const char*>(x) + (from * width + c) * size, static_cast<size_t>(columns * size));
    });
  });
}

void activate(Stream& s, DType dtype, Epilogue epilogue, const EpilogueParams& params, const void* in, int64_t n,
              int64_t width, void* out) {
  s.enqueue([=] {
    const Isa& table = isa();
    const Rows rows(table, dtype);
    const int64_t widen = is_gated(epilogue) ? 2 : 1;
    for_pieces(n, width, [&](int64_t i, int64_t c, int64_t columns) {
      float value[2 * kPiece];
      rows.load(in, (i * width + c) * widen, columns * widen, value);
      table.activate(static_cast<int32_t>(epilogue), params.limit, params.alpha, value, columns * widen);
      rows.store(value, out, i * width + c, columns);
    });
  });
}

void index_add(Stream& s, DType dtype, const void* rows, const float* weights, const int32_t* order, int64_t first,
               int64_t n, int32_t top_k, int64_t width, float* acc) {
  s.enqueue([=] {
    const Isa& table = isa();
    const Rows source(table, dtype);
    for_pieces(n, width, [&](int64_t i, int64_t c, int64_t columns) {
      float value[kPiece];
      const int32_t slot = order[first + i];
      source.load(rows, i * width + c, columns, value);
      table.axpy(weights[slot], value, acc + slot / top_k * width + c, columns, false);
    });
  });
}

void cast(Stream& s, const void* src, DType from, void* dst, DType to, int64_t n) {
  s.enqueue([=] {
    constexpr int64_t kElements = 1 << 16;
    parallel_for((n + kElements - 1) / kElements, [&](int64_t i) {
      const int64_t at = i * kElements;
      convert(static_cast<const char*>(src) + at * static_cast<int64_t>(size_of(from)), from,
              static_cast<char*>(dst) + at * static_cast<int64_t>(size_of(to)), to,
              static_cast<size_t>(std::min(kElements, n - at)));
    });
  });
}

}  // namespace nexus::cpu
