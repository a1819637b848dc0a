// Reading packed codes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace tac {

// Code `index` of codes of `bits` (1..8) one after the other, little end first; what lies behind
// the last byte reads as 0.
inline unsigned code_at(std::span<const std::uint8_t> bytes, std::size_t index,
                        unsigned bits) noexcept {
  const std::size_t bit = index * bits, byte = bit / 8;
  unsigned word = bytes[byte];
  if (byte + 1 < bytes.size()) word |= static_cast<unsigned>(bytes[byte + 1]) << 8;
  return word >> (bit % 8) & ((1U << bits) - 1);
}

}  // namespace tac
