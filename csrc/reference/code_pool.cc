#include "reference/code_pool.h"

#include <algorithm>

namespace tac::reference {

std::vector<std::uint32_t> code_pool(const CodePool& pool) {
  std::vector<std::uint32_t> out;
  for (std::size_t oy = 0; oy < pool.out_h; ++oy) {
    for (std::size_t ox = 0; ox < pool.out_w; ++ox) {
      for (std::size_t c = 0; c < pool.channels; ++c) {
        std::vector<std::uint32_t> window;
        for (std::size_t ky = 0; ky < pool.kernel_h; ++ky) {
          for (std::size_t kx = 0; kx < pool.kernel_w; ++kx) {
            // Wraps around to a huge number where the tap lies above or left of the map.
            const std::size_t iy = oy * pool.stride_h + ky * pool.dilation_h - pool.pad_top;
            const std::size_t ix = ox * pool.stride_w + kx * pool.dilation_w - pool.pad_left;
            if (iy >= pool.in_h || ix >= pool.in_w) continue;
            window.push_back(pool.codes.at((iy * pool.in_w + ix) * pool.channels + c));
          }
        }
        out.push_back(pool.take_min.at(c) ? *std::ranges::min_element(window)
                                          : *std::ranges::max_element(window));
      }
    }
  }
  return out;
}

}  // namespace tac::reference
