// Contracts of rounding floats to 16-bit integers. The same bits on every backend.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tac::kernels {

// The largest magnitude of `count` floats, as bits: infinity or more where a value is not finite, 0
// where there are none.
using max_magnitude_f32_fn = std::uint32_t (*)(const float* x, std::size_t count);

// q[k] = v to the nearest integer, ties to even, with v = x[k] * pre * mul in float32, from left to
// right, and no more than `limit` <= 32767 in magnitude; NaN becomes -limit.
struct RoundingScale {
  float pre, mul, limit;
};
using round_f32_i16_fn = void (*)(const RoundingScale& scale, const float* x, std::size_t count,
                                  std::int16_t* q);

}  // namespace tac::kernels
