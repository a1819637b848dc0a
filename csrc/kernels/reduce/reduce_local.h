// What the backends' reductions share, for single numbers.
#pragma once

#include <math.h>

#include "kernels/backend_local.h"
#include "kernels/reduce/reduce.h"

namespace tac::kernels {
namespace {

// How terms are joined; mean, L1, L2 and sum_square are sums.
enum class Join { kAdd, kMultiply, kLarger, kSmaller };
// What is done to a value before that.
enum class Term { kSame, kAbsolute, kSquare };

template <Join kJoin>
[[maybe_unused]] static inline double join(double a, double b) {
  if (kJoin == Join::kAdd) return a + b;
  if (kJoin == Join::kMultiply) return a * b;
  return b != b || (kJoin == Join::kLarger ? b > a : b < a) ? b : a;
}

// Joined to anything else it changes nothing.
[[maybe_unused]] static inline constexpr float neutral(Join join) {
  switch (join) {
    case Join::kAdd: return 0.0F;
    case Join::kMultiply: return 1.0F;
    case Join::kLarger: return -__builtin_inff();
    case Join::kSmaller: break;
  }
  return __builtin_inff();
}

[[maybe_unused]] static inline float finished(ReduceKind kind, double joined, std::size_t count) {
  if (kind == ReduceKind::kMean) joined /= static_cast<double>(count);
  if (kind == ReduceKind::kL2) joined = sqrt(joined);
  return static_cast<float>(joined);
}

// Accumulators [0, n), a power of two, to one.
template <Join kJoin>
[[maybe_unused]] static inline double fold(double* acc, std::size_t n) {
  for (std::size_t half = n / 2; half > 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) acc[j] = join<kJoin>(acc[j], acc[j + half]);
  }
  return acc[0];
}

// Calls f.run<join, term>() for the kind.
template <class F>
[[maybe_unused]] static inline void with_kind(ReduceKind kind, const F& f) {
  switch (kind) {
    case ReduceKind::kMean:
    case ReduceKind::kSum: return f.template run<Join::kAdd, Term::kSame>();
    case ReduceKind::kMax: return f.template run<Join::kLarger, Term::kSame>();
    case ReduceKind::kMin: return f.template run<Join::kSmaller, Term::kSame>();
    case ReduceKind::kProd: return f.template run<Join::kMultiply, Term::kSame>();
    case ReduceKind::kL1: return f.template run<Join::kAdd, Term::kAbsolute>();
    case ReduceKind::kL2:
    case ReduceKind::kSumSquare: return f.template run<Join::kAdd, Term::kSquare>();
  }
}

}  // namespace
}  // namespace tac::kernels
