#include "kernels/fconv/fconv.h"

#include "backends_under_test.h"
#include "float_testing.h"

namespace tac::kernels {
namespace {

using reference::WindowShape;
using test::Data;
using test::GuardedBuffer;

struct Case {
  WindowShape shape;
  std::size_t outputs = 1;
  std::size_t other_channels = 0;  // of further groups, between the pixels
  std::size_t out_gap = 0, offset = 0;
  std::size_t block_begin = 0, block_end = SIZE_MAX;
  std::size_t rows_at_a_time = 1;
};

void check(const KernelTable& kernels, const Case& c, Data data) {
  const WindowShape& s = c.shape;
  SCOPED_TRACE(testing::Message() << s << " outputs " << c.outputs << " other channels "
                                  << c.other_channels
                                  << (data == Data::kWhole ? " whole" : " real"));
  ASSERT_GT(s.out_h() * s.out_w(), 0U);
  test::Random random(static_cast<std::uint32_t>(s.in_w * 131 + c.outputs * 7 + s.channels));
  const std::size_t n_taps = s.kernel_h * s.kernel_w;
  const std::vector<float> w = random.values(c.outputs * n_taps * s.channels, data);
  const std::vector<float> b = random.values(c.outputs, data);
  const std::vector<float> x = random.values(s.in_h * s.in_w * s.channels, data);
  const std::size_t n_blocks = (c.outputs + 15) / 16;
  GuardedBuffer<float> packed(n_blocks * n_taps * s.channels * 16);
  GuardedBuffer<float> bias(n_blocks * 16);
  std::fill_n(packed.data(), packed.size(), 0.0F);
  std::fill_n(bias.data(), bias.size(), 0.0F);
  for (std::size_t o = 0; o < c.outputs; ++o) {
    bias[o] = b[o];
    for (std::size_t i = 0; i < n_taps * s.channels; ++i) {
      packed[(o / 16 * n_taps * s.channels + i) * 16 + o % 16] = w[o * n_taps * s.channels + i];
    }
  }
  const std::size_t pixel_stride = s.channels + c.other_channels;
  GuardedBuffer<float> xs((s.in_h * s.in_w - 1) * pixel_stride + s.channels, c.offset);
  std::fill_n(xs.data(), xs.size(), NAN);
  for (std::size_t i = 0; i < x.size(); ++i)
    xs[i / s.channels * pixel_stride + i % s.channels] = x[i];
  const ConvParams params{.in_h = s.in_h,
                          .in_w = s.in_w,
                          .out_w = s.out_w(),
                          .kernel_h = s.kernel_h,
                          .kernel_w = s.kernel_w,
                          .stride_h = s.stride_h,
                          .stride_w = s.stride_w,
                          .dilation_h = s.dilation_h,
                          .dilation_w = s.dilation_w,
                          .pad_top = s.pad_top,
                          .pad_left = s.pad_left,
                          .in_channels = s.channels,
                          .out_channels = c.outputs,
                          .pixel_stride = pixel_stride,
                          .weights = packed.data(),
                          .bias = bias.data()};
  const std::size_t out_stride = c.outputs + c.out_gap;
  const std::size_t block_end = std::min(c.block_end, n_blocks);
  const std::vector<reference::Sum> expected = reference::conv(s, c.outputs, w, b, x);
  for (std::size_t oy = 0; oy < s.out_h(); oy += c.rows_at_a_time) {
    const std::size_t oy_end = std::min(oy + c.rows_at_a_time, s.out_h());
    GuardedBuffer<float> rows(((oy_end - oy) * s.out_w() - 1) * out_stride + c.outputs, c.offset);
    std::fill_n(rows.data(), rows.size(), test::kUntouched);
    kernels.conv_f32(params, xs.data(), oy, oy_end, c.block_begin, block_end, rows.data(),
                     out_stride);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::size_t o = i % out_stride;
      if (o >= c.block_begin * 16 && o < std::min(c.outputs, block_end * 16)) {
        test::expect_sum(expected[(oy * s.out_w() + i / out_stride) * c.outputs + o], rows[i],
                         n_taps * s.channels, data);
      } else {
        EXPECT_EQ(rows[i], test::kUntouched) << "written at channel " << o;
      }
      if (testing::Test::HasFailure()) {
        ADD_FAILURE() << "at output row " << oy + i / out_stride / s.out_w() << ", column "
                      << i / out_stride % s.out_w() << ", channel " << o;
        return;
      }
    }
    EXPECT_TRUE(rows.intact());
  }
}

class ConvF32 : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->conv_f32 == nullptr) GTEST_SKIP() << "served by the next backend down";
  }
  void check_both(const Case& c) {
    check(*GetParam().table, c, Data::kWhole);
    if (!HasFailure()) check(*GetParam().table, c, Data::kReal);
  }
};

