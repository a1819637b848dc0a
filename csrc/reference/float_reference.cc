#include "reference/float_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tac::reference {

namespace {

std::size_t out_size(std::size_t in, std::size_t kernel, std::size_t stride, std::size_t dilation,
                     std::size_t pad_begin, std::size_t pad_end, bool ceil_mode) {
  const std::size_t padded = in + pad_begin + pad_end;
  const std::size_t reach = (kernel - 1) * dilation + 1;
  if (padded < reach) return 0;
  std::size_t size = (padded - reach + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (size - 1) * stride >= in + pad_begin) --size;
  return size;
}

float larger(float a, float b) {
  return std::isnan(a) || std::isnan(b) ? NAN : std::fmax(a, b);
}
// The logarithm of 1 + exp(x); beyond 700 the exponential has no double, and the 1 no weight.
double softplus(double x) {
  return x > 700.0 ? x : std::log1p(std::exp(x));
}
float smaller(float a, float b) {
  return std::isnan(a) || std::isnan(b) ? NAN : std::fmin(a, b);
}

}  // namespace

void Sum::add(double term) {
  value += term;
  magnitude += std::fabs(term);
}

std::vector<Sum> linear(std::size_t batch, std::size_t inputs, std::size_t outputs,
                        const std::vector<float>& weights, const std::vector<float>& bias,
                        const std::vector<float>& x) {
  std::vector<Sum> y(batch * outputs);
  for (std::size_t n = 0; n < batch; ++n) {
    for (std::size_t o = 0; o < outputs; ++o) {
      Sum& sum = y[n * outputs + o];
      sum.add(bias[o]);
      for (std::size_t k = 0; k < inputs; ++k) {
        sum.add(static_cast<double>(weights[o * inputs + k]) * x[n * inputs + k]);
      }
    }
  }
  return y;
}

std::size_t WindowShape::out_h(bool ceil_mode) const {
  return out_size(in_h, kernel_h, stride_h, dilation_h, pad_top, pad_bottom, ceil_mode);
}
std::size_t WindowShape::out_w(bool ceil_mode) const {
  return out_size(in_w, kernel_w, stride_w, dilation_w, pad_left, pad_right, ceil_mode);
}

std::vector<Sum> conv(const WindowShape& s, std::size_t outputs, const std::vector<float>& weights,
                      const std::vector<float>& bias, const std::vector<float>& x) {
  std::vector<Sum> y;
  for (std::size_t oy = 0; oy < s.out_h(); ++oy) {
    for (std::size_t ox = 0; ox < s.out_w(); ++ox) {
      for (std::size_t o = 0; o < outputs; ++o) {
        Sum sum;
        sum.add(bias[o]);
        for (std::size_t ky = 0; ky < s.kernel_h; ++ky) {
          for (std::size_t kx = 0; kx < s.kernel_w; ++kx) {
            const long iy = static_cast<long>(oy * s.stride_h + ky * s.dilation_h) -
                            static_cast<long>(s.pad_top);
            const long ix = static_cast<long>(ox * s.stride_w + kx * s.dilation_w) -
                            static_cast<long>(s.pad_left);
            if (iy < 0 || ix < 0 || iy >= static_cast<long>(s.in_h) ||
                ix >= static_cast<long>(s.in_w))
              continue;
            for (std::size_t c = 0; c < s.channels; ++c) {
              const double w = weights[((o * s.kernel_h + ky) * s.kernel_w + kx) * s.channels + c];
              sum.add(w * x[(static_cast<std::size_t>(iy) * s.in_w + static_cast<std::size_t>(ix)) *
                                s.channels +
                            c]);
            }
          }
        }
        y.push_back(sum);
      }
    }
  }
  return y;
}

std::vector<float> pool(const WindowShape& s, bool ceil_mode, bool average, bool count_include_pad,
                        const std::vector<float>& x) {
  std::vector<float> y;
  const long height = static_cast<long>(s.in_h);
  const long width = static_cast<long>(s.in_w);
  for (std::size_t oy = 0; oy < s.out_h(ceil_mode); ++oy) {
    for (std::size_t ox = 0; ox < s.out_w(ceil_mode); ++ox) {
      for (std::size_t c = 0; c < s.channels; ++c) {
        float sum = 0.0F;
        float best = -std::numeric_limits<float>::infinity();
        int counted = 0;
        for (std::size_t ky = 0; ky < s.kernel_h; ++ky) {
          for (std::size_t kx = 0; kx < s.kernel_w; ++kx) {
            const long iy = static_cast<long>(oy * s.stride_h + ky * s.dilation_h) -
                            static_cast<long>(s.pad_top);
            const long ix = static_cast<long>(ox * s.stride_w + kx * s.dilation_w) -
                            static_cast<long>(s.pad_left);
            const bool inside = iy >= 0 && ix >= 0 && iy < height && ix < width;
            // iy and ix are never left of the padding.
            const bool padded = iy < height + static_cast<long>(s.pad_bottom) &&
                                ix < width + static_cast<long>(s.pad_right);
            if (count_include_pad ? padded : inside) ++counted;
            if (!inside) continue;
            const float value = x[static_cast<std::size_t>(iy * width + ix) * s.channels + c];
            sum += value;
            best = larger(best, value);
          }
        }
        y.push_back(average ? sum / static_cast<float>(counted) : best);
      }
    }
  }
  return y;
}

