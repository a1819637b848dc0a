// conv_f32, scalar: one output value at a time, taps in (ky, kx, channel) order. The oracle of the
// other backends.
#include "kernels/backend_local.h"
#include "kernels/fconv/fconv.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {
namespace {

static void row(const ConvParams& p, const float* input, std::size_t oy, std::size_t block_begin,
                std::size_t block_end, float* out, std::size_t out_stride) {
  const std::size_t oc_end = local_min(p.out_channels, block_end * kConvBlock);
  const std::ptrdiff_t iy0 =
      static_cast<std::ptrdiff_t>(oy * p.stride_h) - static_cast<std::ptrdiff_t>(p.pad_top);
  const LocalTapRange ky_range =
      local_tap_range(iy0, p.kernel_h, p.dilation_h, 0, static_cast<std::ptrdiff_t>(p.in_h));
  for (std::size_t ox = 0; ox < p.out_w; ++ox) {
    const std::ptrdiff_t ix0 =
        static_cast<std::ptrdiff_t>(ox * p.stride_w) - static_cast<std::ptrdiff_t>(p.pad_left);
    const LocalTapRange kx_range =
        local_tap_range(ix0, p.kernel_w, p.dilation_w, 0, static_cast<std::ptrdiff_t>(p.in_w));
    for (std::size_t oc = block_begin * kConvBlock; oc < oc_end; ++oc) {
      float sum = p.bias[oc];
      for (std::size_t ky = ky_range.begin; ky < ky_range.end; ++ky) {
        const std::size_t iy =
            static_cast<std::size_t>(iy0 + static_cast<std::ptrdiff_t>(ky * p.dilation_h));
        for (std::size_t kx = kx_range.begin; kx < kx_range.end; ++kx) {
          const std::size_t ix =
              static_cast<std::size_t>(ix0 + static_cast<std::ptrdiff_t>(kx * p.dilation_w));
          const float* x = input + (iy * p.in_w + ix) * p.pixel_stride;
          const std::size_t tap = (oc / kConvBlock * p.kernel_h + ky) * p.kernel_w + kx;
          const float* w = p.weights + tap * p.in_channels * kConvBlock + oc % kConvBlock;
          for (std::size_t ic = 0; ic < p.in_channels; ++ic) sum += w[ic * kConvBlock] * x[ic];
        }
      }
      out[ox * out_stride + oc] = sum;
    }
  }
}

}  // namespace

void conv_f32(const ConvParams& params, const float* input, std::size_t oy_begin,
              std::size_t oy_end, std::size_t block_begin, std::size_t block_end, float* out,
              std::size_t out_stride) {
  for (std::size_t oy = oy_begin; oy < oy_end; ++oy) {
    row(params, input, oy, block_begin, block_end, out, out_stride);
    out += params.out_w * out_stride;
  }
}

}  // namespace tac::kernels::scalar
