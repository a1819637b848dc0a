#include "kernels/elementwise/elementwise.h"

#include <limits>

#include "backends_under_test.h"
#include "float_testing.h"

namespace tac::kernels {
namespace {

using test::GuardedBuffer;

constexpr std::size_t kSizes[] = {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 127, 128, 129};
constexpr UnaryKind kUnaryKinds[] = {
    UnaryKind::kRelu,  UnaryKind::kClip,        UnaryKind::kLeakyRelu, UnaryKind::kSigmoid,
    UnaryKind::kTanh,  UnaryKind::kHardSigmoid, UnaryKind::kHardSwish, UnaryKind::kAbs,
    UnaryKind::kNeg,   UnaryKind::kSqrt,        UnaryKind::kExp,       UnaryKind::kSign,
    UnaryKind::kFloor, UnaryKind::kCeil,        UnaryKind::kRound};
static_assert(std::size(kUnaryKinds) == EnumNames<UnaryKind>::kNames.size());
constexpr BinaryKind kBinaryKinds[] = {BinaryKind::kAdd, BinaryKind::kSub,  BinaryKind::kMul,
                                       BinaryKind::kDiv, BinaryKind::kMin,  BinaryKind::kMax,
                                       BinaryKind::kPow, BinaryKind::kPRelu};
static_assert(std::size(kBinaryKinds) == EnumNames<BinaryKind>::kNames.size());

// Values where float arithmetic is special, and those next to them.
std::vector<float> special_values() {
  std::vector<float> v;
  for (const float x : {0.0F,
                        0.5F,
                        1.0F,
                        1.5F,
                        2.5F,
                        3.0F,
                        6.0F,
                        0.625F,
                        88.0F,
                        88.72284F,
                        89.0F,
                        103.9F,
                        104.0F,
                        8388607.5F,
                        8388608.0F,
                        1e30F,
                        std::numeric_limits<float>::min(),
                        std::numeric_limits<float>::denorm_min(),
                        std::numeric_limits<float>::max(),
                        std::numeric_limits<float>::infinity()}) {
    for (const float y : {std::nextafter(x, -INFINITY), x, std::nextafter(x, INFINITY)}) {
      v.push_back(y);
      v.push_back(-y);
    }
  }
  v.push_back(NAN);
  return v;
}

bool is_transcendental(UnaryKind kind) {
  return kind == UnaryKind::kSigmoid || kind == UnaryKind::kTanh || kind == UnaryKind::kExp;
}

// Within 4 units in the last place of `expected`, or 1e-7.
bool close(float got, float expected) {
  if (std::isnan(expected) || std::isinf(expected) || std::isnan(got) || std::isinf(got))
    return test::same_bits(got, expected);
  const double unit =
      std::nextafter(std::fabs(expected), INFINITY) - static_cast<double>(std::fabs(expected));
  const double error = std::fabs(static_cast<double>(got) - expected);
  return error <= 4.0 * unit || error <= 1e-7;
}

class ElementwiseF32 : public testing::TestWithParam<BackendInfo> {
 protected:
  const KernelTable& kernels() const { return *GetParam().table; }

