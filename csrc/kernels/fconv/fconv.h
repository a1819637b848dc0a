// Contract of conv_f32: direct float convolution, NHWC, vectorized over output channels.
#pragma once

#include <cstddef>

namespace tac::kernels {

inline constexpr std::size_t kConvBlock = 16;

// One group. weights [oc / 16][kernel_h][kernel_w][in_channels][16], 64-byte aligned, padding 0;
// bias [n_blocks * 16].
//   out[((oy - oy_begin) * out_w + ox) * out_stride + oc] =
//       bias[oc] + sum over taps inside the map and channels of w * x
// for output rows [oy_begin, oy_end) and the channels of blocks [block_begin, block_end), never
// past out_channels.
// input [in_h][in_w][pixel_stride], this group's in_channels start at `input`; `out` starts at the
// group's channel 0. The sum runs in float32 in an order of the backend's own; with K = kernel_h *
// kernel_w * in_channels, |error| <= K * 2^-23 * (|bias| + sum |w x|).
struct ConvParams {
  std::size_t in_h, in_w, out_w;
  std::size_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
  std::size_t in_channels, out_channels, pixel_stride;
  const float* weights;
  const float* bias;
};
using conv_f32_fn = void (*)(const ConvParams& params, const float* input, std::size_t oy_begin,
                             std::size_t oy_end, std::size_t block_begin, std::size_t block_end,
                             float* out, std::size_t out_stride);

}  // namespace tac::kernels
