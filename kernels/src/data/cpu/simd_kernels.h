// The leaf kernels, written once over a vector type `Vec` and included by each kernels_*.cpp inside an anonymous
// namespace, after `Vec` and the constants for its registers (`kDotRows`, …) are defined. No include guard, no
// standard library calls: what is emitted here may use instructions that other machines lack, so nothing may have
// external linkage.
//
// Two matrix kernels, both float32-accumulating, with a sum order that depends on k alone:
//   dot            reads weights once in their own dtype, K-contiguous, with kWidth partial sums per output. Bytes: the
//                  weights once; right when an expert has few rows (2·rows flops per weight: memory-bound).
//   panel_product  kPanelRows × 2 vectors of accumulators over a packed panel [depth][2·kWidth]; per step 2 loads and
//                  kPanelRows broadcasts feed 2·kPanelRows multiply-adds, so the arithmetic units stay busy.
// Elementwise tails go through the same vector code by way of a padded copy: a value's bits do not depend on its place.

constexpr int64_t kWidth = Vec::kWidth;
constexpr int64_t kPanel = 2 * kWidth;

template <class T>
inline Vec load_tail(const T* p, int64_t n) {
  T padded[kWidth] = {};
  __builtin_memcpy(padded, p, static_cast<size_t>(n) * sizeof(T));
  return Vec::load(padded);
}
template <class T>
inline void store_tail(T* p, Vec v, int64_t n) {
  T padded[kWidth];
  Vec::store(padded, v);
  __builtin_memcpy(p, padded, static_cast<size_t>(n) * sizeof(T));
}

template <class T>
void to_f32(const void* src, float* dst, int64_t n) {
  const T* s = static_cast<const T*>(src);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) Vec::store(dst + i, Vec::load(s + i));
  if (i < n) store_tail(dst + i, load_tail(s + i, n - i), n - i);
}
template <class T>
void from_f32(const float* src, void* dst, int64_t n) {
  T* d = static_cast<T*>(dst);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) Vec::store(d + i, Vec::load(src + i));
  if (i < n) store_tail(d + i, load_tail(src + i, n - i), n - i);
}

// ---- matrix products -----------------------------------------------------------------------------------------------

/// R rows times C columns over the block's k: R · C vectors of partial sums. The first rows of columns bring in the
/// columns that come next.
template <class T, int R, int C>
inline void dot_tile(const DotBlock& b, int64_t row, int64_t column) {
  constexpr int64_t kLine = 64 / sizeof(T) < kWidth ? kWidth : 64 / sizeof(T);
  const float* x = b.x + row * b.ldx;
  const T* w = static_cast<const T*>(b.w) + column * b.k;
  const T* next = nullptr;
  // One row of float32 keeps pace with what the hardware fetches by itself.
  if (row == 0 && (R > 1 || sizeof(T) == 2))
    next = column + C < b.columns ? w + C * b.k : static_cast<const T*>(b.next);
  float* partial = b.partial + (column * b.rows + row) * kWidth;
  Vec sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) sum[r][j] = b.first ? Vec::set1(0.f) : Vec::load(partial + (j * b.rows + r) * kWidth);
  const auto step = [&](int64_t i) __attribute__((always_inline)) {
    Vec y[C];
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) y[j] = Vec::load(w + j * b.k + i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec a = Vec::load(x + r * b.ldx + i);
#pragma GCC unroll 8
      for (int j = 0; j < C; ++j) sum[r][j] = fma(a, y[j], sum[r][j]);
    }
  };
  int64_t i = 0;
  for (; i + kLine <= b.depth; i += kLine) {
    if (next) {
#pragma GCC unroll 8
      for (int j = 0; j < C; ++j) __builtin_prefetch(next + j * b.k + i);
    }
#pragma GCC unroll 8
    for (int64_t u = 0; u < kLine; u += kWidth) step(i + u);
  }
  for (; i + kWidth <= b.depth; i += kWidth) step(i);
  if (i < b.depth) {
    for (int j = 0; j < C; ++j) {
      const Vec y = load_tail(w + j * b.k + i, b.depth - i);
      for (int r = 0; r < R; ++r) sum[r][j] = fma(Vec::load(x + r * b.ldx + i), y, sum[r][j]);
    }
  }
  if (b.last) {
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < C; ++j) b.c[(row + r) * b.ldc + column + j] = sum[r][j].sum();
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < C; ++j) Vec::store(partial + (j * b.rows + r) * kWidth, sum[r][j]);
  }
}

