// Contract of linear_f32: dense float fully connected layer.
#pragma once

#include <cstddef>

namespace tac::kernels {

// Output features are packed in blocks of 16: weights [ceil(O / 16)][K][16], 64-byte aligned,
// padding 0.
inline constexpr std::size_t kLinearBlock = 16;

// y[n * y_stride + o] = bias[o] + sum over k of w[o][k] * x[n * x_stride + k], for the outputs of
// blocks [block_begin, block_end), never past out_features. bias has out_features rounded up to 16
// values. The sum runs in float32 in an order of the backend's own; |error| <= K * 2^-23 * (|bias|
// + sum |w x|).
struct LinearParams {
  std::size_t in_features, out_features;
  const float* weights;
  const float* bias;
};
using linear_f32_fn = void (*)(const LinearParams& params, const float* x, std::size_t batch,
                               std::size_t x_stride, std::size_t block_begin, std::size_t block_end,
                               float* y, std::size_t y_stride);

}  // namespace tac::kernels
