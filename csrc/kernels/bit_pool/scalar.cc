// Max pooling on packed codes, 32 channels a word, bit-serial. Contract in bit_pool.h.
// Linear codes a and b are compared from the most significant plane down:
//   greater |= undecided & a & ~b;   undecided &= ~(a ^ b)
#include "kernels/backend_local.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {

void bit_pool_bits(const BitPoolParams& p, const std::uint32_t* input, std::size_t oy,
                   std::uint32_t* out) {
  const auto top =
      static_cast<std::ptrdiff_t>(oy * p.stride_h) - static_cast<std::ptrdiff_t>(p.pad_top);
  for (std::size_t ox = 0; ox < p.out_w; ++ox) {
    const auto left =
        static_cast<std::ptrdiff_t>(ox * p.stride_w) - static_cast<std::ptrdiff_t>(p.pad_left);
    for (std::size_t word = 0; word < p.words; ++word) {
      const std::uint32_t take_min = p.take_min[word];
      std::uint32_t best[4] = {0, 0, 0, 0};
      bool first = true;
      for (std::size_t ky = 0; ky < p.kernel_h; ++ky) {
        const std::ptrdiff_t y = top + static_cast<std::ptrdiff_t>(ky * p.dilation_h);
        if (y < 0 || y >= static_cast<std::ptrdiff_t>(p.in_h)) continue;
        for (std::size_t kx = 0; kx < p.kernel_w; ++kx) {
          const std::ptrdiff_t x = left + static_cast<std::ptrdiff_t>(kx * p.dilation_w);
          if (x < 0 || x >= static_cast<std::ptrdiff_t>(p.in_w)) continue;
          const std::uint32_t* tap =
              input +
              (static_cast<std::size_t>(y) * p.in_w + static_cast<std::size_t>(x)) * p.words + word;
          if (first) {
            for (std::size_t i = 0; i < p.n_planes; ++i) best[i] = tap[i * p.in_plane_stride];
            first = false;
            continue;
          }
          if (p.bitwise) {
            for (std::size_t i = 0; i < p.n_planes; ++i) {
              const std::uint32_t bits = tap[i * p.in_plane_stride];
              best[i] = ((best[i] | bits) & ~take_min) | (best[i] & bits & take_min);
            }
            continue;
          }
          std::uint32_t greater = 0;  // channels where this tap's code is the larger
          std::uint32_t undecided = ~std::uint32_t{0};
          for (std::size_t i = p.n_planes; i-- > 0;) {
            const std::uint32_t bits = tap[i * p.in_plane_stride];
            greater |= undecided & bits & ~best[i];
            undecided &= ~(bits ^ best[i]);
          }
          const std::uint32_t take = (greater & ~take_min) | (~greater & ~undecided & take_min);
          for (std::size_t i = 0; i < p.n_planes; ++i) {
            best[i] = (tap[i * p.in_plane_stride] & take) | (best[i] & ~take);
          }
        }
      }
      for (std::size_t i = 0; i < p.n_planes; ++i)
        out[i * p.out_plane_stride + ox * p.words + word] = best[i];
    }
  }
}

}  // namespace tac::kernels::scalar
