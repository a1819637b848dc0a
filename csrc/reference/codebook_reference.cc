#include "reference/codebook_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace tac::reference {

Quantized quantize_i16(std::span<const float> x, int limit) {
  Quantized out;
  out.q.resize(x.size());
  float largest = 0.0F;
  for (const float v : x) {
    if (!std::isfinite(v)) {
      out.unit = std::numeric_limits<double>::quiet_NaN();
      return out;
    }
    largest = std::max(largest, std::fabs(v));
  }
  if (largest == 0.0F) return out;
  const float pre = largest < std::ldexp(1.0F, -64) ? std::ldexp(1.0F, 64) : 1.0F;
  // 8 significant bits, or all but the 16 last of a subnormal number.
  const double ratio = static_cast<float>(limit) / (largest * pre);
  const double step = std::ldexp(1.0, std::max(std::ilogb(ratio) - 7, -149 + 16));
  const auto mul = static_cast<float>(std::floor(ratio / step) * step);
  for (std::size_t k = 0; k < x.size(); ++k) {
    const float scaled = x[k] * pre;
    out.q[k] = static_cast<std::int16_t>(std::nearbyint(scaled * mul));
  }
  out.unit = 1.0 / (static_cast<double>(pre) * static_cast<double>(mul));
  return out;
}

Quantized quantize_rest(std::span<const float> x, const Quantized& rounded) {
  Quantized rest;
  rest.unit = 0.0;
  double squares = 0.0, used = 0.0;
  for (std::size_t k = 0; k < x.size(); ++k) {
    squares += std::pow(std::trunc(rounded.q[k] / 16.0), 2);
    used += x[k] != 0.0F ? 1.0 : 0.0;
  }
  if (!std::isfinite(rounded.unit) || squares >= used * 65536.0) return rest;
  rest.coarse = true;
  for (std::size_t k = 0; k < x.size(); ++k) {
    const double left = (x[k] - rounded.q[k] * rounded.unit) / rounded.unit;
    rest.q.push_back(static_cast<std::int16_t>(std::nearbyint(left * 32768.0)));
    if (rest.q.back() != 0) rest.unit = rounded.unit / 32768.0;
  }
  return rest;
}

std::vector<float> integer_linear(std::span<const std::int16_t> q, double unit,
                                  std::span<const std::int32_t> levels,
                                  std::span<const float> bias) {
  std::vector<float> y(bias.size());
  for (std::size_t o = 0; o < bias.size(); ++o) {
    std::int64_t sum = 0;
    for (std::size_t k = 0; k < q.size(); ++k) sum += std::int64_t{levels[o * q.size() + k]} * q[k];
    const auto product = static_cast<float>(static_cast<double>(sum) * unit);
    y[o] = bias[o] + product;
  }
  return y;
}

}  // namespace tac::reference
