// What takes a Linux CPU most of its time beside the large matmuls, each in one pass over memory.
//
// The compiler vectorises these loops (-O3 -march=native); one thread runs each, and models/kernels/streams.py gives
// every core rows of its own. Shapes in comments: b batch, t tokens, h heads, e head size, d = h · e.

#include "loops.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kTileVectors = 2, kTileRows = 14;  // as many sums as the processor has registers for
#elif defined(__AVX2__)
constexpr int kLanes = 8, kTileVectors = 2, kTileRows = 6;
#else
constexpr int kLanes = 4, kTileVectors = 4, kTileRows = 4;
#endif
constexpr long kTileColumns = kLanes * kTileVectors;
constexpr long kBlock = 6 * kTileRows;  // queries in work at a time: their scores stay in the core's cache

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

long padded(long columns) { return (columns + kTileColumns - 1) / kTileColumns * kTileColumns; }

// Lay out B [k, n], whose element (p, j) is b[p · row + j · column], in panels [n / kTileColumns][k][kTileColumns], with
// zeros for the columns that are missing.
void pack(long k, long n, const float* b, long row, long column, float* panels) {
  for (long j = 0; j < n; j += kTileColumns, panels += k * kTileColumns) {
    const long width = std::min(kTileColumns, n - j);
    for (long p = 0; p < k; p++) {
      float* to = panels + p * kTileColumns;
      const float* from = b + p * row + j * column;
      for (long i = 0; i < width; i++) to[i] = from[i * column];
      for (long i = width; i < kTileColumns; i++) to[i] = 0;
    }
  }
}

// One tile of C, R rows of `width` columns: A times a panel, in registers, and added to C or written to it.
template <int R>
void multiply_tile(long k, const float* a, long row, long column, const float* panel, float* c, long c_row, long width,
                   bool add) {
  Vector sums[R][kTileVectors] = {};
  for (long p = 0; p < k; p++) {
    Vector b[kTileVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kTileVectors; j++) b[j] = *reinterpret_cast<const Vector*>(panel + p * kTileColumns + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) {
      const float x = a[i * row + p * column];
#pragma GCC unroll 8
      for (int j = 0; j < kTileVectors; j++) sums[i][j] += x * b[j];
    }
  }
  // Written by whole vectors, with indices that the compiler knows: otherwise the sums would be kept in memory.
  float narrow[R * kTileColumns];
  const bool whole = width == kTileColumns;
  float* to = whole ? c : narrow;
  const long to_row = whole ? c_row : kTileColumns;
#pragma GCC unroll 16
  for (int i = 0; i < R; i++) {
#pragma GCC unroll 8
    for (int j = 0; j < kTileVectors; j++) {
      Vector& at = *reinterpret_cast<Vector*>(to + i * to_row + j * kLanes);
      at = add && whole ? at + sums[i][j] : sums[i][j];
    }
  }
  if (whole) return;
  for (int i = 0; i < R; i++)
    for (long j = 0; j < width; j++)
      c[i * c_row + j] = add ? c[i * c_row + j] + narrow[i * kTileColumns + j] : narrow[i * kTileColumns + j];
}

template <int R>
void multiply_rows(long rows, long k, const float* a, long row, long column, const float* panel, float* c, long c_row,
                   long width, bool add) {
  if constexpr (R > 0) {
    if (rows == R) {
      multiply_tile<R>(k, a, row, column, panel, c, c_row, width, add);
    } else {
      multiply_rows<R - 1>(rows, k, a, row, column, panel, c, c_row, width, add);
    }
  }
}

// C [m, n] = A B, or C + A B, where element (i, p) of A is a[i · row + p · column], and B [k, n] has been packed. For the
// small products of attention, whose operands stay in the cache: there a BLAS spends half its time on preparations.
void multiply(long m, long n, long k, const float* a, long row, long column, const float* panels, float* c, long c_row,
              bool add) {
  for (long j = 0; j < n; j += kTileColumns, panels += k * kTileColumns) {
    const long width = std::min(kTileColumns, n - j);
    for (long i = 0; i < m; i += kTileRows) {
      const long rows = std::min<long>(kTileRows, m - i);
      multiply_rows<kTileRows>(rows, k, a + i * row, row, column, panels, c + i * c_row + j, c_row, width, add);
    }
  }
}

