// Helpers shared by kernel files. Everything here has internal linkage: a shared inline function
// compiled with -mavx512* could otherwise be the copy that the linker keeps for baseline code.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef NDEBUG
#define TAC_DCHECK(condition)           \
  do {                                  \
    if (!(condition)) __builtin_trap(); \
  } while (false)
#else
#define TAC_DCHECK(condition) \
  do {                        \
  } while (false)
#endif

namespace tac::kernels {
namespace {

[[maybe_unused]] static inline std::size_t local_min(std::size_t a, std::size_t b) {
  return a < b ? a : b;
}
[[maybe_unused]] static inline std::size_t local_max(std::size_t a, std::size_t b) {
  return a > b ? a : b;
}
[[maybe_unused]] static inline std::size_t local_ceil_div(std::size_t a, std::size_t b) {
  return (a + b - 1) / b;
}

// upper * 65536 and what `low`, known modulo 2^32, has beyond that.
[[maybe_unused]] static inline std::int64_t local_sum_of_halves(std::int32_t low,
                                                                std::int32_t upper) {
  const std::uint32_t rest =
      static_cast<std::uint32_t>(low) - (static_cast<std::uint32_t>(upper) << 16U);
  return std::int64_t{upper} * 65536 + rest;
}

struct LocalTapRange {
  std::size_t begin, end;
};
// The taps t < n_taps whose position origin + t * dilation lies in [low, high).
[[maybe_unused]] static inline LocalTapRange local_tap_range(std::ptrdiff_t origin,
                                                             std::size_t n_taps,
                                                             std::size_t dilation,
                                                             std::ptrdiff_t low,
                                                             std::ptrdiff_t high) {
  const auto below = [&](std::ptrdiff_t limit) {  // number of taps left of limit
    return origin >= limit
               ? 0
               : local_min(n_taps,
                           local_ceil_div(static_cast<std::size_t>(limit - origin), dilation));
  };
  return {below(low), below(high)};
}

// Output positions [begin, end) along one axis whose windows lie inside the map with all their
// taps.
[[maybe_unused]] static inline LocalTapRange local_full_windows(std::size_t n_out,
                                                                std::size_t stride, std::size_t pad,
                                                                std::size_t dilation,
                                                                std::size_t n_taps,
                                                                std::size_t size) {
  const std::size_t reach = (n_taps - 1) * dilation;
  const std::size_t end =
      size + pad <= reach ? 0 : local_min(n_out, (size + pad - reach - 1) / stride + 1);
  return {local_min(local_ceil_div(pad, stride), end), end};
}

}  // namespace
}  // namespace tac::kernels
