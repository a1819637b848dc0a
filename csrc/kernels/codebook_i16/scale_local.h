// The scale of quantize_f32_i16, from the largest magnitude of a sample. Internal linkage, as
// backend_local.h explains.
#pragma once

#include <cstdint>

namespace tac::kernels {
namespace {

struct LocalScale {
  float pre, mul;
  double unit;
  bool usable;  // otherwise q = 0
};

[[maybe_unused]] static inline LocalScale local_scale(std::uint32_t max_bits) {
  constexpr std::uint32_t kInfinity = 0x7F800000U;
  if (max_bits == 0) return {0.0F, 0.0F, 1.0, false};
  if (max_bits >= kInfinity) return {0.0F, 0.0F, static_cast<double>(__builtin_nanf("")), false};
  float max;
  __builtin_memcpy(&max, &max_bits, sizeof max);
  const float pre = max < 0x1p-64F ? 0x1p64F : 1.0F;
  float mul = 32767.0F / (max * pre);
  std::uint32_t mul_bits;
  __builtin_memcpy(&mul_bits, &mul, sizeof mul);
  mul_bits &= 0xFFFF0000U;
  __builtin_memcpy(&mul, &mul_bits, sizeof mul);
  return {pre, mul, 1.0 / (static_cast<double>(pre) * static_cast<double>(mul)), true};
}

}  // namespace
}  // namespace tac::kernels
