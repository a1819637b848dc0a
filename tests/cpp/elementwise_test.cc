#include "kernels/elementwise/elementwise.h"

#include <functional>
#include <limits>
#include <memory>

#include "backends_under_test.h"
#include "float_testing.h"
#include "reference/step_function.h"

namespace tac::kernels {
namespace {

using test::GuardedBuffer;

constexpr std::size_t kSizes[] = {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 127, 128, 129};
constexpr UnaryKind kUnaryKinds[] = {
    UnaryKind::kRelu,      UnaryKind::kClip,     UnaryKind::kLeakyRelu,
    UnaryKind::kSigmoid,   UnaryKind::kTanh,     UnaryKind::kHardSigmoid,
    UnaryKind::kHardSwish, UnaryKind::kAbs,      UnaryKind::kNeg,
    UnaryKind::kSqrt,      UnaryKind::kExp,      UnaryKind::kSign,
    UnaryKind::kFloor,     UnaryKind::kCeil,     UnaryKind::kRound,
    UnaryKind::kElu,       UnaryKind::kSelu,     UnaryKind::kCelu,
    UnaryKind::kSoftplus,  UnaryKind::kSoftsign, UnaryKind::kErf,
    UnaryKind::kGelu,      UnaryKind::kGeluTanh, UnaryKind::kReciprocal,
    UnaryKind::kLog,       UnaryKind::kMish,     UnaryKind::kThresholdedRelu,
    UnaryKind::kTrunc};
static_assert(std::size(kUnaryKinds) == EnumNames<UnaryKind>::kNames.size());
constexpr BinaryKind kBinaryKinds[] = {
    BinaryKind::kAdd,  BinaryKind::kSub,         BinaryKind::kMul,  BinaryKind::kDiv,
    BinaryKind::kMin,  BinaryKind::kMax,         BinaryKind::kPow,  BinaryKind::kPRelu,
    BinaryKind::kLess, BinaryKind::kLessOrEqual, BinaryKind::kEqual};
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
  switch (kind) {
    case UnaryKind::kSigmoid:
    case UnaryKind::kTanh:
    case UnaryKind::kExp:
    case UnaryKind::kElu:
    case UnaryKind::kSelu:
    case UnaryKind::kCelu:
    case UnaryKind::kSoftplus:
    case UnaryKind::kErf:
    case UnaryKind::kGelu:
    case UnaryKind::kGeluTanh:
    case UnaryKind::kLog:
    case UnaryKind::kMish: return true;
    default: return false;
  }
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
  void SetUp() override {  // a backend has all of them or none
    if (kernels().affine_f32 == nullptr) GTEST_SKIP() << "served by the next backend down";
  }
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
    kernels().unary_f32(kind, alpha, beta, 1, x.size(), xs.data(), 0, y, 0);
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
  for (const UnaryKind kind : kUnaryKinds) {
    if (is_transcendental(kind)) check_unary(kind, 0.75F, 1.25F, x, 0, false);
  }
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
      kernels().affine_f32(scale.data(), shift.data(), channels, n_rows, x.data(), channels,
                           y.data(), channels);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const volatile float product =
            scale[i % channels] * x[i];  // volatile: rounded before the sum
        ASSERT_TRUE(test::same_bits(y[i], product + shift[i % channels]))
            << channels << " channels, value " << i;
      }
      EXPECT_TRUE(y.intact());
      kernels().affine_f32(scale.data(), shift.data(), channels, n_rows, x.data(), channels,
                           x.data(), channels);
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
          kernels().binary_f32(kind, {a.data(), 0, a_step}, {b.data(), 0, b_step}, 1, n, y.data(),
                               0);
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
          kernels().binary_f32(kind, {a.data(), 0, a_step}, {b.data(), 0, b_step}, 1, n,
                               place.data(), 0);
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
    kernels().binary_f32(kind, {a.data(), 0, 1}, {b.data(), 0, 1}, 1, a.size(), y.data(), 0);
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
    scalar.unary_f32(kind, 0.2F, 0.5F, 1, values.size(), values.data(), 0, expected.data(), 0);
    kernels().unary_f32(kind, 0.2F, 0.5F, 1, values.size(), values.data(), 0, got.data(), 0);
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
      scalar.binary_f32(kind, {&u, 0, 0}, {values.data(), 0, 1}, 1, values.size(), expected.data(),
                        0);
      kernels().binary_f32(kind, {&u, 0, 0}, {values.data(), 0, 1}, 1, values.size(), got.data(),
                           0);
      for (std::size_t i = 0; i < values.size(); ++i) {
        ASSERT_TRUE(test::same_bits(got[i], expected[i]))
            << EnumNames<BinaryKind>::kNames[static_cast<std::size_t>(kind)] << " of " << u << ", "
            << values[i] << ": got " << got[i] << ", scalar " << expected[i];
      }
    }
  }
}

