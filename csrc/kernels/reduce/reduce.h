// Contracts of the kernels that reduce many floats to one. Terms are added or multiplied in double
// precision in a fixed order and rounded to float32 once, so results have the same bits on every
// backend.
#pragma once

#include <cstddef>

#include "ir/ops.h"

namespace tac::kernels {

// y[r] is made of x[r * stride + i], i < n: term i goes to accumulator i % kReduceAccumulators, i
// ascending; then accumulator j takes j + 16, then j + 8, 4, 2 and 1. A maximum or minimum keeps
// the first of equals and is NaN where a value is.
inline constexpr std::size_t kReduceAccumulators = 32;
using reduce_rows_f32_fn = void (*)(ReduceKind kind, const float* x, std::size_t n_rows,
                                    std::size_t stride, std::size_t n, float* y);

// y[c] is made of x[r * stride + c], r < n_rows ascending, for each c < n.
using reduce_columns_f32_fn = void (*)(ReduceKind kind, const float* x, std::size_t n_rows,
                                       std::size_t stride, std::size_t n, float* y);

}  // namespace tac::kernels
