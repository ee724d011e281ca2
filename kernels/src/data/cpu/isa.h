// Run-time choice of the CPU's instruction set. The leaf kernels are compiled once per set (kernels_portable.cpp,
// kernels_avx2.cpp, kernels_avx512.cpp, all from simd_kernels.h) and reached through one table of functions.
// Everything that is not a leaf (tasks, scratch memory, validation) is compiled for the baseline alone, so that no
// inline function of the standard library can be emitted with instructions that the machine lacks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "nexus/dtype.h"

namespace nexus::cpu {

/// Depth of a K block of the panel kernel: its panel of weights (256 × 32 × 4 B = 32 KiB) lives in the first-level
/// cache.
constexpr int64_t kDepth = 256;
/// Row stride of gathered input rows: a compile-time constant, so that the kernel addresses all its rows from one
/// register; not a power of two, so that the rows do not fall on one cache set.
constexpr int64_t kRowStride = kDepth + 16;
/// Rows that the dot kernel reads are padded with zeros to a multiple of this.
constexpr int64_t kPad = 16;

/// c[r, j] = Σ_i x[r, i] · w[j, i] for `rows` × `columns`, in blocks of i that go through `dot` one after the other.
/// The sum runs in `width` interleaved partial sums, which are added at the end, whatever the rows, columns and blocks.
struct DotBlock {
  const float* x;  ///< of this block, [rows, ldx], padded with zeros to kPad
  int64_t ldx, rows;
  const void* w;  ///< of this block, [columns, k] of the dtype
  int64_t k;
  int64_t depth;  ///< i of this block: a multiple of kPad in all but the last
  int64_t columns;
  const void* next = nullptr;  ///< weights that are read after these, brought in meanwhile, or null
  float* partial = nullptr;    ///< rows · columns · kPad floats, kept between blocks; none for a single one
  bool first = true, last = true;
  float* c;  ///< [rows, ldc], written by the last block
  int64_t ldc;
};

/// `dtype` indexes the arrays: f32, bf16, f16.
struct Isa {
  const char* name;
  int panel_columns;  ///< columns of a packed panel
  int dot_rows[3];    ///< an expert's rows up to which dot is the faster one, by the weights' dtype: measured

  void (*to_f32[3])(const void* src, float* dst, int64_t n);
  void (*from_f32[3])(const float* src, void* dst, int64_t n);

  /// See DotBlock.
  void (*dot[3])(const DotBlock& block);
  /// panel[i, j] = w[j, k0 + i] for i < depth, j < panel_columns (0 where j >= columns).
  void (*pack[3])(const void* w, int64_t k, int64_t k0, int64_t depth, int64_t columns, float* panel);
  /// c[r, 0..panel_columns) (+)= Σ_i a[r, i] · panel[i, ·], i ascending; a has stride kRowStride. `first` overwrites c.
  /// Meanwhile next_bytes from each of next_rows rows at `next` (null: none) are brought into the cache.
  void (*panel_product)(const float* a, int64_t rows, const float* panel, int64_t depth, float* c, int64_t ldc,
                        bool first, const char* next, int64_t next_stride, int64_t next_bytes, int64_t next_rows);
  /// v = v·scale + bias (bias may be null).
  void (*scale_bias)(float* v, float scale, const float* bias, int64_t n);
  /// In place; a gated epilogue reads n interleaved values and leaves n/2.
  void (*activate)(int32_t epilogue, float limit, float alpha, float* v, int64_t n);
  void (*softmax)(const float* l, float* p, int64_t n);
  void (*sigmoid)(const float* l, float* p, int64_t n);
  /// acc (+)= scale·v; `first` overwrites.
  void (*axpy)(float scale, const float* v, float* acc, int64_t n, bool first);
};

/// The table in use: the best that the machine runs, or NEXUS_CPU_ISA (scalar, avx2, avx512), chosen once.
/// Throws kInvalidArgument when that names an unknown set, kUnsupported when this machine or build cannot run it.
const Isa& isa();
const char* cpu_isa();                ///< isa().name
std::vector<std::string> cpu_isas();  ///< all that this machine and build can run, best first
/// Test seam: every later operation uses `name`; same errors as above.
void set_cpu_isa(const std::string& name);

// One per translation unit; null where the build's architecture lacks it.
const Isa* isa_portable();
const Isa* isa_avx2();
const Isa* isa_avx512();

}  // namespace nexus::cpu
