// affine_f32, unary_f32, binary_f32, chain_f32, softmax_f32, scalar. The oracle of the other
// backends. Comparisons are spelled so that a NaN in x comes out and that equal values (0 and -0)
// give the operand that the vector instructions give.
#include <math.h>

#include "kernels/backend_local.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/elementwise/libm_local.h"
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
static inline void map(std::size_t n_rows, std::size_t n, const float* x, std::size_t x_stride,
                       float* y, std::size_t y_stride, F f) {
  for (std::size_t r = 0; r < n_rows; ++r) {
    for (std::size_t i = 0; i < n; ++i) y[r * y_stride + i] = f(x[r * x_stride + i]);
  }
}

template <class F>
static inline void map2(BinaryOperand a, BinaryOperand b, std::size_t n_rows, std::size_t n,
                        float* y, std::size_t y_stride, F f) {
  for (std::size_t r = 0; r < n_rows; ++r) {
    for (std::size_t i = 0; i < n; ++i) {
      y[r * y_stride + i] = f(a.data[r * a.stride + i * a.step], b.data[r * b.stride + i * b.step]);
    }
  }
}

static inline float chain_value(const ChainOp& op, std::size_t r, std::size_t c, float v) {
  const float* o = op.operand.data;
  const float b = o == nullptr ? 0.0F : o[r * op.operand.stride + c * op.operand.step];
  switch (op.kind) {
    case ChainKind::kAffine: return op.a[c] * v + op.b[c];
    case ChainKind::kRelu: return at_least(v, 0.0F);
    case ChainKind::kClip: return at_most(at_least(v, op.alpha), op.beta);
    case ChainKind::kLeakyRelu: return v < 0.0F ? op.alpha * v : v;
    case ChainKind::kAdd: return v + b;
    case ChainKind::kSub: return v - b;
    case ChainKind::kMul: return v * b;
    case ChainKind::kMin: return v != v || v < b ? v : b;
    case ChainKind::kMax: return v != v || v > b ? v : b;
    case ChainKind::kPRelu: return v < 0.0F ? b * v : v;
    case ChainKind::kStore:
    case ChainKind::kBits: break;
  }
  return v;
}

}  // namespace

void affine_f32(const float* scale, const float* shift, std::size_t channels, std::size_t n_rows,
                const float* x, std::size_t x_stride, float* y, std::size_t y_stride) {
  for (std::size_t r = 0; r < n_rows; ++r) {
    for (std::size_t c = 0; c < channels; ++c)
      y[r * y_stride + c] = scale[c] * x[r * x_stride + c] + shift[c];
  }
}

void unary_f32(UnaryKind kind, float alpha, float beta, std::size_t n_rows, std::size_t n,
               const float* x, std::size_t x_stride, float* y, std::size_t y_stride) {
  const auto apply = [=](auto f) { map(n_rows, n, x, x_stride, y, y_stride, f); };
  switch (kind) {
    case UnaryKind::kRelu: apply([](float v) { return at_least(v, 0.0F); }); break;
    case UnaryKind::kClip: apply([=](float v) { return at_most(at_least(v, alpha), beta); }); break;
    case UnaryKind::kLeakyRelu: apply([=](float v) { return v < 0.0F ? alpha * v : v; }); break;
    case UnaryKind::kSigmoid: apply(sigmoid); break;
    case UnaryKind::kTanh: apply(tanhf); break;
    case UnaryKind::kHardSigmoid:
      apply([=](float v) { return at_most(at_least(alpha * v + beta, 0.0F), 1.0F); });
      break;
    case UnaryKind::kHardSwish:
      apply([](float v) { return v * at_most(at_least(v / 6.0F + 0.5F, 0.0F), 1.0F); });
      break;
    case UnaryKind::kAbs: apply(fabsf); break;
    case UnaryKind::kNeg: apply([](float v) { return -v; }); break;
    case UnaryKind::kSqrt: apply(sqrtf); break;
    case UnaryKind::kExp: apply(expf); break;
    case UnaryKind::kSign: apply(sign); break;
    case UnaryKind::kFloor: apply(floorf); break;
    case UnaryKind::kCeil: apply(ceilf); break;
    case UnaryKind::kRound:
      apply(rintf);
      break;  // to even, the rounding mode of every thread of ours
    case UnaryKind::kSoftsign: apply([](float v) { return v / (1.0F + fabsf(v)); }); break;
    case UnaryKind::kReciprocal: apply([](float v) { return 1.0F / v; }); break;
    case UnaryKind::kThresholdedRelu: apply([=](float v) { return v > alpha ? v : 0.0F; }); break;
    case UnaryKind::kTrunc: apply(truncf); break;
    case UnaryKind::kElu:
    case UnaryKind::kSelu:
    case UnaryKind::kCelu:
    case UnaryKind::kSoftplus:
    case UnaryKind::kErf:
    case UnaryKind::kGelu:
    case UnaryKind::kGeluTanh:
    case UnaryKind::kLog:
    case UnaryKind::kMish: apply([=](float v) { return libm_unary(kind, alpha, beta, v); }); break;
  }
}

