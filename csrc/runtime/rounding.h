// Floats as 16-bit integers: q * unit is about x.
#pragma once

#include <cstdint>

#include "kernels/rounding/rounding.h"

namespace tac {

struct Rounding {
  kernels::RoundingScale scale;
  double unit;  // NaN: a value is not finite
};

// For values whose largest magnitude m has these bits (max_magnitude_f32):
//   pre  = m < 2^-64 ? 2^64 : 1
//   mul  = limit / (m * pre), its low 16 bits cleared: 8 significant bits are left, so that small
//          integers and halves of them stay exact
//   unit = 1 / (double(pre) * mul)
// All in float32 but the unit, from left to right, so |q| <= limit. All zero: q = 0, unit = 1.
Rounding rounding_of(std::uint32_t max_magnitude, std::int32_t limit) noexcept;

}  // namespace tac
