#include "kernels/reduce/reduce.h"

#include "backends_under_test.h"
#include "float_testing.h"

namespace tac::kernels {
namespace {

using test::GuardedBuffer;

constexpr std::size_t kSizes[] = {1,  2,  7,  8,  9,  15,  16,  17,  31,
                                  32, 33, 63, 64, 65, 127, 129, 1000};
constexpr std::size_t kKinds = EnumNames<ReduceKind>::kNames.size();

class ReduceF32 : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (kernels().reduce_rows_f32 == nullptr) GTEST_SKIP() << "served by the next backend down";
  }
  const KernelTable& kernels() const { return *GetParam().table; }

  // Rows or columns of a rectangle: against the reference within the rounding to float32 and that
  // of the sums, exactly for whole numbers, and bit for bit against scalar.
  void check(ReduceKind kind, bool columns, std::size_t n_rows, std::size_t n, std::size_t gap,
             const std::vector<float>& x, test::Data data) {
    SCOPED_TRACE(testing::Message() << EnumNames<ReduceKind>::kNames[static_cast<std::size_t>(kind)]
                                    << (columns ? " of columns, " : " of rows, ") << n_rows << "x"
                                    << n << ", gap " << gap);
    const std::size_t stride = n + gap, n_results = columns ? n : n_rows;
    GuardedBuffer<float> xs(x.size(), n % 4), y(n_results, n_rows % 4);
    test::fill(xs, x);
    const KernelTable& scalar = *backends().back().table;
    std::vector<float> expected(n_results);
    if (columns) {
      kernels().reduce_columns_f32(kind, xs.data(), n_rows, stride, n, y.data());
      scalar.reduce_columns_f32(kind, xs.data(), n_rows, stride, n, expected.data());
    } else {
      kernels().reduce_rows_f32(kind, xs.data(), n_rows, stride, n, y.data());
      scalar.reduce_rows_f32(kind, xs.data(), n_rows, stride, n, expected.data());
    }
    EXPECT_TRUE(y.intact());
    for (std::size_t i = 0; i < n_results; ++i) {
      ASSERT_TRUE(test::same_bits(y[i], expected[i]))
          << "result " << i << ": got " << y[i] << ", scalar " << expected[i];
      std::vector<float> terms;
      for (std::size_t k = 0; k < (columns ? n_rows : n); ++k)
        terms.push_back(columns ? x[k * stride + i] : x[i * stride + k]);
      const reference::Sum sum = reference::reduce(kind, terms);
      const double bound = std::fabs(sum.value) * 0x1p-24 +
                           static_cast<double>(terms.size() + 2) * 0x1p-52 * sum.magnitude +
                           0x1p-150;
      const bool is_whole = data == test::Data::kWhole && kind != ReduceKind::kMean &&
                            kind != ReduceKind::kL2 && kind != ReduceKind::kProd;
      if (is_whole) {
        ASSERT_EQ(y[i], static_cast<float>(sum.value)) << "result " << i;
      } else {
        ASSERT_TRUE(std::fabs(y[i] - sum.value) <= bound)
            << "result " << i << ": got " << y[i] << ", expected " << sum.value;
      }
    }
  }
};

TEST_P(ReduceF32, AgreesForEveryKindAndSize) {
  test::Random random(1);
  for (const std::size_t n : kSizes) {
    for (const std::size_t n_rows : {1, 3, 5}) {
      for (std::size_t kind = 0; kind < kKinds; ++kind) {
        const std::size_t gap = (n + kind) % 3;
        const test::Data data = kind % 2 == n_rows % 2 ? test::Data::kWhole : test::Data::kReal;
        const std::vector<float> x = random.values((n_rows - 1) * (n + gap) + n, data);
        check(static_cast<ReduceKind>(kind), false, n_rows, n, gap, x, data);
        check(static_cast<ReduceKind>(kind), true, n_rows, n, gap, x, data);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(ReduceF32, LongSumsStayAccurate) {
  // Float32 sums of these in order would be off by about n / 2 units in the last place.
  std::vector<float> x(100000, 0.1F);
  float mean = 0.0F;
  kernels().reduce_rows_f32(ReduceKind::kMean, x.data(), 1, 0, x.size(), &mean);
  EXPECT_EQ(mean, 0.1F);
  kernels().reduce_columns_f32(ReduceKind::kMean, x.data(), x.size(), 1, 1, &mean);
  EXPECT_EQ(mean, 0.1F);
}

TEST_P(ReduceF32, NanWinsAndInfinityCounts) {
  for (const std::size_t n : {1, 20, 40, 64}) {
    for (std::size_t at = 0; at < n; ++at) {
      for (std::size_t kind = 0; kind < kKinds; ++kind) {
        std::vector<float> x(n, 1.0F);
        float row = 0.0F, column = 0.0F;
        const auto reduce = [&] {
          kernels().reduce_rows_f32(static_cast<ReduceKind>(kind), x.data(), 1, n, n, &row);
          kernels().reduce_columns_f32(static_cast<ReduceKind>(kind), x.data(), n, 1, 1, &column);
        };
        x[at] = NAN;
        reduce();
        ASSERT_TRUE(std::isnan(row) && std::isnan(column)) << "kind " << kind << ", at " << at;
        x[at] = INFINITY;
        reduce();
        const float expected =
            static_cast<ReduceKind>(kind) == ReduceKind::kMin && n > 1 ? 1.0F : INFINITY;
        ASSERT_EQ(row, expected) << "kind " << kind << ", at " << at;
        ASSERT_EQ(column, expected) << "kind " << kind << ", at " << at;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ReduceF32, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

}  // namespace
}  // namespace tac::kernels
