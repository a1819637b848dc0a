// Rounding to 16 bits, scalar. The oracle of the other backends.
#include "kernels/backend_local.h"
#include "kernels/kernel_table.h"
#include "kernels/rounding/rounding.h"

namespace tac::kernels::scalar {

std::uint32_t max_magnitude_f32(const float* x, std::size_t count) {
  std::uint32_t largest = 0;
  for (std::size_t k = 0; k < count; ++k) {
    std::uint32_t magnitude;
    __builtin_memcpy(&magnitude, x + k, sizeof magnitude);
    magnitude &= 0x7FFFFFFFU;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

void round_f32_i16(const RoundingScale& scale, const float* x, std::size_t count, std::int16_t* q) {
  for (std::size_t k = 0; k < count; ++k) {
    float v = x[k] * scale.pre * scale.mul;
    v = v > -scale.limit ? v : -scale.limit;
    v = v < scale.limit ? v : scale.limit;
    // Adding 1.5 * 2^23 leaves the integer in the fraction, rounded as the sum is: to even.
    q[k] = static_cast<std::int16_t>((v + 0x1.8p23F) - 0x1.8p23F);
  }
}

}  // namespace tac::kernels::scalar