template <class T, int C, int R>
inline void dot_rest(const DotBlock& b, int64_t row, int64_t column) {
  if constexpr (R > 0) {
    if (b.rows - row == R)
      dot_tile<T, R, C>(b, row, column);
    else
      dot_rest<T, C, R - 1>(b, row, column);
  }
}

template <class T, int C>
inline void dot_columns(const DotBlock& b, int64_t column) {
  int64_t row = 0;
  for (; row + kDotRows <= b.rows; row += kDotRows) dot_tile<T, kDotRows, C>(b, row, column);
  dot_rest<T, C, kDotRows - 1>(b, row, column);
}

template <class T>
void dot(const DotBlock& b) {
  int64_t j = 0;
  for (; j + kDotColumns <= b.columns; j += kDotColumns) dot_columns<T, kDotColumns>(b, j);
  for (; j < b.columns; ++j) dot_columns<T, 1>(b, j);
}

template <class T>
void pack(const void* w, int64_t k, int64_t k0, int64_t depth, int64_t columns, float* panel) {
  const T* weights = static_cast<const T*>(w) + k0;
  for (int64_t half = 0; half < 2; ++half) {
    const int64_t base = half * kWidth;
    for (int64_t i = 0; i < depth; i += kWidth) {
      const int64_t steps = depth - i < kWidth ? depth - i : kWidth;
      Vec tile[kWidth];
      for (int64_t j = 0; j < kWidth; ++j) {
        if (base + j >= columns)
          tile[j] = Vec::set1(0.f);
        else if (steps == kWidth)
          tile[j] = Vec::load(weights + (base + j) * k + i);
        else
          tile[j] = load_tail(weights + (base + j) * k + i, steps);
      }
      Vec::transpose(tile);
      for (int64_t s = 0; s < steps; ++s) Vec::store(panel + (i + s) * kPanel + base, tile[s]);
    }
  }
}

/// Brings in, line by line, what is packed next while the arithmetic units are busy.
struct Ahead {
  const char* at;  ///< null: nothing
  int64_t stride, lines, rows;
  int64_t line = 0, row = 0;
  inline void step() {
    __builtin_prefetch(at + line * 64, 0, 2);
    if (++line < lines) return;
    line = 0;
    at += stride;
    if (++row == rows) at = nullptr;
  }
};

template <int M>
inline void panel_rows(const float* a, const float* panel, int64_t depth, float* c, int64_t ldc, bool first,
                       Ahead& ahead) {
  Vec sum[M][2];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    sum[m][0] = first ? Vec::set1(0.f) : Vec::load(c + m * ldc);
    sum[m][1] = first ? Vec::set1(0.f) : Vec::load(c + m * ldc + kWidth);
  }
  for (int64_t i = 0; i < depth; ++i) {
    const Vec b0 = Vec::load(panel + i * kPanel), b1 = Vec::load(panel + i * kPanel + kWidth);
    if (ahead.at) ahead.step();
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Vec x = Vec::set1(a[m * kRowStride + i]);
      sum[m][0] = fma(x, b0, sum[m][0]);
      sum[m][1] = fma(x, b1, sum[m][1]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    Vec::store(c + m * ldc, sum[m][0]);
    Vec::store(c + m * ldc + kWidth, sum[m][1]);
  }
}

template <int M>
inline void panel_remainder(int64_t rows, const float* a, const float* panel, int64_t depth, float* c, int64_t ldc,
                            bool first, Ahead& ahead) {
  if constexpr (M > 0) {
    if (rows == M)
      panel_rows<M>(a, panel, depth, c, ldc, first, ahead);
    else
      panel_remainder<M - 1>(rows, a, panel, depth, c, ldc, first, ahead);
  }
}

