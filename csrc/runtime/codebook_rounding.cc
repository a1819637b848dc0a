#include "runtime/codebook_rounding.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "kernels/codebook_i16/codebook_i16.h"
#include "runtime/rounding.h"

namespace tac {

namespace {

constexpr std::int32_t kRange = 32767;  // of q
constexpr double kRestParts = 32768.0;  // rest_unit * kRestParts = unit
constexpr std::int32_t kLarge = 8192;   // a quarter of the range of q

bool is_coarse(const float* x, const std::int16_t* q, std::size_t count) noexcept {
  constexpr std::size_t kRun = 256;  // 2^8 squares of 11 bits and a sign fit 32 bits
  std::uint64_t squares = 0, used = 0;
  for (std::size_t begin = 0; begin < count; begin += kRun) {
    const std::size_t end = std::min(begin + kRun, count);
    std::int32_t run_squares = 0, run_used = 0;
    for (std::size_t k = begin; k < end; ++k) {
      const std::int32_t part = q[k] / 16;
      run_squares += part * part;
      run_used += x[k] != 0.0F ? 1 : 0;
    }
    squares += static_cast<std::uint64_t>(run_squares);
    used += static_cast<std::uint64_t>(run_used);
  }
  return squares < used << 16U;
}

}  // namespace

RoundedSample round_sample(kernels::max_magnitude_f32_fn max_magnitude,
                           kernels::round_f32_i16_fn round, const float* x, std::size_t count,
                           std::int16_t* q, std::int16_t* rest) noexcept {
  const Rounding rounding = rounding_of(max_magnitude(x, count), kRange);
  RoundedSample sample{rounding.unit, 0.0, 0.0};
  const std::size_t used = std::isfinite(sample.unit) ? count : 0;
  round(rounding.scale, x, used, q);
  std::fill_n(q + used, count - used + kernels::kCodebookWindow, std::int16_t{0});
  const auto mean_of = [&](double sum) { return sample.unit * sum / static_cast<double>(count); };
  if (!std::isfinite(sample.unit) || !is_coarse(x, q, count)) {
    std::int32_t sum = 0;  // 2^16 values of 16 bits fit
    for (std::size_t k = 0; k < count; ++k) sum += q[k];
    sample.mean = mean_of(sum);
    return sample;
  }
  std::int64_t parts = 0;
  bool any = false;
  for (std::size_t k = 0; k < count; ++k) {
    const double left = static_cast<double>(x[k]) - q[k] * sample.unit;
    rest[k] = static_cast<std::int16_t>(std::nearbyint(left / sample.unit * kRestParts));
    any = any || rest[k] != 0;
    if (std::abs(std::int32_t{q[k]}) < kLarge) parts += std::int64_t{q[k]} * 32768 + rest[k];
  }
  std::fill_n(rest + count, kernels::kCodebookWindow, std::int16_t{0});
  sample.mean = mean_of(static_cast<double>(parts) / kRestParts);
  if (any) sample.rest_unit = sample.unit / kRestParts;
  return sample;
}

}  // namespace tac
