// Samples of a codebook layer in integers, rounded to 16 bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/rounding/rounding.h"

namespace tac {

// x[k] is about unit * q[k] + rest_unit * rest[k].
struct RoundedSample {
  double unit;       // NaN: a value of x is not finite
  double rest_unit;  // 0: `rest` is not needed
  double mean;       // of x; without the large ones where few are
};

// Rounds `count` <= 65536 inputs to the whole range of 16 bits (rounding.h). A sample is coarse
// where a few large values leave the others few bits: the root mean square of q over the inputs
// that are not 0 is below 4096, an eighth of its range. What rounding left is then rounded as well,
// and the mean is that of the inputs below a quarter of the range. All is decided in integers, so
// that all backends decide alike. q and rest have room for kCodebookWindow more, which are set to 0
// (those of `rest` where it is needed).
RoundedSample round_sample(kernels::max_magnitude_f32_fn max_magnitude,
                           kernels::round_f32_i16_fn round, const float* x, std::size_t count,
                           std::int16_t* q, std::int16_t* rest) noexcept;

}  // namespace tac
