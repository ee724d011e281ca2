// Grouped product on the CPU: for each expert e and row r of it, y[r] = epilogue(scale · W[e] x[r] + bias[e]).
//   flops 2·rows·n·k; bytes: every touched expert's weights once per block of rows, in their own dtype.
// Work is cut into tasks (expert, block of rows, block of columns), found from the offsets (and a step's
// block, and the table of lanes, which leaves out tasks or says where they run) when the closure runs. A task writes
// its own part of the output and nothing else, and how a sum is ordered depends on k and on the kernel alone, so
// neither the number of threads nor the size of the blocks nor lanes change a bit. The kernel is one for all rows
// (variants.cpp), or follows from the expert's row count and n:
//   dot    a few rows, or too few columns to fill a panel: reads the weights where they lie, no packing.
//   panel  otherwise: K in blocks of kDepth; a panel of weights packed to [depth][panel] f32 (first-level cache), rows
//          gathered to f32, register-blocked products accumulate into a [rows][columns] block of scratch.
// Both bring in the weights that come next while they compute: a task is as long as the slower of memory and
// arithmetic, not as both.
#include "data/cpu/gemm.h"

#include <algorithm>
#include <cstring>

#include "data/cpu/isa.h"
#include "data/cpu/lanes.h"
#include "data/cpu/scratch.h"
#include "data/cpu/step.h"