// e^x, relative error below 2e-7, for x clipped to [-87, 88]: between them e^x is a normal float32. NaN stays NaN.
inline float fast_exp(float x) {
  constexpr float log2_e = 1.44269504f, ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f;
  constexpr float rounds = 12582912.0f;  // 1.5 · 2^23: adding it leaves no digits after the point
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  float shifted = x * log2_e + rounds;
  float k = shifted - rounds;  // e^x = 2^k · e^f, |f| ≤ ln(2) / 2
  float f = x - k * ln2_high - k * ln2_low;
  constexpr float inverse_factorials[] = {1.0f, 1.0f, 1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};
  float series = inverse_factorials[7];
#pragma GCC unroll 8
  for (int i = 6; i >= 0; i--) series = series * f + inverse_factorials[i];
  int32_t bits = (static_cast<int32_t>(k) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return series * power;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// in: x, y [n, d]. out: (x + y) / rms, and 1 / rms [n], where rms = sqrt(mean((x + y)²) + eps)
void add_rms_norm(const float* const* in, float* const* out, const double* numbers) {
  const long n = numbers[0], d = numbers[1];
  const float eps = numbers[2];
  for (long i = 0; i < n; i++) {
    const float *x = in[0] + i * d, *y = in[1] + i * d;
    float *result = out[0] + i * d, squares = 0;
#pragma omp simd reduction(+ : squares)
    for (long j = 0; j < d; j++) {
      float sum = x[j] + y[j];
      result[j] = sum;
      squares += sum * sum;
    }
    const float scale = 1.0f / std::sqrt(squares / d + eps);
    out[1][i] = scale;
    for (long j = 0; j < d; j++) result[j] *= scale;
  }
}

// in: the cotangent g, the result r [n, d], 1 / rms [n]. out: the cotangent of x + y, (g - r · mean(g · r)) / rms
void add_rms_norm_backward(const float* const* in, float* const* out, const double* numbers) {
  const long n = numbers[0], d = numbers[1];
  for (long i = 0; i < n; i++) {
    const float *g = in[0] + i * d, *r = in[1] + i * d, scale = in[2][i];
    float *result = out[0] + i * d, product = 0;
#pragma omp simd reduction(+ : product)
    for (long j = 0; j < d; j++) product += g[j] * r[j];
    const float mean = product / d;
    for (long j = 0; j < d; j++) result[j] = (g[j] - r[j] * mean) * scale;
  }
}

// in: gate beside up [n, 2 · inter]. out: silu(gate) · up [n, inter]
void swiglu(const float* const* in, float* const* out, const double* numbers) {
  const long n = numbers[0], inter = numbers[1];
  for (long i = 0; i < n; i++) {
    const float *gate = in[0] + i * 2 * inter, *up = gate + inter;
    float* result = out[0] + i * inter;
    for (long j = 0; j < inter; j++) result[j] = gate[j] * sigmoid(gate[j]) * up[j];
  }
}

// in: the cotangent [n, inter], gate beside up. out: the cotangent of gate beside up
void swiglu_backward(const float* const* in, float* const* out, const double* numbers) {
  const long n = numbers[0], inter = numbers[1];
  for (long i = 0; i < n; i++) {
    const float *g = in[0] + i * inter, *gate = in[1] + i * 2 * inter, *up = gate + inter;
    float *of_gate = out[0] + i * 2 * inter, *of_up = of_gate + inter;
    for (long j = 0; j < inter; j++) {
      float s = sigmoid(gate[j]), weighted = g[j] * s;
      of_gate[j] = weighted * up[j] * (1.0f + gate[j] * (1.0f - s));
      of_up[j] = weighted * gate[j];
    }
  }
}

// in: x [n]. out: x · sigmoid(x)
void silu(const float* const* in, float* const* out, const double* numbers) {
  const long n = numbers[0];
  for (long i = 0; i < n; i++) out[0][i] = in[0][i] * sigmoid(in[0][i]);
}

// in: the cotangent, x [n]. out: the cotangent of x
void silu_backward(const float* const* in, float* const* out, const double* numbers) {
  const long n = numbers[0];
  for (long i = 0; i < n; i++) {
    float x = in[1][i], s = sigmoid(x);
    out[0][i] = in[0][i] * s * (1.0f + x * (1.0f - s));
  }
}

// Rotate heads [t, e], `stride` floats from one token to the next: the halves of a head are the real and imaginary parts
// of numbers that are multiplied by factor · (cos + i · sin), both [t, e / 2]. Without tables it only multiplies.
void rotate(const float* from, long stride, float* to, long to_stride, long t, long e, const float* cos, const float* sin,
            float sign, float factor) {
  const long half = e / 2;
  for (long i = 0; i < t; i++) {
    const float* a = from + i * stride;
    float* r = to + i * to_stride;
    if (cos == nullptr) {
      for (long j = 0; j < e; j++) r[j] = a[j] * factor;
      continue;
    }
    const float *c = cos + i * half, *s = sin + i * half;
    for (long j = 0; j < half; j++) {
      const float real = a[j], imaginary = a[j + half];
      r[j] = (real * c[j] - imaginary * (sign * s[j])) * factor;
      r[j + half] = (real * (sign * s[j]) + imaginary * c[j]) * factor;
    }
  }
}

struct AttentionSizes {
  long b, t, h, e, d;
  float scale;
  long keys;  // t, rounded up to whole tiles
  long block;
  const float *cos, *sin;

  AttentionSizes(const double* numbers, const float* const* tables)
      : b(numbers[0]), t(numbers[1]), h(numbers[2]), e(numbers[3]), d(h * e), scale(numbers[4]) {
    const bool rotates = numbers[5] != 0;
    cos = rotates ? tables[0] : nullptr;
    sin = rotates ? tables[1] : nullptr;
    keys = padded(t);
    block = std::min(t, kBlock);
  }
};

// in: queries, keys and values side by side [b, t, 3 · d]; cos, sin [t, e / 2] if positions are rotated.
// out: softmax(scale · q kᵀ) v [b, t, d], and log Σ e^score of every query [b, h, t]
void attention(const float* const* in, float* const* out, const double* numbers) {
  const AttentionSizes size(numbers, in + 1);
  const long t = size.t, e = size.e, d = size.d, keys = size.keys;
  std::vector<float> q(t * e), k(t * e), k_panels(keys * e), v_panels(padded(e) * t), weights(size.block * keys);
  std::vector<float> shares(size.block);
  for (long row = 0; row < size.b * size.h; row++) {
    const long head = row % size.h;
    const float* qkv = in[0] + (row / size.h) * t * 3 * d + head * e;
    float *result = out[0] + (row / size.h) * t * d + head * e, *log_sum = out[1] + row * t;
    rotate(qkv, 3 * d, q.data(), e, t, e, size.cos, size.sin, 1, size.scale);
    rotate(qkv + d, 3 * d, k.data(), e, t, e, size.cos, size.sin, 1, 1);
    pack(e, t, k.data(), 1, e, k_panels.data());
    pack(t, e, qkv + 2 * d, 3 * d, 1, v_panels.data());
    for (long first = 0; first < t; first += size.block) {
      const long n = std::min(size.block, t - first);
      multiply(n, keys, e, q.data() + first * e, e, 1, k_panels.data(), weights.data(), keys, false);
      for (long i = 0; i < n; i++) {
        float *w = weights.data() + i * keys, highest = w[0], sum = 0;
#pragma omp simd reduction(max : highest)
        for (long j = 0; j < t; j++) highest = w[j] > highest ? w[j] : highest;
#pragma omp simd reduction(+ : sum)
        for (long j = 0; j < t; j++) {
          w[j] = fast_exp(w[j] - highest);
          sum += w[j];
        }
        log_sum[first + i] = highest + std::log(sum);
        shares[i] = 1.0f / sum;
      }
      float* values = result + first * d;
      multiply(n, e, t, weights.data(), keys, 1, v_panels.data(), values, d, false);
      for (long i = 0; i < n; i++)
        for (long j = 0; j < e; j++) values[i * d + j] *= shares[i];
    }
  }
}

// in: the cotangent [b, t, d], queries, keys and values, the result [b, t, d], its log-sums [b, h, t]; cos, sin.
// out: the cotangent of queries, keys and values [b, t, 3 · d]. The weights are computed again, block by block.
void attention_backward(const float* const* in, float* const* out, const double* numbers) {
  const AttentionSizes size(numbers, in + 4);
  const long t = size.t, e = size.e, d = size.d, keys = size.keys, columns = padded(e);
  std::vector<float> q(t * e), k(t * e), of_q(t * e), of_k(t * e), weights(size.block * keys), of_scores(size.block * keys);
  std::vector<float> k_panels(keys * e), v_panels(keys * e), k_rows(columns * t), block_panels(columns * size.block);
  for (long row = 0; row < size.b * size.h; row++) {
    const long head = row % size.h, at = (row / size.h) * t * d + head * e;
    const float *qkv = in[1] + (row / size.h) * t * 3 * d + head * e, *g = in[0] + at, *result = in[2] + at;
    const float* log_sum = in[3] + row * t;
    float* of_qkv = out[0] + (row / size.h) * t * 3 * d + head * e;
    rotate(qkv, 3 * d, q.data(), e, t, e, size.cos, size.sin, 1, size.scale);
    rotate(qkv + d, 3 * d, k.data(), e, t, e, size.cos, size.sin, 1, 1);
    pack(e, t, k.data(), 1, e, k_panels.data());
    pack(e, t, qkv + 2 * d, 1, 3 * d, v_panels.data());
    pack(t, e, k.data(), e, 1, k_rows.data());
    for (long first = 0; first < t; first += size.block) {
      const long n = std::min(size.block, t - first);
      const bool add = first > 0;
      multiply(n, keys, e, q.data() + first * e, e, 1, k_panels.data(), weights.data(), keys, false);
      multiply(n, keys, e, g + first * d, d, 1, v_panels.data(), of_scores.data(), keys, false);
      for (long i = 0; i < n; i++) {
        const float *of_result = g + (first + i) * d, *r = result + (first + i) * d, log_total = log_sum[first + i];
        float *w = weights.data() + i * keys, *s = of_scores.data() + i * keys, mean = 0;
#pragma omp simd reduction(+ : mean)
        for (long j = 0; j < e; j++) mean += of_result[j] * r[j];
        for (long j = 0; j < t; j++) {
          w[j] = fast_exp(w[j] - log_total);
          s[j] = w[j] * (s[j] - mean);
        }
      }
      multiply(n, e, t, of_scores.data(), keys, 1, k_rows.data(), of_q.data() + first * e, e, false);
      pack(n, e, g + first * d, d, 1, block_panels.data());
      multiply(t, e, n, weights.data(), 1, keys, block_panels.data(), of_qkv + 2 * d, 3 * d, add);
      pack(n, e, q.data() + first * e, e, 1, block_panels.data());
      multiply(t, e, n, of_scores.data(), 1, keys, block_panels.data(), of_k.data(), e, add);
    }
    rotate(of_q.data(), e, of_qkv, 3 * d, t, e, size.cos, size.sin, -1, size.scale);
    rotate(of_k.data(), e, of_qkv + d, 3 * d, t, e, size.cos, size.sin, -1, 1);
  }
}

// atan(x) / x on [0, 1] as a polynomial in x², lowest power first: a Chebyshev fit, as accurate as float32 (1.1e-7)
constexpr float kArctan[] = {1.0f,           -0.33333066f,  0.19992484f,   -0.14202571f, 0.10636754f,
                             -0.074954576f, 0.042587608f, -0.01600503f, 0.0028340642f};

// atan2(y, sqrt(square)), relative error below 4e-7; atan2(0, 0) = 0. Half the angle has the tangent
// y / (x + sqrt(x² + y²)), which needs no case distinctions.
inline float arctan2_of_square(float y, float square) {
  constexpr float smallest = 1.1754944e-38f;  // a normal number, which makes 0 / 0 zero and changes nothing else
  float x = y / (std::sqrt(square) + std::sqrt(square + y * y) + smallest);
  x = x > 1.0f ? 1.0f : x;
  x = x < -1.0f ? -1.0f : x;
  const float x2 = x * x;
  float series = kArctan[8];
  for (int i = 7; i >= 0; i--) series = series * x2 + kArctan[i];
  return series * (2.0f * x);
}

// in: gradient, parameter, moments m, v [n]; and six factors, see `AdamATan2._updated`. out: parameter, m, v
void adam_atan2(const float* const* in, float* const* out, const double* numbers) {
  const long n = numbers[0];
  const float *g = in[0], *p = in[1], *m = in[2], *v = in[3], *factors = in[4];
  const float keep = factors[0], rate = factors[1], correction = factors[2], share1 = factors[3], share2 = factors[4];
  float *new_p = out[0], *new_m = out[1], *new_v = out[2];
  if (share1 == 0 && share2 == 0) {  // the update does not take place: the gradient may hold NaN
    std::copy(p, p + n, new_p), std::copy(m, m + n, new_m), std::copy(v, v + n, new_v);
    return;
  }
#pragma omp simd
  for (long i = 0; i < n; i++) {
    const float mean = m[i] + share1 * (g[i] - m[i]), square = v[i] + share2 * (g[i] * g[i] - v[i]);
    new_m[i] = mean;
    new_v[i] = square;
    new_p[i] = p[i] * keep - rate * arctan2_of_square(mean, square * correction);
  }
}

}  // namespace

const std::map<std::string, Loop>& loops() {
  static const std::map<std::string, Loop> by_name = {
      {"add_rms_norm", add_rms_norm}, {"add_rms_norm_backward", add_rms_norm_backward},
      {"swiglu", swiglu},             {"swiglu_backward", swiglu_backward},
      {"silu", silu},                 {"silu_backward", silu_backward},
      {"attention", attention},       {"attention_backward", attention_backward},
      {"adam_atan2", adam_atan2},
  };
  return by_name;
}
