#include "backends_under_test.h"
#include "float_testing.h"
#include "kernels/pool/pool.h"

namespace tac::kernels {
namespace {

using reference::WindowShape;
using test::GuardedBuffer;

class PoolF32 : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->pool_f32 == nullptr) GTEST_SKIP() << "served by the next backend down";
  }

  void check(const WindowShape& s, bool ceil_mode, const std::vector<float>& x,
             std::size_t offset = 0) {
    for (const bool average : {false, true}) {
      for (const bool count_include_pad : {false, true}) {
        SCOPED_TRACE(testing::Message()
                     << s << (ceil_mode ? " ceil" : "") << (average ? " average" : " max")
                     << (count_include_pad ? " with padding" : ""));
        GuardedBuffer<float> xs(x.size(), offset);
        test::fill(xs, x);
        const PoolParams params{.in_h = s.in_h,
                                .in_w = s.in_w,
                                .out_w = s.out_w(ceil_mode),
                                .channels = s.channels,
                                .kernel_h = s.kernel_h,
                                .kernel_w = s.kernel_w,
                                .stride_h = s.stride_h,
                                .stride_w = s.stride_w,
                                .dilation_h = s.dilation_h,
                                .dilation_w = s.dilation_w,
                                .pad_top = s.pad_top,
                                .pad_left = s.pad_left,
                                .pad_bottom = s.pad_bottom,
                                .pad_right = s.pad_right,
                                .average = average,
                                .count_include_pad = count_include_pad};
        const std::vector<float> expected =
            reference::pool(s, ceil_mode, average, count_include_pad, x);
        const std::size_t row_size = params.out_w * s.channels;
        ASSERT_EQ(expected.size(), s.out_h(ceil_mode) * row_size);
        ASSERT_FALSE(expected.empty());
        GuardedBuffer<float> row(row_size, offset);
        for (std::size_t oy = 0; oy < s.out_h(ceil_mode); ++oy) {
          std::fill_n(row.data(), row_size, test::kUntouched);
          GetParam().table->pool_f32(params, xs.data(), oy, row.data());
          for (std::size_t i = 0; i < row_size; ++i) {
            ASSERT_TRUE(test::same_bits(row[i], expected[oy * row_size + i]))
                << "row " << oy << " value " << i << ": got " << row[i] << ", expected "
                << expected[oy * row_size + i];
          }
          EXPECT_TRUE(row.intact());
        }
      }
    }
  }

  static std::vector<float> reals(const WindowShape& s) {
    test::Random random(static_cast<std::uint32_t>(s.channels * 31 + s.in_w));
    return random.values(s.in_h * s.in_w * s.channels, test::Data::kReal);
  }
};

TEST_P(PoolF32, AgreesWithReferenceForEveryChannelCount) {
  for (const std::size_t channels :
       {1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 127, 129}) {
    const WindowShape s{.in_h = 5,
                        .in_w = 6,
                        .channels = channels,
                        .kernel_h = 2,
                        .kernel_w = 2,
                        .stride_h = 2,
                        .stride_w = 2};
    check(s, false, reals(s), channels % 4);
  }
}

TEST_P(PoolF32, AgreesWithReferenceForEveryWindow) {
  const std::size_t kernels[][2] = {{1, 1}, {2, 2}, {3, 3}, {2, 3}, {7, 7}};
  const std::size_t pads[][4] = {{0, 0, 0, 0}, {1, 1, 1, 1}, {0, 1, 2, 0}};
  for (const auto& kernel : kernels) {
    for (const auto& pad : pads) {
      for (const std::size_t stride : {1, 2, 3}) {
        for (const std::size_t dilation : {1, 2}) {
          for (const bool ceil_mode : {false, true}) {
            const WindowShape s{.in_h = 14,
                                .in_w = 13,
                                .channels = 5,
                                .kernel_h = kernel[0],
                                .kernel_w = kernel[1],
                                .stride_h = stride,
                                .stride_w = stride,
                                .dilation_h = dilation,
                                .dilation_w = dilation,
                                .pad_top = pad[0],
                                .pad_left = pad[1],
                                .pad_bottom = pad[2],
                                .pad_right = pad[3]};
            check(s, ceil_mode, reals(s));
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST_P(PoolF32, CeilModeCountsNoTapPastThePadding) {
  // 3 taps every 2 pixels over 4 pixels: the second window has 2 taps inside and none in padding.
  const WindowShape s{.in_h = 1, .in_w = 4, .channels = 1, .kernel_w = 3, .stride_w = 2};
  ASSERT_EQ(s.out_w(true), 2U);
  EXPECT_EQ(reference::pool(s, true, true, true, {1, 2, 3, 5}), (std::vector<float>{2, 4}));
  check(s, true, {1, 2, 3, 5});
}

TEST_P(PoolF32, WindowWithoutATapInsideGivesMinusInfinityOrNaN) {
  const WindowShape s{.in_h = 3,
                      .in_w = 3,
                      .channels = 18,
                      .kernel_h = 2,
                      .kernel_w = 2,
                      .pad_top = 4,
                      .pad_left = 4,
                      .pad_bottom = 4,
                      .pad_right = 4};
  check(s, false, reals(s));
}

TEST_P(PoolF32, NaNWinsAndZerosKeepTheFirst) {
  for (const std::size_t channels : {1, 17, 70}) {
    WindowShape s{
        .in_h = 2, .in_w = 6, .channels = channels, .kernel_h = 2, .kernel_w = 2, .stride_w = 2};
    std::vector<float> x = reals(s);
    for (std::size_t i = 0; i < x.size(); i += 3) x[i] = i % 2 == 0 ? NAN : -INFINITY;
    check(s, false, x);
  }
}

INSTANTIATE_TEST_SUITE_P(All, PoolF32, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

}  // namespace
}  // namespace tac::kernels
