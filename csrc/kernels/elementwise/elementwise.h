// Contracts of the elementwise float kernels. Products and sums round separately (no FMA), so + - *
// / min max and everything made of them give the same bits on every backend; exp, tanh and sigmoid
// are within 4 units in the last place or 1e-7, what libm_local.h has too, alike on every backend.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ir/ops.h"
#include "kernels/quantize/quantize.h"

namespace tac::kernels {

// All three work on rectangles: row r of an array starts r * its stride after the first. In place
// (an operand's rows are y's rows) is allowed.

// y[r][c] = scale[c] * x[r][c] + shift[c]
using affine_f32_fn = void (*)(const float* scale, const float* shift, std::size_t channels,
                               std::size_t n_rows, const float* x, std::size_t x_stride, float* y,
                               std::size_t y_stride);

// y[r][i] = kind(x[r][i]), i < n
using unary_f32_fn = void (*)(UnaryKind kind, float alpha, float beta, std::size_t n_rows,
                              std::size_t n, const float* x, std::size_t x_stride, float* y,
                              std::size_t y_stride);

// An operand that may be broadcast: value i of row r is data[r * stride + i * step]. step is 0 or
// 1; a stride of 0 repeats one row.
struct BinaryOperand {
  const float* data;
  std::size_t stride, step;
};
// y[r][i] = a[r][i] kind b[r][i], i < n. y's rows may be the rows of an operand with step 1 and
// y's stride.
using binary_f32_fn = void (*)(BinaryKind kind, BinaryOperand a, BinaryOperand b,
                               std::size_t n_rows, std::size_t n, float* y, std::size_t y_stride);

// A chain of elementwise ops on a tile that stays in registers. The tile's value (row r, channel c)
// starts as source.acc or source.x and is changed by one op after the other; kStore and kBits hand
// it out and leave it as it is.
struct ChainSource {
  const std::int32_t* acc;  // converted to float32, or
  const float* x;           // where acc is nullptr
  std::size_t stride;
};
enum class ChainKind : std::uint8_t {
  kAffine,     // a[c] * v + b[c]
  kRelu,       // as UnaryKind
  kClip,       // with alpha and beta
  kLeakyRelu,  // with alpha
  kAdd,        // v kind operand, as BinaryKind
  kSub,
  kMul,
  kMin,
  kMax,
  kPRelu,
  kStore,  // y[r * y_stride + c] = v
  kBits,   // a packed code, as quantize_f32_bits
};
struct ChainOp {
  ChainKind kind;
  float alpha, beta;
  const float *a, *b;     // kAffine: scale and shift of the tile's channels
  BinaryOperand operand;  // kAdd .. kPRelu
  float* y;               // kStore; may be the operand of an earlier or of a later op
  std::size_t y_stride;   // kStore
  // kBits: to bits[plane * plane_stride + r * out_stride + word]. The tile begins at first_channel,
  // a multiple of 32, of `quantize`.
  const QuantizeParams<float>* quantize;
  std::size_t first_channel;
  std::uint32_t* bits;
  std::size_t out_stride, plane_stride;
};
// Nothing past the tile is touched but the unused bits of the last word of a row, which are 0.
using chain_f32_fn = void (*)(const ChainSource& source, std::size_t n_rows, std::size_t n_channels,
                              const ChainOp* ops, std::size_t n_ops);

// For each row of n contiguous values: softmax, or its logarithm. A row with a NaN or +inf in it,
// or of -inf alone, has NaNs as NumPy would give. With m the row's largest value,
//   |error| <= (n + 16 + m - x) * 2^-23 * y + 2^-126,   of the logarithm (n + 16) * 2^-23 * (1 +
//   |y|).
using softmax_f32_fn = void (*)(bool log, const float* x, std::size_t n_rows, std::size_t n,
                                float* y);

}  // namespace tac::kernels
