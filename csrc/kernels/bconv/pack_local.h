// The weight layout of the kernels that count whole words, shared by their packers. Internal
// linkage, as backend_local.h explains.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/backend_local.h"
#include "kernels/bconv/bconv.h"

namespace tac::kernels {
namespace {

// [channel / 16][word][16]
[[maybe_unused]] static inline std::size_t local_pack_words(const std::uint32_t* rows,
                                                            std::size_t n_channels,
                                                            std::size_t row_words,
                                                            std::uint32_t* packed) {
  const std::size_t n_packed = local_ceil_div(n_channels, kBconvBlock) * kBconvBlock;
  if (packed == nullptr) return n_packed * row_words;
  for (std::size_t first = 0; first < n_packed; first += kBconvBlock) {
    for (std::size_t word = 0; word < row_words; ++word) {
      for (std::size_t lane = 0; lane < kBconvBlock; ++lane, ++packed) {
        const std::size_t channel = first + lane;
        *packed = channel < n_channels ? rows[channel * row_words + word] : 0;
      }
    }
  }
  return n_packed * row_words;
}

}  // namespace
}  // namespace tac::kernels
