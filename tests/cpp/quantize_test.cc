// The kernels between numbers and packed bits, against the same arithmetic on one value at a time.
#include "kernels/quantize/quantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "backends_under_test.h"
#include "guarded_buffer.h"
#include "reference/step_function.h"

namespace tac::kernels {
namespace {

using test::GuardedBuffer;

constexpr std::size_t kChannels[] = {1,  3,  7,  8,  9,  15, 16, 17, 31,
                                     32, 33, 47, 48, 63, 64, 65, 96, 130};

// Values worth comparing with `threshold`: itself, its neighbours, the ends of the type and, for
// floats, everything odd.
template <class T>
T interesting_value(std::mt19937& random, T threshold) {
  using Limits = std::numeric_limits<T>;
  if constexpr (std::is_floating_point_v<T>) {
    switch (random() % 12) {
      case 0: return Limits::quiet_NaN();
      case 1: return -Limits::quiet_NaN();
      case 2: return Limits::infinity();
      case 3: return -Limits::infinity();
      case 4: return 0.0F;
      case 5: return -0.0F;
      case 6: return Limits::denorm_min();
      case 7: return std::nextafter(threshold, Limits::infinity());
      case 8: return std::nextafter(threshold, -Limits::infinity());
      case 9: return threshold;
      default: return static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 64.0F;
    }
  } else {
    switch (random() % 8) {
      case 0: return Limits::min();
      case 1: return Limits::max();
      case 2: return threshold;
      case 3: return threshold == Limits::max() ? threshold : threshold + 1;
      case 4: return threshold == Limits::min() ? threshold : threshold - 1;
      default: return static_cast<std::int32_t>(random() % 201) - 100;
    }
  }
}

template <class T>
T random_threshold(std::mt19937& random) {
  using Limits = std::numeric_limits<T>;
  if constexpr (std::is_floating_point_v<T>) {
    const T special[] = {
        -Limits::infinity(), Limits::infinity(), Limits::lowest(), Limits::max(), 0.0F, -0.0F,
        Limits::denorm_min()};
    if (random() % 4 == 0) return special[random() % std::size(special)];
    return static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 64.0F;
  } else {
    if (random() % 6 == 0) return random() % 2 == 0 ? Limits::min() : Limits::max();
    return static_cast<std::int32_t>(random() % 201) - 100;
  }
}

struct QuantizeCase {
  std::size_t channels, n_thresholds, n_planes;
  std::vector<std::uint8_t> code_of_index;
};

// Runs `kernel` on rows with gaps between them and compares every bit it writes, and all it must
// leave alone.
template <class T, class Kernel>
void check_quantize(Kernel kernel, const QuantizeCase& c, std::uint32_t seed) {
  SCOPED_TRACE(testing::Message() << c.channels << " channels, " << c.n_thresholds
                                  << " thresholds, " << c.n_planes << " planes, seed " << seed);
  std::mt19937 random(seed);
  constexpr std::size_t kRows = 3;
  const std::size_t words = (c.channels + 31) / 32, stride = words * 32;
  const std::size_t x_stride = c.channels + seed % 3, out_stride = words + seed % 2;
  const std::size_t plane_stride = kRows * out_stride + 1;

  GuardedBuffer<T> thresholds(c.n_thresholds * stride, seed % 5);
  for (T& t : thresholds.span()) t = random_threshold<T>(random);  // the padding too
  std::vector<std::vector<T>> of_channel(c.channels);
  for (std::size_t channel = 0; channel < c.channels; ++channel) {
    for (std::size_t t = 0; t < c.n_thresholds; ++t)
      of_channel[channel].push_back(thresholds[t * stride + channel]);
    std::ranges::sort(of_channel[channel]);
    for (std::size_t t = 0; t < c.n_thresholds; ++t)
      thresholds[t * stride + channel] = of_channel[channel][t];
  }
  GuardedBuffer<std::uint32_t> flip(words, seed % 4);
  for (std::uint32_t& word : flip.span()) word = random();  // padding bits too
  GuardedBuffer<std::uint8_t> codes(c.code_of_index.size());
  std::ranges::copy(c.code_of_index, codes.span().begin());

  GuardedBuffer<T> x((kRows - 1) * x_stride + c.channels, seed % 7);
  for (std::size_t row = 0; row < kRows; ++row) {
    for (std::size_t channel = 0; channel < c.channels; ++channel) {
      const auto& own = of_channel[channel];
      x[row * x_stride + channel] = interesting_value(random, own[random() % own.size()]);
    }
  }

  constexpr std::uint32_t kUntouched = 0xDEADBEEF;
  GuardedBuffer<std::uint32_t> out(
      (c.n_planes - 1) * plane_stride + (kRows - 1) * out_stride + words, seed % 6);
  std::ranges::fill(out.span(), kUntouched);
  std::vector<std::uint32_t> expected(out.size(), kUntouched);
  for (std::size_t row = 0; row < kRows; ++row) {
    for (std::size_t plane = 0; plane < c.n_planes; ++plane) {
      for (std::size_t word = 0; word < words; ++word)
        expected[plane * plane_stride + row * out_stride + word] = 0;
    }
    for (std::size_t channel = 0; channel < c.channels; ++channel) {
      const bool descending = (flip[channel / 32] >> (channel % 32) & 1U) != 0;
      const std::uint32_t code = reference::step_code(
          x[row * x_stride + channel], of_channel[channel], descending, c.code_of_index);
      for (std::size_t plane = 0; plane < c.n_planes; ++plane) {
        expected[plane * plane_stride + row * out_stride + channel / 32] |= (code >> plane & 1U)
                                                                            << (channel % 32);
      }
    }
  }

  QuantizeParams<T> params{};
  params.channels = c.channels, params.n_thresholds = c.n_thresholds, params.n_planes = c.n_planes;
  params.threshold_stride = stride, params.thresholds = thresholds.data();
  params.flip = flip.data(), params.code_of_index = codes.data();
  kernel(params, x.data(), kRows, x_stride, out.data(), out_stride, plane_stride);
  ASSERT_TRUE(out.intact());
  for (std::size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], expected[i]) << "word " << i;
}

std::vector<std::uint8_t> ascending_codes(std::size_t n_thresholds) {
  std::vector<std::uint8_t> codes(n_thresholds + 1);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i);
  return codes;
}

