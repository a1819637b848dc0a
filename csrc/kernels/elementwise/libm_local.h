// Functions of one float that are made of libm's in double precision, rounded once: alike on every
// backend. They are rare in the networks that run here, so none has a vector form.
#pragma once

#include <math.h>

#include "ir/ops.h"

namespace tac::kernels {
namespace {

// NaN for the kinds that are not made so.
[[maybe_unused]] static inline float libm_unary(UnaryKind kind, float alpha, float beta, float x) {
  const double v = x, a = alpha;
  const auto softplus = [](double u) { return fmax(u, 0.0) + log1p(exp(-fabs(u))); };
  double y = NAN;
  switch (kind) {
    case UnaryKind::kElu: return x < 0.0F ? static_cast<float>(a * expm1(v)) : x;
    case UnaryKind::kSelu: y = beta * (x < 0.0F ? a * expm1(v) : v); break;
    case UnaryKind::kCelu: return x < 0.0F ? static_cast<float>(a * expm1(v / a)) : x;
    case UnaryKind::kSoftplus: y = x != x ? v : softplus(v); break;
    case UnaryKind::kErf: y = erf(v); break;
    case UnaryKind::kGelu: y = 0.5 * v * erfc(v * -0.70710678118654752); break;
    case UnaryKind::kGeluTanh:
      y = 0.5 * v * (1.0 + tanh(0.79788456080286536 * (v + 0.044715 * v * v * v)));
      break;
    case UnaryKind::kLog: y = log(v); break;
    case UnaryKind::kMish: y = v * tanh(softplus(v)); break;
    default: break;
  }
  return static_cast<float>(y);
}

}  // namespace
}  // namespace tac::kernels
