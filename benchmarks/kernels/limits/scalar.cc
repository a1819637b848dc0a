// 4 pairs of channels: XOR, count bits per byte, add. A round is one word of one pixel.
#include <cstdint>

#include "limits.h"

namespace tac::limits::scalar {

std::size_t bconv_b1(std::size_t n_rounds) {
  constexpr std::uint64_t kOnes = 0x5555555555555555U, kTwos = 0x3333333333333333U;
  std::uint64_t acc[4] = {}, x = 0x123456789ABCDEF0U;
  const std::uint64_t w[4] = {kOnes, 3 * kOnes, kTwos, 3 * kTwos};
  for (std::size_t round = 0; round < n_rounds; ++round) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      x += round;  // so that nothing is hoisted
      std::uint64_t v = x ^ w[i];
      v -= (v >> 1) & kOnes;
      v = (v & kTwos) + ((v >> 2) & kTwos);
      acc[i] += (v + (v >> 4)) & 0x0F0F0F0F0F0F0F0FU;
    }
  }
  volatile std::uint64_t sink = acc[0] + acc[1] + acc[2] + acc[3];
  static_cast<void>(sink);
  return n_rounds * 4 * 64;
}

}  // namespace tac::limits::scalar