namespace nexus::cpu {
namespace {

constexpr int64_t kRowBlock = 192;  // rows that share one packing of the weights
constexpr int64_t kColumnBlock = 128;
constexpr int64_t kDotColumnBlock = 64;
constexpr int64_t kDotGroup = 18;         // rows that go over the weights together
constexpr int64_t kDotWholeRows = 4;      // so few have all of k at once,
constexpr int64_t kDotWholeDepth = 1024;  // more of them up to such a k,
constexpr int64_t kDotDepth = 512;        // else blocks of it
constexpr int64_t kFloatsPerLine = 16;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Task {
  int32_t expert;
  bool dot;
  int64_t first_row, rows, first_column, columns;
};

int index_of(DType t) { return static_cast<int>(t); }

const char* input_row(const GroupedProduct& p, int64_t row) {
  const int64_t from = p.gather ? p.order[row] / p.rows_per_input : row;
  return static_cast<const char*>(p.input) + from * p.k * static_cast<int64_t>(size_of(p.input_dtype));
}

/// Scale, bias, activation and conversion of one finished row of sums (in place), then its place in the output.
void finish_row(const GroupedProduct& p, const Isa& isa, const Task& t, int64_t row, float* sums) {
  const float scale = p.row_scale ? p.row_scale[p.order ? p.order[row] : row] : 1.f;
  isa.scale_bias(sums, scale, p.bias ? p.bias + t.expert * p.n + t.first_column : nullptr, t.columns);
  isa.activate(static_cast<int32_t>(p.epilogue), p.params.limit, p.params.alpha, sums, t.columns);
  const int64_t shrink = is_gated(p.epilogue) ? 2 : 1;
  const int64_t to = p.scatter ? p.order[row] : row;
  char* out = static_cast<char*>(p.output) +
              (to * (p.n / shrink) + t.first_column / shrink) * static_cast<int64_t>(size_of(p.output_dtype));
  isa.from_f32[index_of(p.output_dtype)](sums, out, t.columns / shrink);
}

const char* weight_block(const GroupedProduct& p, const Task& t) {
  return static_cast<const char*>(p.weight) +
         (t.expert * p.n + t.first_column) * p.k * static_cast<int64_t>(size_of(p.weight_dtype));
}

void run_dot(const GroupedProduct& p, const Isa& isa, const Task& t) {
  static thread_local Scratch scratch;
  const int64_t input_size = static_cast<int64_t>(size_of(p.input_dtype));
  const int64_t weight_size = static_cast<int64_t>(size_of(p.weight_dtype));
  const int64_t ldc = divide_up(t.columns, kFloatsPerLine) * kFloatsPerLine;
  const int64_t group = std::min(t.rows, kDotGroup);
  // A few rows stay in the first-level cache as long as they are; of more a block of k does.
  const int64_t block = group <= kDotWholeRows || p.k <= kDotWholeDepth ? p.k : kDotDepth;
  const int64_t ldx =
      divide_up(block, kPad) * kPad + kFloatsPerLine;  // not a power of two: rows spread over cache sets
  const int64_t partial = block < p.k ? group * t.columns * kPad : 0;
  float* x = scratch.floats(group * (ldx + ldc) + partial);
  float* sums = x + group * ldx;
  const char* weight = weight_block(p, t);
  const bool more_columns = t.first_column + t.columns < p.n;
  for (int64_t r0 = 0; r0 < t.rows; r0 += group) {
    const int64_t rows = std::min(group, t.rows - r0);
    for (int64_t k0 = 0; k0 < p.k; k0 += block) {
      const int64_t depth = std::min(block, p.k - k0);
      const bool last = k0 + depth == p.k;
      for (int64_t r = 0; r < rows; ++r) {
        float* to = x + r * ldx;
        isa.to_f32[index_of(p.input_dtype)](input_row(p, t.first_row + r0 + r) + k0 * input_size, to, depth);
        std::fill(to + depth, to + divide_up(depth, kPad) * kPad, 0.f);
      }
      const char* w = weight + k0 * weight_size;
      const char* next = nullptr;
      if (!last)
        next = w + depth * weight_size;
      else if (r0 == 0 && more_columns)
        next = weight + t.columns * p.k * weight_size;  // most likely the next task's
      isa.dot[index_of(p.weight_dtype)]({.x = x,
                                         .ldx = ldx,
                                         .rows = rows,
                                         .w = w,
                                         .k = p.k,
                                         .depth = depth,
                                         .columns = t.columns,
                                         .next = next,
                                         .partial = sums + group * ldc,
                                         .first = k0 == 0,
                                         .last = last,
                                         .c = sums,
                                         .ldc = ldc});
    }
    for (int64_t r = 0; r < rows; ++r) finish_row(p, isa, t, t.first_row + r0 + r, sums + r * ldc);
  }
}

void run_panel(const GroupedProduct& p, const Isa& isa, const Task& t) {
  static thread_local Scratch scratch;
  const int64_t width = isa.panel_columns;
  const int64_t panels = divide_up(t.columns, width);
  const int64_t ldc = panels * width + kFloatsPerLine;
  float* a = scratch.floats(t.rows * kRowStride + kDepth * width + t.rows * ldc);
  float* packed = a + t.rows * kRowStride;
  float* sums = packed + kDepth * width;
  const char* weight = weight_block(p, t);
  const int64_t weight_size = static_cast<int64_t>(size_of(p.weight_dtype)), weight_row = p.k * weight_size;
  const int64_t input_size = static_cast<int64_t>(size_of(p.input_dtype));

  for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
    const int64_t depth = std::min(kDepth, p.k - k0);
    for (int64_t r = 0; r < t.rows; ++r)
      isa.to_f32[index_of(p.input_dtype)](input_row(p, t.first_row + r) + k0 * input_size, a + r * kRowStride, depth);
    for (int64_t j = 0; j < panels; ++j) {
      isa.pack[index_of(p.weight_dtype)](weight + j * width * weight_row, p.k, k0, depth,
                                         std::min(width, t.columns - j * width), packed);
      const bool more = j + 1 < panels;  // the next panel of this block of k, else the first one of the next
      const int64_t next_k = more ? k0 : k0 + kDepth, next_j = more ? j + 1 : 0;
      isa.panel_product(a, t.rows, packed, depth, sums + j * width, ldc, k0 == 0,
                        next_k < p.k ? weight + next_j * width * weight_row + next_k * weight_size : nullptr,
                        weight_row, std::min(kDepth, p.k - next_k) * weight_size,
                        std::min(width, t.columns - next_j * width));
    }
  }
  for (int64_t r = 0; r < t.rows; ++r) finish_row(p, isa, t, t.first_row + r, sums + r * ldc);
}

/// Cuts one expert's rows and columns into blocks, rows as evenly as they go.
void add_tasks(std::vector<Task>& tasks, const GroupedProduct& p, int expert, int64_t first, int64_t rows,
               int64_t row_block, int64_t column_block, bool dot) {
  const int64_t blocks = divide_up(rows, row_block);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t low = rows * b / blocks, high = rows * (b + 1) / blocks;
    for (int64_t c = 0; c < p.n; c += column_block)
      tasks.push_back({expert, dot, first + low, high - low, c, std::min(column_block, p.n - c)});
  }
}