  void check_unary(UnaryKind kind, float alpha, float beta, const std::vector<float>& x,
                   std::size_t offset, bool in_place) {
    SCOPED_TRACE(testing::Message()
                 << EnumNames<UnaryKind>::kNames[static_cast<std::size_t>(kind)] << " of "
                 << x.size() << " values, alpha " << alpha << ", beta " << beta);
    GuardedBuffer<float> xs(x.size(), offset);
    GuardedBuffer<float> ys(x.size(), offset);
    test::fill(xs, x);
    float* y = in_place ? xs.data() : ys.data();
    kernels().unary_f32(kind, alpha, beta, xs.data(), x.size(), y);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float expected = reference::unary(kind, alpha, beta, x[i]);
      // A zero of either sign is the same value: max(-0, 0) has no fixed sign in ONNX.
      const bool zeros = y[i] == 0.0F && expected == 0.0F;
      ASSERT_TRUE(is_transcendental(kind) ? close(y[i], expected)
                                          : zeros || test::same_bits(y[i], expected))
          << "x " << x[i] << ": got " << y[i] << ", expected " << expected;
    }
    EXPECT_TRUE(xs.intact());
    EXPECT_TRUE(ys.intact());
  }
};

TEST_P(ElementwiseF32, UnaryAgreesForEverySize) {
  test::Random random(1);
  for (const UnaryKind kind : kUnaryKinds) {
    for (const std::size_t n : kSizes) {
      const std::vector<float> x = random.values(n, test::Data::kReal);
      check_unary(kind, 0.25F, 0.5F, x, n % 4, n % 2 == 0);
      if (HasFailure()) return;
    }
  }
}

TEST_P(ElementwiseF32, UnaryAgreesAtSpecialValues) {
  for (const UnaryKind kind : kUnaryKinds) {
    check_unary(kind, 0.2F, 0.5F, special_values(), 0, false);
    check_unary(kind, -1.0F, 1.0F, special_values(), 0, false);
    if (HasFailure()) return;
  }
}

TEST_P(ElementwiseF32, TranscendentalsStayWithinTheirBoundOverTheirRange) {
  std::vector<float> x;
  for (int i = -1100000; i <= 1100000; i += 7) x.push_back(static_cast<float>(i) * 1e-4F);
  for (const UnaryKind kind : {UnaryKind::kSigmoid, UnaryKind::kTanh, UnaryKind::kExp})
    check_unary(kind, 0, 0, x, 0, false);
}

TEST_P(ElementwiseF32, AffineIsBitEqualToTwoRoundings) {
  test::Random random(2);
  for (const std::size_t channels : kSizes) {
    if (channels == 0) continue;
    for (const std::size_t n_rows : {0, 1, 3, 37}) {
      GuardedBuffer<float> scale(channels, 1), shift(channels, 2), x(channels * n_rows, 3),
          y(channels * n_rows, channels % 4);
      test::fill(scale, random.values(channels, test::Data::kReal));
      test::fill(shift, random.values(channels, test::Data::kReal));
      test::fill(x, random.values(channels * n_rows, test::Data::kReal));
      kernels().affine_f32(scale.data(), shift.data(), channels, x.data(), n_rows, y.data());
      for (std::size_t i = 0; i < x.size(); ++i) {
        const volatile float product =
            scale[i % channels] * x[i];  // volatile: rounded before the sum
        ASSERT_TRUE(test::same_bits(y[i], product + shift[i % channels]))
            << channels << " channels, value " << i;
      }
      EXPECT_TRUE(y.intact());
      kernels().affine_f32(scale.data(), shift.data(), channels, x.data(), n_rows, x.data());
      for (std::size_t i = 0; i < x.size(); ++i)
        ASSERT_TRUE(test::same_bits(y[i], x[i])) << "in place";
      EXPECT_TRUE(x.intact());
    }
  }
}

TEST_P(ElementwiseF32, BinaryAgreesForEverySizeAndBroadcast) {
  test::Random random(3);
  for (const BinaryKind kind : kBinaryKinds) {
    for (const std::size_t n : kSizes) {
      for (const std::size_t a_step : {0, 1}) {
        for (const std::size_t b_step : {0, 1}) {
          SCOPED_TRACE(testing::Message()
                       << EnumNames<BinaryKind>::kNames[static_cast<std::size_t>(kind)] << " n "
                       << n << " steps " << a_step << "," << b_step);
          const std::vector<float> av = random.values(a_step == 0 ? 1 : n, test::Data::kReal);
          const std::vector<float> bv = random.values(b_step == 0 ? 1 : n, test::Data::kReal);
          GuardedBuffer<float> a(av.size(), 1), b(bv.size(), n % 4), y(n, 3);
          test::fill(a, av);
          test::fill(b, bv);
          kernels().binary_f32(kind, a.data(), a_step, b.data(), b_step, n, y.data());
          for (std::size_t i = 0; i < n; ++i) {
            const float expected = reference::binary(kind, av[i * a_step], bv[i * b_step]);
            ASSERT_TRUE(kind == BinaryKind::kPow ? close(y[i], expected)
                                                 : test::same_bits(y[i], expected))
                << "value " << i << ": got " << y[i] << ", expected " << expected;
          }
          EXPECT_TRUE(y.intact());
          // In place of either operand that has a value of its own per result.
          GuardedBuffer<float>& place = a_step == 1 ? a : b;
          if (a_step + b_step == 0) continue;
          kernels().binary_f32(kind, a.data(), a_step, b.data(), b_step, n, place.data());
          for (std::size_t i = 0; i < n; ++i)
            ASSERT_TRUE(test::same_bits(place[i], y[i])) << "in place, value " << i;
          EXPECT_TRUE(place.intact());
        }
      }
    }
  }
}

TEST_P(ElementwiseF32, BinaryAgreesAtSpecialValues) {
  const std::vector<float> values = special_values();
  std::vector<float> a;
  std::vector<float> b;
  for (const float u : values) {
    for (const float v : values) {
      a.push_back(u);
      b.push_back(v);
    }
  }
  for (const BinaryKind kind : kBinaryKinds) {
    SCOPED_TRACE(EnumNames<BinaryKind>::kNames[static_cast<std::size_t>(kind)]);
    std::vector<float> y(a.size());
    kernels().binary_f32(kind, a.data(), 1, b.data(), 1, a.size(), y.data());
    for (std::size_t i = 0; i < y.size(); ++i) {
      const float expected = reference::binary(kind, a[i], b[i]);
      const bool zeros = y[i] == 0.0F && expected == 0.0F &&
                         (kind == BinaryKind::kMin || kind == BinaryKind::kMax);
      ASSERT_TRUE(zeros || (kind == BinaryKind::kPow ? close(y[i], expected)
                                                     : test::same_bits(y[i], expected)))
          << a[i] << ", " << b[i] << ": got " << y[i] << ", expected " << expected;
    }
  }
}

// Bit-equal means signs of zero too, where the reference above leaves them open.
TEST_P(ElementwiseF32, ExactKindsGiveTheBitsOfScalar) {
  const std::vector<float> values = special_values();
  const KernelTable& scalar = *backends().back().table;
  for (const UnaryKind kind : kUnaryKinds) {
    if (is_transcendental(kind)) continue;
    std::vector<float> expected(values.size());
    std::vector<float> got(values.size());
    scalar.unary_f32(kind, 0.2F, 0.5F, values.data(), values.size(), expected.data());
    kernels().unary_f32(kind, 0.2F, 0.5F, values.data(), values.size(), got.data());
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_TRUE(test::same_bits(got[i], expected[i]))
          << EnumNames<UnaryKind>::kNames[static_cast<std::size_t>(kind)] << " of " << values[i]
          << ": got " << got[i] << ", scalar " << expected[i];
    }
  }
  for (const BinaryKind kind : kBinaryKinds) {
    for (const float u : values) {
      std::vector<float> expected(values.size());
      std::vector<float> got(values.size());
      scalar.binary_f32(kind, &u, 0, values.data(), 1, values.size(), expected.data());
      kernels().binary_f32(kind, &u, 0, values.data(), 1, values.size(), got.data());
      for (std::size_t i = 0; i < values.size(); ++i) {
        ASSERT_TRUE(test::same_bits(got[i], expected[i]))
            << EnumNames<BinaryKind>::kNames[static_cast<std::size_t>(kind)] << " of " << u << ", "
            << values[i] << ": got " << got[i] << ", scalar " << expected[i];
      }
    }
  }
}

