// What the tests of the float kernels share: data, and comparisons that say what differed.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <ostream>
#include <random>
#include <span>
#include <vector>

#include "guarded_buffer.h"
#include "reference/float_reference.h"

namespace tac::reference {

// For SCOPED_TRACE.
inline std::ostream& operator<<(std::ostream& out, const WindowShape& s) {
  return out << s.in_h << "x" << s.in_w << "x" << s.channels << " kernel " << s.kernel_h << "x"
             << s.kernel_w << " stride " << s.stride_h << "," << s.stride_w << " dilation "
             << s.dilation_h << "," << s.dilation_w << " pads " << s.pad_top << "," << s.pad_left
             << "," << s.pad_bottom << "," << s.pad_right;
}

}  // namespace tac::reference

namespace tac::test {

// Whole numbers whose sums of products are exact in float32 in every order, so that a result
// compares exactly; or reals, which compare within the contract's bound.
enum class Data { kWhole, kReal };

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  std::size_t below(std::size_t n) { return engine_() % n; }
  float value(Data data) {
    if (data == Data::kWhole) return static_cast<float>(static_cast<int>(below(17)) - 8);
    return static_cast<float>(static_cast<int>(engine_() >> 8U) - (1 << 23)) * 0x1p-22F;
  }
  std::vector<float> values(std::size_t n, Data data) {
    std::vector<float> v(n);
    for (float& x : v) x = value(data);
    return v;
  }

 private:
  std::mt19937 engine_;
};

// Marks what a kernel must leave alone; no kernel computes it.
inline constexpr float kUntouched = -12345.75F;

// Equal bits, or both NaN (whose sign and payload no contract fixes).
inline bool same_bits(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) ||
         std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

// |error| <= n_terms * 2^-23 * sum of magnitudes; whole numbers exactly.
inline void expect_sum(const reference::Sum& expected, float got, std::size_t n_terms, Data data) {
  const double bound =
      data == Data::kWhole ? 0.0 : static_cast<double>(n_terms) * 0x1p-23 * expected.magnitude;
  // Written so that NaN fails.
  EXPECT_TRUE(std::fabs(got - expected.value) <= bound)
      << "got " << got << ", expected " << expected.value << " +- " << bound;
}

template <class T>
void fill(GuardedBuffer<T>& buffer, const std::vector<T>& values) {
  ASSERT_EQ(buffer.size(), values.size());
  std::copy(values.begin(), values.end(), buffer.data());
}

}  // namespace tac::test
