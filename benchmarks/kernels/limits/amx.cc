// 4 tiles of pixels by a tile of weights: products of bytes. A round is 64 channels of a tap.
#include <immintrin.h>

#include <cstdint>

#include "limits.h"

namespace tac::limits::amx {

std::size_t bconv_b1(std::size_t n_rounds) {
  alignas(64) std::uint8_t config[64] = {1};
  for (std::size_t i = 0; i < 8; ++i) {
    config[16 + 2 * i] = 64;
    config[48 + i] = 16;
  }
  asm volatile("" : : "m"(config));
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (std::size_t round = 0; round < n_rounds; ++round) {
    _tile_dpbssd(0, 4, 5);
    _tile_dpbssd(1, 4, 5);
    _tile_dpbssd(2, 4, 5);
    _tile_dpbssd(3, 4, 5);
  }
  _tile_release();
  return n_rounds * 4 * 16 * 16 * 64;
}

}  // namespace tac::limits::amx
