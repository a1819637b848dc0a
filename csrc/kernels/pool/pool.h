// Contract of pool_f32: max and average pooling, NHWC.
#pragma once

#include <cstddef>

namespace tac::kernels {

// Output row oy, all channels: out[ox * channels + c]. Windows are clipped to the padded map (pads
// are the distances that count_include_pad may count); max ignores padding and lets NaN win;
// average sums taps in (ky, kx) order and divides by their number.
struct PoolParams {
  std::size_t in_h, in_w, out_w, channels;
  std::size_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  std::size_t pad_top, pad_left, pad_bottom, pad_right;
  bool average, count_include_pad;
};
using pool_f32_fn = void (*)(const PoolParams& params, const float* input, std::size_t oy,
                             float* out);

}  // namespace tac::kernels