template <class T, class Kernel>
void check_every_case(Kernel kernel) {
  std::uint32_t seed = 1;
  for (const std::size_t channels : kChannels) {
    // One threshold: a sign with either bit for the larger values, a constant, and codes of two
    // planes.
    for (const std::vector<std::uint8_t>& codes :
         {std::vector<std::uint8_t>{0, 1}, {1, 0}, {0, 0}, {1, 1}}) {
      check_quantize<T>(kernel, {channels, 1, 1, codes}, seed++);
      if (testing::Test::HasFatalFailure()) return;
    }
    check_quantize<T>(kernel, {channels, 1, 2, {2, 1}}, seed++);
    check_quantize<T>(kernel, {channels, 2, 2, {3, 2, 0}},
                      seed++);  // the codes of a sign with zero
    check_quantize<T>(kernel, {channels, 2, 1, {1, 0, 1}}, seed++);
    for (std::size_t n = 1; n <= 15; ++n) {
      const auto n_planes = static_cast<std::size_t>(std::bit_width(n));
      check_quantize<T>(kernel, {channels, n, n_planes, ascending_codes(n)}, seed++);
      std::vector<std::uint8_t> descending = ascending_codes(n);
      std::ranges::reverse(descending);
      check_quantize<T>(kernel, {channels, n, n_planes, descending}, seed++);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

class QuantizeI32 : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->quantize_i32_bits == nullptr)
      GTEST_SKIP() << "served by the next backend down";
  }
};
INSTANTIATE_TEST_SUITE_P(All, QuantizeI32, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

TEST_P(QuantizeI32, MatchesTheStepFunction) {
  check_every_case<std::int32_t>(GetParam().table->quantize_i32_bits);
}

// A constant channel has all its thresholds at one end of the type (ops.h); INT32_MAX still counts
// as reached.
TEST_P(QuantizeI32, KeepsConstantChannelsConstant) {
  constexpr std::int32_t kLow = std::numeric_limits<std::int32_t>::min();
  constexpr std::int32_t kHigh = std::numeric_limits<std::int32_t>::max();
  const std::vector<std::int32_t> values = {kLow, kLow + 1, -1, 0, 1, kHigh - 1};
  for (const std::int32_t threshold : {kLow, kHigh}) {
    GuardedBuffer<std::int32_t> thresholds(32), x(values.size());
    std::ranges::fill(thresholds.span(), threshold);
    std::ranges::copy(values, x.span().begin());
    GuardedBuffer<std::uint32_t> flip(1), out(1);
    GuardedBuffer<std::uint8_t> codes(2);
    flip[0] = 0, codes[0] = 0, codes[1] = 1;
    const QuantizeParams<std::int32_t> params{values.size(),     1,           1,           32,
                                              thresholds.data(), flip.data(), codes.data()};
    GetParam().table->quantize_i32_bits(params, x.data(), 1, values.size(), out.data(), 1, 1);
    EXPECT_EQ(out[0], threshold == kLow ? (1U << values.size()) - 1U : 0U);
  }
}

class QuantizeF32 : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->quantize_f32_bits == nullptr)
      GTEST_SKIP() << "served by the next backend down";
  }
};
INSTANTIATE_TEST_SUITE_P(All, QuantizeF32, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

TEST_P(QuantizeF32, MatchesTheStepFunction) {
  check_every_case<float>(GetParam().table->quantize_f32_bits);
}

// The literal table: what lies at and around a threshold of +0 or -0.
TEST_P(QuantizeF32, TreatsBothZerosAlikeAndNanAsNothing) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kTiny = std::numeric_limits<float>::denorm_min();
  const std::vector<float> values = {0.0F, -0.0F, kTiny,     -kTiny,
                                     kNan, -kNan, kInfinity, -kInfinity};
  constexpr std::uint32_t kReached = 0b01000111;
  for (const float threshold : {0.0F, -0.0F}) {
    for (const bool descending : {false, true}) {
      GuardedBuffer<float> thresholds(32), x(values.size());
      std::ranges::fill(thresholds.span(), threshold);
      std::ranges::copy(values, x.span().begin());
      GuardedBuffer<std::uint32_t> flip(1), out(1);
      GuardedBuffer<std::uint8_t> codes(2);
      flip[0] = descending ? 0xFFFFFFFFU : 0U, codes[0] = 0, codes[1] = 1;
      const QuantizeParams<float> params{values.size(),     1,           1,           32,
                                         thresholds.data(), flip.data(), codes.data()};
      GetParam().table->quantize_f32_bits(params, x.data(), 1, values.size(), out.data(), 1, 1);
      EXPECT_EQ(out[0], descending ? ~kReached & 0xFFU : kReached);
    }
  }
}