TEST_P(ElementwiseF32, RectanglesKeepToTheirRows) {
  test::Random random(5);
  constexpr std::size_t kRows = 3;
  for (const std::size_t n : kSizes) {
    if (n == 0) continue;
    const std::size_t x_stride = n + 3, y_stride = n + 1;
    GuardedBuffer<float> x((kRows - 1) * x_stride + n, 1), y((kRows - 1) * y_stride + n, 2),
        row(n, 3);
    test::fill(x, random.values(x.size(), test::Data::kReal));
    test::fill(row, random.values(n, test::Data::kReal));
    // What `f` makes of row r, column c; the gaps between rows stay.
    const auto check = [&](const char* what, auto f) {
      for (std::size_t i = 0; i < y.size(); ++i) {
        const std::size_t r = i / y_stride, c = i % y_stride;
        ASSERT_TRUE(test::same_bits(y[i], c < n ? f(r, c) : test::kUntouched))
            << what << ", n " << n << ", row " << r << ", column " << c;
      }
      EXPECT_TRUE(y.intact());
      std::fill(y.span().begin(), y.span().end(), test::kUntouched);
    };
    std::fill(y.span().begin(), y.span().end(), test::kUntouched);
    kernels().unary_f32(UnaryKind::kNeg, 0, 0, kRows, n, x.data(), x_stride, y.data(), y_stride);
    check("unary", [&](std::size_t r, std::size_t c) { return -x[r * x_stride + c]; });
    kernels().affine_f32(row.data(), row.data(), n, kRows, x.data(), x_stride, y.data(), y_stride);
    check("affine", [&](std::size_t r, std::size_t c) {
      const volatile float product = row[c] * x[r * x_stride + c];
      return product + row[c];
    });
    kernels().binary_f32(BinaryKind::kSub, {x.data(), x_stride, 1}, {row.data(), 0, 1}, kRows, n,
                         y.data(), y_stride);
    check("map and row",
          [&](std::size_t r, std::size_t c) { return x[r * x_stride + c] - row[c]; });
    kernels().binary_f32(BinaryKind::kSub, {row.data(), 0, 1}, {x.data(), x_stride, 0}, kRows, n,
                         y.data(), y_stride);
    check("row and column", [&](std::size_t r, std::size_t c) { return row[c] - x[r * x_stride]; });
    if (HasFailure()) return;
  }
}

