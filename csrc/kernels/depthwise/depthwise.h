// Contract of depthwise_f32: convolution of every channel with a window of its own, NHWC.
#pragma once

#include <cstddef>

namespace tac::kernels {

// Output row oy, all channels: out[ox * channels + c] = bias[c] + sum over taps inside the map of
// weights[ky][kx][c] * x[c]. The sum runs in float32, bias first, then the taps in (ky, kx) order,
// fused or not: with K = kernel_h * kernel_w, |error| <= K * 2^-23 * (|bias| + sum |w x|). Nothing
// outside the arrays is read.
struct DepthwiseParams {
  std::size_t in_h, in_w, out_w, channels;
  std::size_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
  const float* weights;  // [kernel_h][kernel_w][channels]
  const float* bias;     // [channels]
};
using depthwise_f32_fn = void (*)(const DepthwiseParams& params, const float* input, std::size_t oy,
                                  float* out);

}  // namespace tac::kernels
