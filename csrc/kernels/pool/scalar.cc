// pool_f32, scalar. The oracle of the other backends.
#include "kernels/backend_local.h"
#include "kernels/kernel_table.h"
#include "kernels/pool/pool.h"

namespace tac::kernels::scalar {

void pool_f32(const PoolParams& params, const float* input, std::size_t oy, float* out) {
  const PoolParams& p = params;
  const auto in_h = static_cast<std::ptrdiff_t>(p.in_h);
  const auto in_w = static_cast<std::ptrdiff_t>(p.in_w);
  const auto pad_top = static_cast<std::ptrdiff_t>(p.pad_top);
  const auto pad_left = static_cast<std::ptrdiff_t>(p.pad_left);
  const std::ptrdiff_t iy0 = static_cast<std::ptrdiff_t>(oy * p.stride_h) - pad_top;
  const LocalTapRange ky = local_tap_range(iy0, p.kernel_h, p.dilation_h, 0, in_h);
  const LocalTapRange ky_padded = local_tap_range(iy0, p.kernel_h, p.dilation_h, -pad_top,
                                                  in_h + static_cast<std::ptrdiff_t>(p.pad_bottom));
  for (std::size_t ox = 0; ox < p.out_w; ++ox) {
    const std::ptrdiff_t ix0 = static_cast<std::ptrdiff_t>(ox * p.stride_w) - pad_left;
    const LocalTapRange kx = local_tap_range(ix0, p.kernel_w, p.dilation_w, 0, in_w);
    const LocalTapRange kx_padded = local_tap_range(
        ix0, p.kernel_w, p.dilation_w, -pad_left, in_w + static_cast<std::ptrdiff_t>(p.pad_right));
    const LocalTapRange& counted_y = p.count_include_pad ? ky_padded : ky;
    const LocalTapRange& counted_x = p.count_include_pad ? kx_padded : kx;
    const float divisor =
        static_cast<float>((counted_y.end - counted_y.begin) * (counted_x.end - counted_x.begin));
    for (std::size_t c = 0; c < p.channels; ++c) {
      float result = p.average ? 0.0F : -__builtin_inff();
      for (std::size_t y = ky.begin; y < ky.end; ++y) {
        const std::size_t iy =
            static_cast<std::size_t>(iy0 + static_cast<std::ptrdiff_t>(y * p.dilation_h));
        for (std::size_t x = kx.begin; x < kx.end; ++x) {
          const std::size_t ix =
              static_cast<std::size_t>(ix0 + static_cast<std::ptrdiff_t>(x * p.dilation_w));
          const float value = input[(iy * p.in_w + ix) * p.channels + c];
          if (p.average) {
            result += value;
          } else if (value > result || value != value) {
            result = value;
          }
        }
      }
      out[ox * p.channels + c] = p.average ? result / divisor : result;
    }
  }
}

}  // namespace tac::kernels::scalar
