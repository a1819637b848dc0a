#include "kernels/rounding/rounding.h"

#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "backends_under_test.h"
#include "float_testing.h"
#include "reference/codebook_reference.h"
#include "runtime/rounding.h"

namespace tac::kernels {
namespace {

using test::GuardedBuffer;

constexpr float kInf = std::numeric_limits<float>::infinity();

class RoundF32I16 : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->round_f32_i16 == nullptr)
      GTEST_SKIP() << "served by the next backend down";
  }
  std::uint32_t max_magnitude(const std::vector<float>& x, std::size_t offset = 0) {
    GuardedBuffer<float> in(x.size(), offset);
    test::fill(in, x);
    return GetParam().table->max_magnitude_f32(in.data(), x.size());
  }
  std::vector<std::int16_t> round(const RoundingScale& scale, const std::vector<float>& x,
                                  std::size_t offset = 0) {
    GuardedBuffer<float> in(x.size(), offset);
    test::fill(in, x);
    GuardedBuffer<std::int16_t> q(x.size(), offset);
    GetParam().table->round_f32_i16(scale, in.data(), x.size(), q.data());
    EXPECT_TRUE(q.intact());
    return {q.data(), q.data() + q.size()};
  }
  // The whole rounding of a sample.
  void check(const std::vector<float>& x, int limit, std::size_t offset = 0) {
    const Rounding rounding = rounding_of(max_magnitude(x, offset), limit);
    const reference::Quantized expected = reference::quantize_i16(x, limit);
    if (std::isnan(expected.unit)) {
      EXPECT_TRUE(std::isnan(rounding.unit));
      return;
    }
    EXPECT_EQ(rounding.unit, expected.unit);
    EXPECT_EQ(round(rounding.scale, x, offset), expected.q) << x.size() << " to " << limit;
    for (const std::int16_t q : expected.q) EXPECT_LE(std::abs(int{q}), limit);
  }
};

TEST_P(RoundF32I16, AgreesWithReferenceForEverySizeAndMagnitude) {
  test::Random random(1);
  for (const std::size_t count : {1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 1000}) {
    for (const float magnitude :
         {1.0F, 1e-45F, 1e-38F, 0x1p-64F, 0x1.fffffep-65F, 3e-5F, 255.0F, 12345.0F, 1e20F, 3e38F}) {
      std::vector<float> x = random.values(count, test::Data::kReal);
      for (float& v : x) v *= 0.25F * magnitude;
      for (const int limit : {32767, 4095, 1000, 1}) check(x, limit, count % 3);
      if (HasFailure()) return;
    }
  }
}

TEST_P(RoundF32I16, KeepsSmallIntegersAndTheirHalvesExact) {
  for (const float step : {1.0F, 0.5F, 0.25F}) {
    std::vector<float> x(64);
    std::iota(x.begin(), x.end(), -32.0F);
    for (float& v : x) v *= step;
    check(x, 32767);
    const reference::Quantized quantized = reference::quantize_i16(x);
    for (std::size_t k = 0; k < x.size(); ++k)
      EXPECT_EQ(static_cast<float>(quantized.q[k] * quantized.unit), x[k]);
  }
}

TEST_P(RoundF32I16, RoundsTiesToEven) {
  // 32640 / 2^14: the multiplier is 2^14, so these end in .5.
  check({0x1.fep0F, 0x1.8p-14F, 0x1.4p-13F, -0x1.8p-14F, 0x1p-15F, -0x1p-15F}, 32767);
}

TEST_P(RoundF32I16, FindsTheLargestMagnitudeAnywhere) {
  for (std::size_t count = 0; count <= 40; ++count) {
    std::vector<float> x(count, -0.5F);
    EXPECT_EQ(max_magnitude(x), count == 0 ? 0U : std::bit_cast<std::uint32_t>(0.5F));
    for (std::size_t at = 0; at < count; ++at) {
      for (const float most : {2.0F, -2.0F}) {
        x[at] = most;
        EXPECT_EQ(max_magnitude(x), std::bit_cast<std::uint32_t>(2.0F)) << at << " of " << count;
      }
      x[at] = -0.5F;
    }
  }
}

TEST_P(RoundF32I16, KnowsZerosAndWhatIsNotFinite) {
  check({0.0F, -0.0F, 0.0F}, 32767);
  for (const float bad : {kInf, -kInf, NAN, -NAN}) {
    for (const std::size_t at : {0, 15, 16, 19}) {
      std::vector<float> x(20, 1.0F);
      x[at] = bad;
      check(x, 32767);
    }
  }
}

TEST_P(RoundF32I16, GoesNoFartherThanTheLimit) {
  for (const std::size_t at : {0, 7, 8, 16, 18}) {
    std::vector<float> x(19, 3.0F);
    std::vector<std::int16_t> expected(19, 6);
    const std::pair<float, std::int16_t> cases[] = {
        {100.0F, 127}, {-100.0F, -127}, {63.75F, 127}, {1e30F, 127},   {-1e30F, -127}, {kInf, 127},
        {-kInf, -127}, {NAN, -127},     {-NAN, -127},  {-63.5F, -127}, {63.0F, 126}};
    for (const auto& [value, rounded] : cases) {
      x[at] = value;
      expected[at] = rounded;
      EXPECT_EQ(round({1.0F, 2.0F, 127.0F}, x), expected) << value << " at " << at;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, RoundF32I16, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

}  // namespace
}  // namespace tac::kernels
