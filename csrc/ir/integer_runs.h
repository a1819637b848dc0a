// Which products of an IntegerConv meet in a sum of 32 bits.
#pragma once

#include <cstddef>

#include "ir/ops.h"

namespace tac {

// The products (ky, kx, c) of an output are pieces, each a kernel row or a tap; a piece is
// per_piece runs of `size` values, the last of them what is left.
struct IntegerRuns {
  std::size_t piece, size, per_piece;

  // What is contiguous in the map is one piece.
  IntegerRuns(const IntegerConv& op, std::size_t channels) {
    const auto groups = static_cast<std::size_t>(op.groups);
    piece = is_contiguous(op) ? static_cast<std::size_t>(op.window.kernel[1]) * channels
                              : channels / groups;
    const std::size_t parts = 2 * static_cast<std::size_t>(op.run_parts);
    size = (piece + parts - 1) / parts * 2;
    per_piece = (piece + size - 1) / size;
  }
  static bool is_contiguous(const IntegerConv& op) noexcept {
    return op.groups == 1 && op.window.dilations[1] == 1;
  }
  // The run of product k.
  std::size_t of(std::size_t k) const noexcept { return k / piece * per_piece + k % piece / size; }
};

// The nearest whole number to w / scale, ties to even, of magnitudes below 2^51; others stay large.
inline double level_of(float w, double scale) noexcept {
  return w / scale + 0x1.8p52 - 0x1.8p52;
}

}  // namespace tac