void panel_product(const float* a, int64_t rows, const float* panel, int64_t depth, float* c, int64_t ldc, bool first,
                   const char* next, int64_t next_stride, int64_t next_bytes, int64_t next_rows) {
  Ahead ahead{next, next_stride, (next_bytes + 63) / 64, next_rows};
  int64_t r = 0;
  for (; r + kPanelRows <= rows; r += kPanelRows)
    panel_rows<kPanelRows>(a + r * kRowStride, panel, depth, c + r * ldc, ldc, first, ahead);
  panel_remainder<kPanelRows - 1>(rows - r, a + r * kRowStride, panel, depth, c + r * ldc, ldc, first, ahead);
}

// ---- elementwise
// ------------------------------------------------------------------------------------------------------ min and max
// return their second operand when one is NaN, so `max(bound, x)` lets a NaN through.

/// Relative error below 2e-7; overflows to infinity, underflows gradually to 0, NaN stays NaN.
inline Vec exp(Vec x) {
  x = min(Vec::set1(89.f), max(Vec::set1(-104.f), x));
  const Vec n = round(x * Vec::set1(1.44269504088896341f));
  Vec r = fma(n, Vec::set1(-0.693359375f), x);  // exact: 9 bits of ln 2 times a small integer
  r = fma(n, Vec::set1(2.12194440e-4f), r);
  Vec p = Vec::set1(1.9875691500e-4f);
  p = fma(p, r, Vec::set1(1.3981999507e-3f));
  p = fma(p, r, Vec::set1(8.3334519073e-3f));
  p = fma(p, r, Vec::set1(4.1665795894e-2f));
  p = fma(p, r, Vec::set1(1.6666665459e-1f));
  p = fma(p, r, Vec::set1(5.0000001201e-1f));
  p = fma(p, r * r, r) + Vec::set1(1.f);
  const Vec half = round(n * Vec::set1(0.5f));
  return p * pow2(half) * pow2(n - half);  // in two steps: n may lie outside float's exponents
}
inline Vec logistic(Vec x) { return Vec::set1(1.f) / (Vec::set1(1.f) + exp(Vec::set1(0.f) - x)); }

/// Φ(x) = erfc(-x/√2)/2 with the Chebyshev fit of erfc from Numerical Recipes §6.2 (fractional error 1.2e-7): relative
/// accuracy also in the negative tail, where 1 + erf would cancel.
inline Vec normal_cdf(Vec x) {
  const Vec one = Vec::set1(1.f), half = Vec::set1(0.5f);
  const Vec z = abs(x) * Vec::set1(0.70710678118654752f);
  const Vec t = one / fma(half, z, one);
  Vec p = Vec::set1(0.17087277f);
  p = fma(p, t, Vec::set1(-0.82215223f));
  p = fma(p, t, Vec::set1(1.48851587f));
  p = fma(p, t, Vec::set1(-1.13520398f));
  p = fma(p, t, Vec::set1(0.27886807f));
  p = fma(p, t, Vec::set1(-0.18628806f));
  p = fma(p, t, Vec::set1(0.09678418f));
  p = fma(p, t, Vec::set1(0.37409196f));
  p = fma(p, t, Vec::set1(1.00002368f));
  p = fma(p, t, Vec::set1(-1.26551223f));
  const Vec tail = half * t * exp(p - z * z);
  return select_negative(x, tail, one - tail);
}
inline Vec gelu(Vec x) { return x * normal_cdf(x); }
inline Vec gelu_tanh(Vec x) {  // (1 + tanh u)/2 = σ(2u): no cancellation
  const Vec cubic = fma(x * x * x, Vec::set1(0.044715f), x);
  return x * logistic(cubic * Vec::set1(1.59576912160573071f));
}
inline Vec silu(Vec x) { return x * logistic(x); }
inline Vec relu(Vec x) { return max(Vec::set1(0.f), x); }

