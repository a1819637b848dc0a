#include "runtime/rounding.h"

#include <bit>
#include <limits>

namespace tac {

Rounding rounding_of(std::uint32_t max_magnitude, std::int32_t limit) noexcept {
  constexpr std::uint32_t kInfinity = 0x7F800000U;
  const auto most = static_cast<float>(limit);
  if (max_magnitude == 0) return {{1.0F, 1.0F, most}, 1.0};
  if (max_magnitude >= kInfinity) {
    return {{1.0F, 0.0F, most}, std::numeric_limits<double>::quiet_NaN()};
  }
  const auto max = std::bit_cast<float>(max_magnitude);
  const float pre = max < 0x1p-64F ? 0x1p64F : 1.0F;
  const float ratio = most / (max * pre);
  const auto mul = std::bit_cast<float>(std::bit_cast<std::uint32_t>(ratio) & 0xFFFF0000U);
  return {{pre, mul, most}, 1.0 / (static_cast<double>(pre) * static_cast<double>(mul))};
}

}  // namespace tac
