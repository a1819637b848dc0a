#include "kernels/depthwise/depthwise.h"

#include "backends_under_test.h"
#include "float_testing.h"

namespace tac::kernels {
namespace {

using reference::WindowShape;
using test::Data;
using test::GuardedBuffer;

// `s.channels` channels, each compared with a convolution of that channel alone.
void check(const KernelTable& kernels, const WindowShape& s, std::size_t offset, Data data) {
  SCOPED_TRACE(testing::Message() << s << (data == Data::kWhole ? " whole" : " real"));
  ASSERT_GT(s.out_h() * s.out_w(), 0U);
  test::Random random(static_cast<std::uint32_t>(s.in_w * 131 + s.channels));
  const std::size_t n_taps = s.kernel_h * s.kernel_w, n_pixels = s.in_h * s.in_w;
  GuardedBuffer<float> w(n_taps * s.channels, offset), bias(s.channels, offset),
      x(n_pixels * s.channels, offset), row(s.out_w() * s.channels, offset);
  test::fill(w, random.values(w.size(), data));
  test::fill(bias, random.values(bias.size(), data));
  test::fill(x, random.values(x.size(), data));
  const DepthwiseParams params{.in_h = s.in_h,
                               .in_w = s.in_w,
                               .out_w = s.out_w(),
                               .channels = s.channels,
                               .kernel_h = s.kernel_h,
                               .kernel_w = s.kernel_w,
                               .stride_h = s.stride_h,
                               .stride_w = s.stride_w,
                               .dilation_h = s.dilation_h,
                               .dilation_w = s.dilation_w,
                               .pad_top = s.pad_top,
                               .pad_left = s.pad_left,
                               .weights = w.data(),
                               .bias = bias.data()};
  std::vector<std::vector<reference::Sum>> expected;
  WindowShape one = s;
  one.channels = 1;
  for (std::size_t c = 0; c < s.channels; ++c) {
    std::vector<float> w_c(n_taps), x_c(n_pixels);
    for (std::size_t i = 0; i < n_taps; ++i) w_c[i] = w[i * s.channels + c];
    for (std::size_t i = 0; i < n_pixels; ++i) x_c[i] = x[i * s.channels + c];
    expected.push_back(reference::conv(one, 1, w_c, {bias[c]}, x_c));
  }
  for (std::size_t oy = 0; oy < s.out_h(); ++oy) {
    std::fill_n(row.data(), row.size(), test::kUntouched);
    kernels.depthwise_f32(params, x.data(), oy, row.data());
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::size_t c = i % s.channels, ox = i / s.channels;
      test::expect_sum(expected[c][oy * s.out_w() + ox], row[i], n_taps, data);
      if (testing::Test::HasFailure()) {
        ADD_FAILURE() << "at output row " << oy << ", column " << ox << ", channel " << c;
        return;
      }
    }
    EXPECT_TRUE(row.intact());
  }
}

class DepthwiseF32 : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->depthwise_f32 == nullptr)
      GTEST_SKIP() << "served by the next backend down";
  }
  void check_both(const WindowShape& shape, std::size_t offset = 0) {
    check(*GetParam().table, shape, offset, Data::kWhole);
    if (!HasFailure()) check(*GetParam().table, shape, offset, Data::kReal);
  }
};

TEST_P(DepthwiseF32, AgreesWithReferenceForEveryChannelCount) {
  for (const std::size_t channels : {1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 130}) {
    check_both({.in_h = 4,
                .in_w = 9,
                .channels = channels,
                .kernel_h = 3,
                .kernel_w = 3,
                .pad_top = 1,
                .pad_left = 1,
                .pad_bottom = 1,
                .pad_right = 1},
               channels % 3);
    if (HasFailure()) return;
  }
}

TEST_P(DepthwiseF32, AgreesWithReferenceForEveryWindow) {
  const std::size_t kernels[][2] = {{1, 1}, {3, 3}, {5, 5}, {2, 3}, {3, 1}};
  const std::size_t pads[][4] = {{0, 0, 0, 0}, {1, 1, 1, 1}, {2, 0, 1, 3}, {12, 13, 12, 11}};
  for (const auto& kernel : kernels) {
    for (const auto& pad : pads) {
      for (const std::size_t stride : {1, 2, 4}) {
        for (const std::size_t dilation : {1, 2}) {
          const WindowShape shape{.in_h = 13,
                                  .in_w = 14,
                                  .channels = 20,
                                  .kernel_h = kernel[0],
                                  .kernel_w = kernel[1],
                                  .stride_h = stride,
                                  .stride_w = stride == 4 ? 3 : stride,
                                  .dilation_h = dilation,
                                  .dilation_w = dilation,
                                  .pad_top = pad[0],
                                  .pad_left = pad[1],
                                  .pad_bottom = pad[2],
                                  .pad_right = pad[3]};
          check_both(shape);
          if (HasFailure()) return;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, DepthwiseF32, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

}  // namespace
}  // namespace tac::kernels
