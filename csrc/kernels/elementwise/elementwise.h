// Contracts of the elementwise float kernels. Products and sums round separately (no FMA), so + - *
// / min max and everything made of them give the same bits on every backend; exp, tanh and sigmoid
// are within 4 units in the last place or 1e-7.
#pragma once

#include <cstddef>

#include "ir/ops.h"

namespace tac::kernels {

// y[r * channels + c] = scale[c] * x[r * channels + c] + shift[c]. In place (x == y) is allowed,
// here and below.
using affine_f32_fn = void (*)(const float* scale, const float* shift, std::size_t channels,
                               const float* x, std::size_t n_rows, float* y);

using unary_f32_fn = void (*)(UnaryKind kind, float alpha, float beta, const float* x,
                              std::size_t n, float* y);

// y[i] = a[i * a_step] op b[i * b_step] for i < n; steps are 0 (broadcast a single value) or 1.
using binary_f32_fn = void (*)(BinaryKind kind, const float* a, std::size_t a_step, const float* b,
                               std::size_t b_step, std::size_t n, float* y);

// For each row of n contiguous values: softmax, or its logarithm. A row with a NaN or +inf in it,
// or of -inf alone, has NaNs as NumPy would give. With m the row's largest value,
//   |error| <= (n + 16 + m - x) * 2^-23 * y + 2^-126,   of the logarithm (n + 16) * 2^-23 * (1 +
//   |y|).
using softmax_f32_fn = void (*)(bool log, const float* x, std::size_t n_rows, std::size_t n,
                                float* y);

}  // namespace tac::kernels
