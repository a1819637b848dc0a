// affine_f32, unary_f32, binary_f32, softmax_f32, scalar. The oracle of the other backends.
// Comparisons are spelled so that a NaN in x comes out and that equal values (0 and -0) give the
// operand that the vector instructions give.
#include <math.h>

#include "kernels/backend_local.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {
namespace {

static inline float at_least(float x, float low) {
  return low > x ? low : x;
}
static inline float at_most(float x, float high) {
  return high < x ? high : x;
}
static inline float sigmoid(float x) {
  return 1.0F / (1.0F + expf(-x));
}
static inline float sign(float x) {
  return x > 0.0F ? 1.0F : x < 0.0F ? -1.0F : x == 0.0F ? 0.0F : x;
}

template <class F>
static inline void map(const float* x, std::size_t n, float* y, F f) {
  for (std::size_t i = 0; i < n; ++i) y[i] = f(x[i]);
}

template <class F>
static inline void map2(const float* a, std::size_t a_step, const float* b, std::size_t b_step,
                        std::size_t n, float* y, F f) {
  for (std::size_t i = 0; i < n; ++i) y[i] = f(a[i * a_step], b[i * b_step]);
}

}  // namespace

void affine_f32(const float* scale, const float* shift, std::size_t channels, const float* x,
                std::size_t n_rows, float* y) {
  for (std::size_t r = 0; r < n_rows; ++r) {
    for (std::size_t c = 0; c < channels; ++c)
      y[r * channels + c] = scale[c] * x[r * channels + c] + shift[c];
  }
}

void unary_f32(UnaryKind kind, float alpha, float beta, const float* x, std::size_t n, float* y) {
  switch (kind) {
    case UnaryKind::kRelu: map(x, n, y, [](float v) { return at_least(v, 0.0F); }); break;
    case UnaryKind::kClip:
      map(x, n, y, [=](float v) { return at_most(at_least(v, alpha), beta); });
      break;
    case UnaryKind::kLeakyRelu:
      map(x, n, y, [=](float v) { return v < 0.0F ? alpha * v : v; });
      break;
    case UnaryKind::kSigmoid: map(x, n, y, sigmoid); break;
    case UnaryKind::kTanh: map(x, n, y, tanhf); break;
    case UnaryKind::kHardSigmoid:
      map(x, n, y, [=](float v) { return at_most(at_least(alpha * v + beta, 0.0F), 1.0F); });
      break;
    case UnaryKind::kHardSwish:
      map(x, n, y, [](float v) { return v * at_most(at_least(v / 6.0F + 0.5F, 0.0F), 1.0F); });
      break;
    case UnaryKind::kAbs: map(x, n, y, fabsf); break;
    case UnaryKind::kNeg: map(x, n, y, [](float v) { return -v; }); break;
    case UnaryKind::kSqrt: map(x, n, y, sqrtf); break;
    case UnaryKind::kExp: map(x, n, y, expf); break;
    case UnaryKind::kSign: map(x, n, y, sign); break;
    case UnaryKind::kFloor: map(x, n, y, floorf); break;
    case UnaryKind::kCeil: map(x, n, y, ceilf); break;
    case UnaryKind::kRound:
      map(x, n, y, rintf);
      break;  // to even, the rounding mode of every thread of ours
  }
}

void binary_f32(BinaryKind kind, const float* a, std::size_t a_step, const float* b,
                std::size_t b_step, std::size_t n, float* y) {
  const auto apply = [=](auto f) { map2(a, a_step, b, b_step, n, y, f); };
  switch (kind) {
    case BinaryKind::kAdd: apply([](float u, float v) { return u + v; }); break;
    case BinaryKind::kSub: apply([](float u, float v) { return u - v; }); break;
    case BinaryKind::kMul: apply([](float u, float v) { return u * v; }); break;
    case BinaryKind::kDiv: apply([](float u, float v) { return u / v; }); break;
    case BinaryKind::kMin: apply([](float u, float v) { return u != u || u < v ? u : v; }); break;
    case BinaryKind::kMax: apply([](float u, float v) { return u != u || u > v ? u : v; }); break;
    case BinaryKind::kPow: apply(powf); break;
    case BinaryKind::kPRelu: apply([](float u, float v) { return u < 0.0F ? v * u : u; }); break;
  }
}

void softmax_f32(bool log, const float* x, std::size_t n_rows, std::size_t n, float* y) {
  for (std::size_t r = 0; r < n_rows; ++r, x += n, y += n) {
    float largest = -INFINITY;
    for (std::size_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    float sum = 0.0F;
    for (std::size_t i = 0; i < n; ++i) {
      const float e = expf(x[i] - largest);
      sum += e;
      if (!log) y[i] = e;
    }
    const float log_sum = logf(sum);
    for (std::size_t i = 0; i < n; ++i) y[i] = log ? (x[i] - largest) - log_sum : y[i] / sum;
  }
}

}  // namespace tac::kernels::scalar
