// Counting the bits of whole blobs.
#pragma once

#include <cstdint>
#include <span>

namespace tac {

// A popcount in plain arithmetic, which the compiler vectorizes: the baseline instruction set has
// no instruction for it.
inline std::int64_t count_bits(std::span<const std::uint32_t> words) noexcept {
  std::uint64_t total = 0;
  for (std::uint32_t x : words) {
    x -= x >> 1 & 0x55555555U;
    x = (x & 0x33333333U) + (x >> 2 & 0x33333333U);
    x = (x + (x >> 4)) & 0x0F0F0F0FU;
    x += x >> 8;
    total += (x + (x >> 16)) & 0x3FU;
  }
  return static_cast<std::int64_t>(total);
}

}  // namespace tac
