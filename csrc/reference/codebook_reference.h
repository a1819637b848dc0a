// Rounding to integers and the codebook layer on them, in plain loops on unpacked weights. For
// tests; shares no code with the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace tac::reference {

// One sample as integers of -limit .. limit, and what one unit stands for (NaN: a value is not
// finite).
struct Quantized {
  std::vector<std::int16_t> q;
  double unit = 1.0;
  bool coarse = false;  // of quantize_rest
};
Quantized quantize_i16(std::span<const float> x, int limit = 32767);

// What rounding left of x where few large values left the others few bits (coarse). Its unit is 0
// where that is nothing.
Quantized quantize_rest(std::span<const float> x, const Quantized& rounded);

// [outputs] of one sample; levels [outputs][inputs]; `unit` with the scale of the levels in it.
std::vector<float> integer_linear(std::span<const std::int16_t> q, double unit,
                                  std::span<const std::int32_t> levels,
                                  std::span<const float> bias);

}  // namespace tac::reference