template <class F>
inline void map(float* v, int64_t n, F f) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) Vec::store(v + i, f(Vec::load(v + i)));
  if (i < n) store_tail(v + i, f(load_tail(v + i, n - i)), n - i);
}
/// Pairs (gate, up) side by side become f(gate, up); the output trails the input, so it may be in place.
template <class F>
inline void map_pairs(float* v, int64_t n, F f) {
  const int64_t pairs = n / 2;
  int64_t i = 0;
  for (; i + kWidth <= pairs; i += kWidth) {
    Vec gate, up;
    Vec::deinterleave(v + 2 * i, gate, up);
    Vec::store(v + i, f(gate, up));
  }
  if (i < pairs) {
    float padded[2 * kWidth] = {};
    __builtin_memcpy(padded, v + 2 * i, static_cast<size_t>(pairs - i) * 2 * sizeof(float));
    Vec gate, up;
    Vec::deinterleave(padded, gate, up);
    store_tail(v + i, f(gate, up), pairs - i);
  }
}

void activate(int32_t epilogue, float limit, float alpha, float* v, int64_t n) {
  switch (epilogue) {  // the values of nexus::Epilogue
    case 1:
      return map(v, n, [](Vec x) { return relu(x); });
    case 2:
      return map(v, n, [](Vec x) { return gelu(x); });
    case 3:
      return map(v, n, [](Vec x) { return gelu_tanh(x); });
    case 4:
      return map(v, n, [](Vec x) { return silu(x); });
    case 16:
      return map_pairs(v, n, [](Vec g, Vec u) { return silu(g) * u; });
    case 17:
      return map_pairs(v, n, [](Vec g, Vec u) { return gelu(g) * u; });
    case 18:
      return map_pairs(v, n, [](Vec g, Vec u) { return gelu_tanh(g) * u; });
    case 19:
      return map_pairs(v, n, [](Vec g, Vec u) { return relu(g) * u; });
    case 20: {
      const Vec high = Vec::set1(limit), low = Vec::set1(-limit), a = Vec::set1(alpha);
      return map_pairs(v, n, [=](Vec g, Vec u) {
        const Vec gate = min(high, g), up = max(low, min(high, u));
        return gate * logistic(a * gate) * (up + Vec::set1(1.f));
      });
    }
    default:
      return;
  }
}

void scale_bias(float* v, float scale, const float* bias, int64_t n) {
  if (scale != 1.f)
    for (int64_t i = 0; i < n; ++i) v[i] *= scale;
  if (bias)
    for (int64_t i = 0; i < n; ++i) v[i] += bias[i];
}

void axpy(float scale, const float* v, float* acc, int64_t n, bool first) {
  if (first)
    for (int64_t i = 0; i < n; ++i) acc[i] = scale * v[i];
  else
    for (int64_t i = 0; i < n; ++i) acc[i] += scale * v[i];
}

void sigmoid(const float* l, float* p, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) Vec::store(p + i, logistic(Vec::load(l + i)));
  if (i < n) store_tail(p + i, logistic(load_tail(l + i, n - i)), n - i);
}

void softmax(const float* l, float* p, int64_t n) {
  float high = l[0];
  for (int64_t i = 1; i < n; ++i) high = l[i] > high ? l[i] : high;
  const Vec m = Vec::set1(high);
  Vec total = Vec::set1(0.f);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const Vec v = exp(Vec::load(l + i) - m);
    Vec::store(p + i, v);
    total = total + v;
  }
  if (i < n) {
    store_tail(p + i, exp(load_tail(l + i, n - i) - m), n - i);
    total = total + load_tail(p + i, n - i);
  }
  const Vec inverse = Vec::set1(1.f / total.sum());
  map(p, n, [=](Vec v) { return v * inverse; });
}

/// The table of this instruction set; a constant, so that no start-up code runs with its instructions.
constexpr Isa make_table(const char* name) {
  return Isa{name,
             static_cast<int>(kPanel),
             {kDotMaxRows, kDotMaxRows16Bit, kDotMaxRows16Bit},
             {to_f32<float>, to_f32<Bf16>, to_f32<F16>},
             {from_f32<float>, from_f32<Bf16>, from_f32<F16>},
             {dot<float>, dot<Bf16>, dot<F16>},
             {pack<float>, pack<Bf16>, pack<F16>},
             panel_product,
             scale_bias,
             activate,
             softmax,
             sigmoid,
             axpy};
}
