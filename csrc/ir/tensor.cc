#include "ir/tensor.h"

#include <bit>

namespace tac {

std::uint32_t Encoding::n_planes() const noexcept {
  if (kind == Kind::kSignZero) return 2;
  if (kind != Kind::kLinear || n_levels < 2) return 0;
  return static_cast<std::uint32_t>(std::bit_width(n_levels - 1));
}

}  // namespace tac
