#include "reference/integer_conv.h"

namespace tac::reference {

std::vector<std::int64_t> integer_conv(const IntegerConv& conv) {
  std::vector<std::int64_t> out;
  out.reserve(conv.out_h * conv.out_w * conv.out_channels);
  for (std::size_t oy = 0; oy < conv.out_h; ++oy) {
    for (std::size_t ox = 0; ox < conv.out_w; ++ox) {
      for (std::size_t oc = 0; oc < conv.out_channels; ++oc) {
        const std::int64_t* w =
            conv.weights.data() + oc * conv.kernel_h * conv.kernel_w * conv.in_channels;
        std::int64_t sum = 0;
        for (std::size_t ky = 0; ky < conv.kernel_h; ++ky) {
          for (std::size_t kx = 0; kx < conv.kernel_w; ++kx) {
            // Wraps around to a huge number where the tap lies above or left of the map.
            const std::size_t iy = oy * conv.stride_h + ky * conv.dilation_h - conv.pad_top;
            const std::size_t ix = ox * conv.stride_w + kx * conv.dilation_w - conv.pad_left;
            const bool inside = iy < conv.in_h && ix < conv.in_w;
            for (std::size_t c = 0; c < conv.in_channels; ++c) {
              const std::int64_t level =
                  inside ? conv.input[(iy * conv.in_w + ix) * conv.in_channels + c]
                         : conv.pad_level;
              sum += *w++ * level;
            }
          }
        }
        out.push_back(sum);
      }
    }
  }
  return out;
}

}  // namespace tac::reference
