#include <bit>
#include <cstring>

#include "format/tacbin.h"

namespace tac {

std::uint64_t checksum(std::span<const std::byte> bytes) noexcept {
  static_assert(std::endian::native == std::endian::little,
                "the format is read and written in place");
  constexpr std::uint64_t kPrime = 0x9E3779B97F4A7C15ULL;  // odd: multiplication is a bijection
  const auto step = [](std::uint64_t lane, std::uint64_t word) {
    return std::rotl((lane ^ word) * kPrime, 29);
  };
  std::uint64_t lanes[4] = {1, 2, 3, 4};
  const std::byte* p = bytes.data();
  std::size_t left = bytes.size();
  for (; left >= 32; left -= 32, p += 32) {
    std::uint64_t words[4];
    std::memcpy(words, p, 32);
    for (int i = 0; i < 4; ++i) lanes[i] = step(lanes[i], words[i]);
  }
  for (int i = 0; left > 0; ++i) {
    const std::size_t n = left < 8 ? left : 8;
    std::uint64_t word = 0;
    std::memcpy(&word, p, n);
    lanes[i] = step(lanes[i], word);
    p += n;
    left -= n;
  }
  std::uint64_t hash = bytes.size();
  for (const std::uint64_t lane : lanes) hash = step(hash, lane);
  return hash ^ (hash >> 32);
}

}  // namespace tac