TEST_P(ConvF32, AgreesWithReferenceForEveryChannelCount) {
  for (const std::size_t channels : {1, 3, 4, 16, 17}) {
    for (const std::size_t outputs : {1, 10, 16, 17, 33, 64, 65, 96, 128, 144}) {
      for (const std::size_t other : {0, 5}) {
        check_both({.shape = {.in_h = 4,
                              .in_w = 9,
                              .channels = channels,
                              .kernel_h = 3,
                              .kernel_w = 3,
                              .pad_top = 1,
                              .pad_left = 1,
                              .pad_bottom = 1,
                              .pad_right = 1},
                    .outputs = outputs,
                    .other_channels = other});
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(ConvF32, AgreesWithReferenceForEveryWidth) {
  for (std::size_t width = 1; width <= 40; ++width) {
    for (const std::size_t outputs : {16, 32, 48, 64}) {
      check_both({.shape = {.in_h = 2,
                            .in_w = width,
                            .channels = 3,
                            .kernel_h = 1,
                            .kernel_w = 3,
                            .pad_left = 1,
                            .pad_right = 1},
                  .outputs = outputs});
      if (HasFailure()) return;
    }
  }
}

TEST_P(ConvF32, AgreesWithReferenceForEveryWindow) {
  const std::size_t kernels[][2] = {{1, 1}, {3, 3}, {5, 5}, {11, 11}, {2, 3}, {3, 1}};
  const std::size_t pads[][4] = {{0, 0, 0, 0}, {1, 1, 1, 1}, {2, 0, 1, 3}, {12, 13, 12, 11}};
  for (const auto& kernel : kernels) {
    for (const auto& pad : pads) {
      for (const std::size_t stride : {1, 2, 4}) {
        for (const std::size_t dilation : {1, 2}) {
          for (const std::size_t other : {0, 2}) {
            const WindowShape shape{.in_h = 13,
                                    .in_w = 14,
                                    .channels = 3,
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
            if (shape.out_h() * shape.out_w() == 0) continue;
            for (const std::size_t rows : {1, 4}) {
              check_both(
                  {.shape = shape, .outputs = 20, .other_channels = other, .rows_at_a_time = rows});
              if (HasFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST_P(ConvF32, AgreesWithReferenceWhereTheKernelIsLargerThanTheMap) {
  for (const std::size_t dilation : {1, 3}) {
    check_both({.shape = {.in_h = 2,
                          .in_w = 3,
                          .channels = 4,
                          .kernel_h = 5,
                          .kernel_w = 5,
                          .dilation_h = dilation,
                          .dilation_w = dilation,
                          .pad_top = 6,
                          .pad_left = 7,
                          .pad_bottom = 6,
                          .pad_right = 5},
                .outputs = 17});
  }
}

TEST_P(ConvF32, AgreesWithReferenceForEveryRunOfRows) {
  const std::size_t kernels[][2] = {{1, 1}, {3, 3}, {5, 2}};
  for (const auto& kernel : kernels) {
    for (const std::size_t pad : {0, 1}) {
      for (const std::size_t stride : {1, 2}) {
        for (std::size_t rows = 1; rows <= 9; ++rows) {
          for (const std::size_t width : {1, 2, 7}) {
            const WindowShape shape{.in_h = 8,
                                    .in_w = width,
                                    .channels = 5,
                                    .kernel_h = kernel[0],
                                    .kernel_w = kernel[1],
                                    .stride_h = stride,
                                    .stride_w = stride,
                                    .pad_top = pad,
                                    .pad_left = pad,
                                    .pad_bottom = pad,
                                    .pad_right = pad};
            if (shape.out_h() * shape.out_w() == 0) continue;
            check_both({.shape = shape,
                        .outputs = 100,
                        .other_channels = rows % 2,
                        .out_gap = 3,
                        .rows_at_a_time = rows});
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

// One kind of padding alone keeps a pointwise convolution from being a long row.
TEST_P(ConvF32, AgreesWithReferenceForPointwiseWithPadding) {
  for (int side = 0; side < 4; ++side) {
    WindowShape shape{.in_h = 5, .in_w = 6, .channels = 7, .kernel_h = 1, .kernel_w = 1};
    (side == 0   ? shape.pad_top
     : side == 1 ? shape.pad_left
     : side == 2 ? shape.pad_bottom
                 : shape.pad_right) = 1;
    for (std::size_t rows = 1; rows <= 6; ++rows)
      check_both({.shape = shape, .outputs = 70, .rows_at_a_time = rows});
  }
}

TEST_P(ConvF32, WritesOnlyTheBlocksAskedForBetweenGaps) {
  for (std::size_t begin = 0; begin <= 9; ++begin) {
    for (std::size_t end = begin; end <= 9; ++end) {
      check_both({.shape = {.in_h = 3,
                            .in_w = 8,
                            .channels = 2,
                            .kernel_h = 3,
                            .kernel_w = 3,
                            .pad_left = 1,
                            .pad_right = 1},
                  .outputs = 135,
                  .out_gap = 3,
                  .offset = 1 + begin % 3,
                  .block_begin = begin,
                  .block_end = end});
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ConvF32, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

}  // namespace
}  // namespace tac::kernels