void binary_f32(BinaryKind kind, BinaryOperand a, BinaryOperand b, std::size_t n_rows,
                std::size_t n, float* y, std::size_t y_stride) {
  const auto apply = [=](auto f) { map2(a, b, n_rows, n, y, y_stride, f); };
  switch (kind) {
    case BinaryKind::kAdd: apply([](float u, float v) { return u + v; }); break;
    case BinaryKind::kSub: apply([](float u, float v) { return u - v; }); break;
    case BinaryKind::kMul: apply([](float u, float v) { return u * v; }); break;
    case BinaryKind::kDiv: apply([](float u, float v) { return u / v; }); break;
    case BinaryKind::kMin: apply([](float u, float v) { return u != u || u < v ? u : v; }); break;
    case BinaryKind::kMax: apply([](float u, float v) { return u != u || u > v ? u : v; }); break;
    case BinaryKind::kPow: apply(powf); break;
    case BinaryKind::kPRelu: apply([](float u, float v) { return u < 0.0F ? v * u : u; }); break;
    case BinaryKind::kLess: apply([](float u, float v) { return u < v ? 1.0F : 0.0F; }); break;
    case BinaryKind::kLessOrEqual:
      apply([](float u, float v) { return u <= v ? 1.0F : 0.0F; });
      break;
    case BinaryKind::kEqual: apply([](float u, float v) { return u == v ? 1.0F : 0.0F; }); break;
  }
}

void chain_f32(const ChainSource& source, std::size_t n_rows, std::size_t n_channels,
               const ChainOp* ops, std::size_t n_ops) {
  for (std::size_t r = 0; r < n_rows; ++r) {
    for (const ChainOp* op = ops; op != ops + n_ops; ++op) {
      if (op->kind != ChainKind::kBits) continue;
      const std::size_t n_words = local_ceil_div(n_channels, 32);
      for (std::size_t plane = 0; plane < op->quantize->n_planes; ++plane) {
        for (std::size_t w = 0; w < n_words; ++w)
          op->bits[plane * op->plane_stride + r * op->out_stride + w] = 0;
      }
    }
    for (std::size_t c = 0; c < n_channels; ++c) {
      float v = source.acc != nullptr ? static_cast<float>(source.acc[r * source.stride + c])
                                      : source.x[r * source.stride + c];
      for (const ChainOp* op = ops; op != ops + n_ops; ++op) {
        if (op->kind == ChainKind::kStore) {
          op->y[r * op->y_stride + c] = v;
        } else if (op->kind == ChainKind::kBits) {
          const QuantizeParams<float>& q = *op->quantize;
          std::size_t n = 0;
          for (std::size_t t = 0; t < q.n_thresholds; ++t)
            n += v >= q.thresholds[t * q.threshold_stride + op->first_channel + c] ? 1 : 0;
          const std::uint32_t flip = q.flip[(op->first_channel + c) / 32];
          if ((flip >> (c % 32) & 1) != 0) n = q.n_thresholds - n;
          for (std::size_t plane = 0; plane < q.n_planes; ++plane) {
            op->bits[plane * op->plane_stride + r * op->out_stride + c / 32] |=
                static_cast<std::uint32_t>(q.code_of_index[n] >> plane & 1) << (c % 32);
          }
        } else {
          v = chain_value(*op, r, c, v);
        }
      }
    }
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