class Dequantize : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->dequantize_bits_f32 == nullptr)
      GTEST_SKIP() << "served by the next backend down";
  }
};
INSTANTIATE_TEST_SUITE_P(All, Dequantize, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

TEST_P(Dequantize, LooksUpEveryCode) {
  constexpr std::size_t kRows = 3;
  std::uint32_t seed = 1;
  for (const std::size_t channels : kChannels) {
    for (std::size_t n_planes = 1; n_planes <= 4; ++n_planes) {
      for (const bool per_channel : {false, true}) {
        SCOPED_TRACE(testing::Message()
                     << channels << " channels, " << n_planes << " planes, per channel "
                     << per_channel << ", seed " << seed);
        std::mt19937 random(seed);
        const std::size_t words = (channels + 31) / 32, in_stride = words + seed % 2;
        const std::size_t plane_stride = kRows * in_stride + 1,
                          n_codes = std::size_t{1} << n_planes;
        GuardedBuffer<float> values(n_codes * (per_channel ? channels : 1), seed % 5);
        for (float& v : values.span())
          v = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
        GuardedBuffer<std::uint32_t> bits(
            (n_planes - 1) * plane_stride + (kRows - 1) * in_stride + words, seed % 3);
        std::ranges::fill(bits.span(), 0U);
        std::vector<std::uint32_t> expected;  // as bits, so that NaNs compare
        for (std::size_t row = 0; row < kRows; ++row) {
          for (std::size_t channel = 0; channel < channels; ++channel) {
            const std::size_t code = random() % n_codes;
            expected.push_back(std::bit_cast<std::uint32_t>(
                per_channel ? values[code * channels + channel] : values[code]));
            for (std::size_t plane = 0; plane < n_planes; ++plane) {
              bits[plane * plane_stride + row * in_stride + channel / 32] |=
                  static_cast<std::uint32_t>(code >> plane & 1U) << (channel % 32);
            }
          }
        }
        GuardedBuffer<float> y(kRows * channels, seed % 4);
        const DequantizeParams params{channels, n_planes, per_channel, values.data()};
        GetParam().table->dequantize_bits_f32(params, bits.data(), kRows, in_stride, plane_stride,
                                              y.data());
        ASSERT_TRUE(y.intact());
        for (std::size_t i = 0; i < y.size(); ++i) {
          ASSERT_EQ(std::bit_cast<std::uint32_t>(y[i]), expected[i]) << "value " << i;
        }
        ++seed;
      }
    }
  }
}

}  // namespace
}  // namespace tac::kernels