TEST_P(ElementwiseF32, SoftmaxStaysWithinItsBound) {
  test::Random random(4);
  for (const bool log : {false, true}) {
    for (const std::size_t n : {1, 2, 7, 8, 9, 10, 16, 17, 33, 100, 1000}) {
      for (const float spread : {1.0F, 30.0F}) {
        constexpr std::size_t kRows = 3;
        std::vector<float> x = random.values(kRows * n, test::Data::kReal);
        for (float& v : x) v *= spread;
        GuardedBuffer<float> xs(x.size(), n % 4), ys(x.size(), 1);
        test::fill(xs, x);
        kernels().softmax_f32(log, xs.data(), kRows, n, ys.data());
        kernels().softmax_f32(log, xs.data(), kRows, n, xs.data());
        for (std::size_t r = 0; r < kRows; ++r) {
          const std::vector<float> row(x.begin() + static_cast<long>(r * n),
                                       x.begin() + static_cast<long>((r + 1) * n));
          const std::vector<double> expected = reference::softmax(log, row);
          const double largest = *std::max_element(row.begin(), row.end());
          for (std::size_t i = 0; i < n; ++i) {
            const double y = expected[i];
            const double terms = static_cast<double>(n) + 16.0;
            const double bound =
                0x1p-23 * (log ? terms * (1.0 + std::fabs(y)) : (terms + largest - row[i]) * y) +
                0x1p-126;
            ASSERT_LE(std::fabs(ys[r * n + i] - y), bound)
                << "log " << log << " n " << n << " x " << row[i] << " expected " << y;
            ASSERT_TRUE(test::same_bits(xs[r * n + i], ys[r * n + i])) << "in place";
          }
        }
        EXPECT_TRUE(xs.intact());
        EXPECT_TRUE(ys.intact());
      }
    }
  }
}

TEST_P(ElementwiseF32, SoftmaxOfANaNOrOfInfinityIsNaNInItsRowOnly) {
  for (const bool log : {false, true}) {
    for (const float bad : {NAN, INFINITY}) {
      for (std::size_t at = 0; at < 19; ++at) {
        std::vector<float> x(2 * 19, 1.0F);
        x[at] = bad;
        kernels().softmax_f32(log, x.data(), 2, 19, x.data());
        EXPECT_TRUE(std::isnan(x[at])) << bad << " at " << at;
        if (std::isnan(bad)) {
          for (std::size_t i = 0; i < 19; ++i)
            ASSERT_TRUE(std::isnan(x[i])) << "log " << log << " value " << i;
        }
        for (std::size_t i = 19; i < 38; ++i)
          ASSERT_NEAR(x[i], log ? -std::log(19.0) : 1.0 / 19.0, 1e-6);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ElementwiseF32, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

}  // namespace
}  // namespace tac::kernels