float unary(UnaryKind kind, float alpha, float beta, float x) {
  const double wide = x;
  switch (kind) {
    case UnaryKind::kRelu: return larger(x, 0.0F);
    case UnaryKind::kClip: return smaller(larger(x, alpha), beta);
    case UnaryKind::kLeakyRelu: return x < 0.0F ? alpha * x : x;
    case UnaryKind::kSigmoid: return static_cast<float>(1.0 / (1.0 + std::exp(-wide)));
    case UnaryKind::kTanh: return static_cast<float>(std::tanh(wide));
    case UnaryKind::kHardSigmoid: {
      const float product = alpha * x;
      const float line = product + beta;
      return smaller(larger(line, 0.0F), 1.0F);
    }
    case UnaryKind::kHardSwish: {
      const float sixth = x / 6.0F;
      const float line = sixth + 0.5F;
      return x * smaller(larger(line, 0.0F), 1.0F);
    }
    case UnaryKind::kAbs: return std::fabs(x);
    case UnaryKind::kNeg: return -x;
    case UnaryKind::kSqrt: return static_cast<float>(std::sqrt(wide));
    case UnaryKind::kExp: return static_cast<float>(std::exp(wide));
    case UnaryKind::kSign: return std::isnan(x) || x == 0.0F ? x + 0.0F : std::copysign(1.0F, x);
    case UnaryKind::kFloor: return std::floor(x);
    case UnaryKind::kCeil: return std::ceil(x);
    case UnaryKind::kRound: {
      if (!(std::fabs(x) < 8388608.0F)) return x;  // 2^23: whole already
      const double below = std::floor(wide);
      const double rest = wide - below;
      const bool up = rest > 0.5 || (rest == 0.5 && std::fmod(below, 2.0) != 0.0);
      return std::copysign(static_cast<float>(up ? below + 1.0 : below), x);
    }
    case UnaryKind::kElu: return static_cast<float>(x < 0.0F ? alpha * std::expm1(wide) : wide);
    case UnaryKind::kSelu:
      return static_cast<float>(beta * (x < 0.0F ? alpha * std::expm1(wide) : wide));
    case UnaryKind::kCelu:
      return static_cast<float>(x < 0.0F ? alpha * std::expm1(wide / alpha) : wide);
    case UnaryKind::kSoftplus: return static_cast<float>(softplus(wide));
    case UnaryKind::kSoftsign: {
      const float divisor = 1.0F + std::fabs(x);
      return x / divisor;
    }
    case UnaryKind::kErf: return static_cast<float>(std::erf(wide));
    case UnaryKind::kGelu:
      return static_cast<float>(0.5 * wide * (1.0 + std::erf(wide / std::sqrt(2.0))));
    case UnaryKind::kGeluTanh: {
      const double slope = std::sqrt(2.0 / std::acos(-1.0));
      return static_cast<float>(0.5 * wide *
                                (1.0 + std::tanh(slope * (wide + 0.044715 * std::pow(wide, 3.0)))));
    }
    case UnaryKind::kReciprocal: return 1.0F / x;
    case UnaryKind::kLog: return static_cast<float>(std::log(wide));
    case UnaryKind::kMish: return static_cast<float>(wide * std::tanh(softplus(wide)));
    case UnaryKind::kThresholdedRelu: return x > alpha ? x : 0.0F;
    case UnaryKind::kTrunc: return x < 0.0F ? std::ceil(x) : std::floor(x);
  }
  return NAN;
}

float binary(BinaryKind kind, float a, float b) {
  switch (kind) {
    case BinaryKind::kAdd: return a + b;
    case BinaryKind::kSub: return a - b;
    case BinaryKind::kMul: return a * b;
    case BinaryKind::kDiv: return a / b;
    case BinaryKind::kMin: return smaller(a, b);
    case BinaryKind::kMax: return larger(a, b);
    case BinaryKind::kPow:
      return static_cast<float>(std::pow(static_cast<double>(a), static_cast<double>(b)));
    case BinaryKind::kPRelu: return a < 0.0F ? b * a : a;
    case BinaryKind::kLess: return a < b ? 1.0F : 0.0F;
    case BinaryKind::kLessOrEqual: return a <= b ? 1.0F : 0.0F;
    case BinaryKind::kEqual: return a == b ? 1.0F : 0.0F;
  }
  return NAN;
}

Sum reduce(ReduceKind kind, const std::vector<float>& x) {
  Sum result;
  const auto n = static_cast<double>(x.size());
  switch (kind) {
    case ReduceKind::kMean:
      for (const float v : x) result.add(v / n);
      break;
    case ReduceKind::kSum:
      for (const float v : x) result.add(v);
      break;
    case ReduceKind::kMax:
    case ReduceKind::kMin: {
      float best = x[0];
      for (const float v : x) best = kind == ReduceKind::kMax ? larger(best, v) : smaller(best, v);
      result.add(best);
      break;
    }
    case ReduceKind::kProd: {
      double product = 1.0;
      for (const float v : x) product *= v;
      result.add(product);
      break;
    }
    case ReduceKind::kL1:
      for (const float v : x) result.add(std::fabs(v));
      break;
    case ReduceKind::kL2:
    case ReduceKind::kSumSquare:
      for (const float v : x) result.add(static_cast<double>(v) * v);
      if (kind == ReduceKind::kL2) result.value = result.magnitude = std::sqrt(result.value);
      break;
  }
  return result;
}

std::vector<double> softmax(bool log, const std::vector<float>& x) {
  double largest = -std::numeric_limits<double>::infinity();
  for (const float v : x) largest = std::max(largest, static_cast<double>(v));
  double sum = 0.0;
  for (const float v : x) sum += std::exp(v - largest);
  std::vector<double> y;
  for (const float v : x)
    y.push_back(log ? v - largest - std::log(sum) : std::exp(v - largest) / sum);
  return y;
}

}  // namespace tac::reference
