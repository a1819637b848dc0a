// depthwise_f32, scalar: one output value at a time.
#include "kernels/backend_local.h"
#include "kernels/depthwise/depthwise.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {

void depthwise_f32(const DepthwiseParams& p, const float* input, std::size_t oy, float* out) {
  const std::ptrdiff_t iy0 =
      static_cast<std::ptrdiff_t>(oy * p.stride_h) - static_cast<std::ptrdiff_t>(p.pad_top);
  const LocalTapRange ky_range =
      local_tap_range(iy0, p.kernel_h, p.dilation_h, 0, static_cast<std::ptrdiff_t>(p.in_h));
  for (std::size_t ox = 0; ox < p.out_w; ++ox) {
    const std::ptrdiff_t ix0 =
        static_cast<std::ptrdiff_t>(ox * p.stride_w) - static_cast<std::ptrdiff_t>(p.pad_left);
    const LocalTapRange kx_range =
        local_tap_range(ix0, p.kernel_w, p.dilation_w, 0, static_cast<std::ptrdiff_t>(p.in_w));
    for (std::size_t c = 0; c < p.channels; ++c) {
      float sum = p.bias[c];
      for (std::size_t ky = ky_range.begin; ky < ky_range.end; ++ky) {
        const std::size_t iy =
            static_cast<std::size_t>(iy0 + static_cast<std::ptrdiff_t>(ky * p.dilation_h));
        for (std::size_t kx = kx_range.begin; kx < kx_range.end; ++kx) {
          const std::size_t ix =
              static_cast<std::size_t>(ix0 + static_cast<std::ptrdiff_t>(kx * p.dilation_w));
          sum += p.weights[(ky * p.kernel_w + kx) * p.channels + c] *
                 input[(iy * p.in_w + ix) * p.channels + c];
        }
      }
      out[ox * p.channels + c] = sum;
    }
  }
}

}  // namespace tac::kernels::scalar
