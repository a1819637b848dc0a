// reduce_rows_f32, reduce_columns_f32, scalar. The oracle of the vector versions.
#include "kernels/kernel_table.h"
#include "kernels/reduce/reduce_local.h"

namespace tac::kernels::scalar {
namespace {

template <Term kTerm>
static inline double term(double x) {
  if (kTerm == Term::kAbsolute) return fabs(x);
  return kTerm == Term::kSquare ? x * x : x;
}

struct Rows {
  ReduceKind kind;
  const float* x;
  std::size_t n_rows, stride, n;
  float* y;

  template <Join kJoin, Term kTerm>
  void run() const {
    for (std::size_t r = 0; r < n_rows; ++r) {
      double acc[kReduceAccumulators];
      for (double& a : acc) a = neutral(kJoin);
      for (std::size_t i = 0; i < n; ++i) {
        double& a = acc[i % kReduceAccumulators];
        a = join<kJoin>(a, term<kTerm>(x[r * stride + i]));
      }
      y[r] = finished(kind, fold<kJoin>(acc, kReduceAccumulators), n);
    }
  }
};

struct Columns {
  ReduceKind kind;
  const float* x;
  std::size_t n_rows, stride, n;
  float* y;

  template <Join kJoin, Term kTerm>
  void run() const {
    for (std::size_t c = 0; c < n; ++c) {
      double acc = neutral(kJoin);
      for (std::size_t r = 0; r < n_rows; ++r)
        acc = join<kJoin>(acc, term<kTerm>(x[r * stride + c]));
      y[c] = finished(kind, acc, n_rows);
    }
  }
};

}  // namespace

void reduce_rows_f32(ReduceKind kind, const float* x, std::size_t n_rows, std::size_t stride,
                     std::size_t n, float* y) {
  with_kind(kind, Rows{kind, x, n_rows, stride, n, y});
}

void reduce_columns_f32(ReduceKind kind, const float* x, std::size_t n_rows, std::size_t stride,
                        std::size_t n, float* y) {
  with_kind(kind, Columns{kind, x, n_rows, stride, n, y});
}

}  // namespace tac::kernels::scalar