TEST_P(ElementwiseF32, ChainsAgreeWithTheirOpsOneByOne) {
  constexpr std::size_t kChannels[] = {1, 5, 8, 16, 17, 31, 32, 33, 48, 64, 70};
  constexpr std::size_t kRowCounts[] = {1, 2, 3, 4, 5, 9};
  test::Random random(6);
  const std::vector<float> special = special_values();
  for (std::size_t round = 0; round < 1500; ++round) {
    const std::size_t channels = kChannels[random.below(std::size(kChannels))];
    const std::size_t n_rows = kRowCounts[random.below(std::size(kRowCounts))];
    const std::size_t stride = channels + random.below(4),
                      n_values = (n_rows - 1) * stride + channels;
    const std::size_t n_words = (channels + 31) / 32, first_channel = 32 * random.below(3);
    SCOPED_TRACE(testing::Message() << "round " << round << ", " << n_rows << " rows, " << channels
                                    << " channels, stride " << stride);
    const auto value = [&] {
      return random.below(4) == 0 ? special[random.below(special.size())]
                                  : random.value(test::Data::kReal);
    };
    const auto buffer = [&](std::size_t n) {
      auto b = std::make_unique<GuardedBuffer<float>>(n, random.below(3));
      for (float& v : b->span()) v = value();
      return b;
    };
    const bool from_acc = random.below(2) == 0;
    const auto x = buffer(n_values);
    GuardedBuffer<std::int32_t> acc(n_values, random.below(3));
    for (std::int32_t& v : acc.span()) v = static_cast<std::int32_t>(random.below(1U << 31)) - 7;
    const ChainSource source{from_acc ? acc.data() : nullptr, from_acc ? nullptr : x->data(),
                             stride};
    std::vector<float> expected(n_rows * channels);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const std::size_t at = i / channels * stride + i % channels;
      expected[i] = from_acc ? static_cast<float>(acc[at]) : (*x)[at];
    }

    std::vector<ChainOp> ops;
    std::vector<std::unique_ptr<GuardedBuffer<float>>> floats;
    std::vector<std::unique_ptr<GuardedBuffer<std::uint32_t>>> words;
    std::vector<std::unique_ptr<QuantizeParams<float>>> params;
    std::vector<std::vector<std::uint8_t>> codes;
    codes.reserve(16);
    std::vector<std::function<void()>> checks;
    const auto each = [&](auto f) {
      for (std::size_t i = 0; i < expected.size(); ++i) {
        expected[i] = f(expected[i], i / channels, i % channels);
      }
    };
    for (std::size_t n_ops = 1 + random.below(6); n_ops > 0; --n_ops) {
      ChainOp op{};
      op.kind = static_cast<ChainKind>(random.below(12));
      switch (op.kind) {
        case ChainKind::kAffine: {
          op.a = floats.emplace_back(buffer(channels))->data();
          op.b = floats.emplace_back(buffer(channels))->data();
          each([&](float v, std::size_t, std::size_t c) {
            const volatile float product = op.a[c] * v;
            return product + op.b[c];
          });
          break;
        }
        case ChainKind::kRelu:
        case ChainKind::kClip:
        case ChainKind::kLeakyRelu: {
          op.alpha = -0.5F;
          op.beta = 1.25F;
          const UnaryKind kind = op.kind == ChainKind::kRelu   ? UnaryKind::kRelu
                                 : op.kind == ChainKind::kClip ? UnaryKind::kClip
                                                               : UnaryKind::kLeakyRelu;
          each([&](float v, std::size_t, std::size_t) {
            return reference::unary(kind, op.alpha, op.beta, v);
          });
          break;
        }
        case ChainKind::kStore: {
          op.y_stride = channels + 2;
          GuardedBuffer<float>& y =
              *floats.emplace_back(buffer((n_rows - 1) * op.y_stride + channels));
          std::fill(y.span().begin(), y.span().end(), test::kUntouched);
          op.y = y.data();
          checks.push_back([&y, &channels, stride = op.y_stride, expected] {
            for (std::size_t i = 0; i < y.size(); ++i) {
              const std::size_t r = i / stride, c = i % stride;
              const float e = c < channels ? expected[r * channels + c] : test::kUntouched;
              // A zero of either sign is the same value: max(-0, 0) has no fixed sign in ONNX.
              ASSERT_TRUE(test::same_bits(y[i], e) || (y[i] == 0.0F && e == 0.0F))
                  << "row " << r << ", channel " << c << ": got " << y[i] << ", expected " << e;
            }
            EXPECT_TRUE(y.intact());
          });
          break;
        }
        case ChainKind::kBits: {
          const std::size_t n_thresholds = 1 + random.below(7),
                            n_planes = n_thresholds == 1 ? 1 : 3;
          const std::size_t threshold_stride = first_channel + n_words * 32;
          GuardedBuffer<float>& thresholds =
              *floats.emplace_back(buffer(n_thresholds * threshold_stride));
          for (std::size_t c = 0; c < threshold_stride; ++c) {
            std::vector<float> column;
            for (std::size_t t = 0; t < n_thresholds; ++t)
              column.push_back(random.value(test::Data::kReal));
            std::sort(column.begin(), column.end());
            for (std::size_t t = 0; t < n_thresholds; ++t)
              thresholds[t * threshold_stride + c] = column[t];
          }
          GuardedBuffer<std::uint32_t>& flip = *words.emplace_back(
              std::make_unique<GuardedBuffer<std::uint32_t>>(first_channel / 32 + n_words));
          for (std::uint32_t& w : flip.span())
            w = static_cast<std::uint32_t>(random.below(1U << 31));
          std::vector<std::uint8_t>& code = codes.emplace_back();
          for (std::size_t t = 0; t <= n_thresholds; ++t)
            code.push_back(static_cast<std::uint8_t>(random.below(2) == 0 ? t : n_thresholds - t));
          op.quantize =
              params
                  .emplace_back(std::make_unique<QuantizeParams<float>>(QuantizeParams<float>{
                      first_channel + channels, n_thresholds, n_planes, threshold_stride,
                      thresholds.data(), flip.data(), code.data()}))
                  .get();
          op.first_channel = first_channel;
          op.out_stride = n_words + 1;
          op.plane_stride = n_rows * op.out_stride;
          GuardedBuffer<std::uint32_t>& bits =
              *words.emplace_back(std::make_unique<GuardedBuffer<std::uint32_t>>(
                  n_planes * op.plane_stride, random.below(2)));
          std::fill(bits.span().begin(), bits.span().end(), 0xABCDABCDU);
          op.bits = bits.data();
          checks.push_back([&, op, expected, n_thresholds, n_planes] {
            const QuantizeParams<float>& q = *op.quantize;
            const std::vector<std::uint8_t> code_of_index(q.code_of_index,
                                                          q.code_of_index + n_thresholds + 1);
            for (std::size_t r = 0; r < n_rows; ++r) {
              std::vector<std::uint32_t> packed(n_planes * n_words, 0);
              for (std::size_t c = 0; c < channels; ++c) {
                std::vector<float> column;
                for (std::size_t t = 0; t < n_thresholds; ++t)
                  column.push_back(q.thresholds[t * q.threshold_stride + first_channel + c]);
                const bool down = (q.flip[(first_channel + c) / 32] >> (c % 32) & 1) != 0;
                const std::uint32_t k =
                    reference::step_code(expected[r * channels + c], column, down, code_of_index);
                for (std::size_t p = 0; p < n_planes; ++p)
                  packed[p * n_words + c / 32] |= (k >> p & 1) << (c % 32);
              }
              for (std::size_t p = 0; p < n_planes; ++p) {
                const std::uint32_t* row = op.bits + p * op.plane_stride + r * op.out_stride;
                for (std::size_t w = 0; w < n_words; ++w)
                  ASSERT_EQ(row[w], packed[p * n_words + w]) << "row " << r << ", word " << w;
                ASSERT_EQ(row[n_words], 0xABCDABCDU);
              }
            }
          });
          break;
        }
        default: {
          const bool rows = random.below(2) == 0;
          op.operand.step = random.below(2);
          op.operand.stride = rows ? channels + 1 : 0;
          op.operand.data = floats
                                .emplace_back(buffer((rows ? n_rows - 1 : 0) * op.operand.stride +
                                                     (op.operand.step == 0 ? 1 : channels)))
                                ->data();
          constexpr BinaryKind kKinds[] = {BinaryKind::kAdd, BinaryKind::kSub, BinaryKind::kMul,
                                           BinaryKind::kMin, BinaryKind::kMax, BinaryKind::kPRelu};
          const BinaryKind kind =
              kKinds[static_cast<std::size_t>(op.kind) - static_cast<std::size_t>(ChainKind::kAdd)];
          each([&](float v, std::size_t r, std::size_t c) {
            return reference::binary(kind, v,
                                     op.operand.data[r * op.operand.stride + c * op.operand.step]);
          });
          break;
        }
      }
      ops.push_back(op);
    }
    kernels().chain_f32(source, n_rows, channels, ops.data(), ops.size());
    for (const auto& check : checks) check();
    if (HasFailure()) return;
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