std::vector<Task> plan(const GroupedProduct& p, int64_t panel_columns) {
  const int32_t whole[2] = {0, static_cast<int32_t>(p.max_rows)};
  const int32_t* offsets = p.offsets ? p.offsets : whole;
  int64_t previous = 0;
  for (int e = 0; e <= p.experts; ++e) {
    if (offsets[e] < previous || offsets[e] > p.max_rows)
      throw Error(ErrorCode::kInternal,
                  "offsets[" + std::to_string(e) + "] is " + std::to_string(offsets[e]) +
                      "; expected non-decreasing values up to max_rows = " + std::to_string(p.max_rows));
    previous = offsets[e];
  }
  // Slots address memory too. Looking at them costs nothing beside the product.
  for (int64_t row = 0; p.order && row < previous; ++row)
    if (p.order[row] < 0 || p.order[row] >= p.max_rows)
      throw Error(ErrorCode::kInternal, "order[" + std::to_string(row) + "] is " + std::to_string(p.order[row]) +
                                            "; expected a slot below max_rows = " + std::to_string(p.max_rows));
  // Large blocks first; smaller ones while there are too few tasks to keep all threads busy to the end.
  const int64_t wanted = 4 * static_cast<int64_t>(cpu_threads());
  std::vector<Task> tasks;
  for (int shrink = 0; shrink < 3; ++shrink) {
    tasks.clear();
    const int64_t columns = std::max(kColumnBlock >> shrink, panel_columns), rows = kRowBlock >> shrink;
    for (int e = 0; e < p.experts; ++e) {
      const int64_t count = offsets[e + 1] - offsets[e];
      if (count == 0 || !runs_expert(p.lanes, e)) continue;
      if (p.kernel == RowKernel::kByRows ? uses_dot_kernel(p.weight_dtype, count, p.n) : p.kernel == RowKernel::kDot)
        add_tasks(tasks, p, e, offsets[e], count, rows, kDotColumnBlock >> shrink, true);
      else
        add_tasks(tasks, p, e, offsets[e], count, rows, columns, false);
    }
    if (cpu_threads() == 1 || static_cast<int64_t>(tasks.size()) >= wanted) break;
  }
  // The longest first, so that the last to finish is a short one.
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.rows * a.columns > b.rows * b.columns; });
  return tasks;
}

}  // namespace

bool uses_dot_kernel(DType weight_dtype, int64_t rows, int64_t n) {
  return rows <= isa().dot_rows[index_of(weight_dtype)] || 2 * n <= isa().panel_columns;
}

void run_grouped_product(const GroupedProduct& given) {
  const Isa& table = isa();
  GroupedProduct p = given;
  if (p.step && !p.offsets) p.max_rows = step_tokens(*p.step, p.max_rows);
  if (p.step_input) p.input = step_memory("x", p.step->x, p.step->tokens);
  const std::vector<Task> tasks = plan(p, table.panel_columns);
  std::vector<int32_t> experts(tasks.size());
  for (size_t i = 0; i < tasks.size(); ++i) experts[i] = tasks[i].expert;
  run_in_lanes(p.lanes, p.experts, experts, p.workers, [&](int64_t i) {
    const Task& task = tasks[static_cast<size_t>(i)];
    if (task.dot)
      run_dot(p, table, task);
    else
      run_panel(p, table, task);
  });
}

}  // namespace nexus::cpu
