// How convolutions cut their work, the same for any number of threads.
#pragma once

#include <cstddef>

#include "runtime/layout.h"

namespace tac {

inline constexpr std::size_t kConvBlocksPerItem = 4;
// About as many, in whole rows: kernels tile pixels of several rows together.
inline constexpr std::size_t kConvPixelsPerItem = 64;

constexpr std::size_t conv_rows_per_item(std::size_t out_h, std::size_t out_w) noexcept {
  return ceil_div(out_h, ceil_div(out_h * out_w, kConvPixelsPerItem));
}

}  // namespace tac
