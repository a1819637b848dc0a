#include "kernels/iconv/iconv.h"

#include <algorithm>

#include "backends_under_test.h"
#include "float_testing.h"
#include "reference/integer_conv.h"

namespace tac::kernels {
namespace {

using test::GuardedBuffer;

struct Case {
  std::size_t in_h = 4, in_w = 9, channels = 3, outputs = 16;
  std::size_t kernel_h = 3, kernel_w = 3, stride_h = 1, stride_w = 1, dilation_h = 1,
              dilation_w = 1;
  std::size_t other_channels = 0;  // of further groups, between the pixels
  bool by_taps = false;            // a run for each tap, where a run for each kernel row would do
  std::size_t runs_per_sum = SIZE_MAX;
  std::size_t y_gap = 0;
  std::size_t block_begin = 0, block_end = SIZE_MAX;
  std::size_t rows_at_a_time = 1;
  bool extreme = false;  // sums at the limit of 32 bits
};

// A map without padding, which is the caller's affair.
void check(const KernelTable& kernels, const Case& c) {
  SCOPED_TRACE(testing::Message() << c.in_h << "x" << c.in_w << "x" << c.channels << " + "
                                  << c.other_channels << " kernel " << c.kernel_h << "x"
                                  << c.kernel_w << " stride " << c.stride_h << "," << c.stride_w
                                  << " dilation " << c.dilation_h << "," << c.dilation_w
                                  << " outputs " << c.outputs);
  reference::IntegerConv ref;
  ref.in_h = c.in_h;
  ref.in_w = c.in_w;
  ref.in_channels = c.channels;
  ref.out_channels = c.outputs;
  ref.kernel_h = c.kernel_h;
  ref.kernel_w = c.kernel_w;
  ref.stride_h = c.stride_h;
  ref.stride_w = c.stride_w;
  ref.dilation_h = c.dilation_h;
  ref.dilation_w = c.dilation_w;
  ref.out_h = (c.in_h - (c.kernel_h - 1) * c.dilation_h - 1) / c.stride_h + 1;
  ref.out_w = (c.in_w - (c.kernel_w - 1) * c.dilation_w - 1) / c.stride_w + 1;
  test::Random random(static_cast<std::uint32_t>(c.in_w * 131 + c.outputs * 7 + c.channels));
  const std::size_t n_taps = c.kernel_h * c.kernel_w, row = n_taps * c.channels;
  const auto value = [&](std::int64_t limit) {
    const auto size = static_cast<std::size_t>(2 * limit + 1);
    return c.extreme ? (random.below(2) == 0 ? limit : -limit)
                     : static_cast<std::int64_t>(random.below(size)) - limit;
  };
  const std::int64_t most = 2147483647 / static_cast<std::int64_t>(row);
  const std::int64_t limit = std::min<std::int64_t>(32767, most);
  const std::int64_t max_level = std::min<std::int64_t>(32767, most / limit);
  for (std::size_t i = 0; i < c.in_h * c.in_w * c.channels; ++i) ref.input.push_back(value(limit));
  for (std::size_t i = 0; i < c.outputs * row; ++i) ref.weights.push_back(value(max_level));
  if (c.extreme) {  // the sums of output 0 agree with the first pixel in all signs
    for (std::size_t i = 0; i < row; ++i) {
      const std::size_t tap = i / c.channels;
      const std::size_t at =
          (tap / c.kernel_w * c.dilation_h * c.in_w + tap % c.kernel_w * c.dilation_w) *
              c.channels +
          i % c.channels;
      ref.weights[i] = ref.input[at] > 0 ? max_level : -max_level;
    }
  }
  const std::size_t pixel = c.channels + c.other_channels;
  // An odd run reads one value more, whatever it is.
  GuardedBuffer<std::int16_t> map(c.in_h * c.in_w * pixel + 1);
  std::fill_n(map.data(), map.size(), std::int16_t{-32768});
  for (std::size_t i = 0; i < ref.input.size(); ++i)
    map[i / c.channels * pixel + i % c.channels] = static_cast<std::int16_t>(ref.input[i]);
  const bool whole_rows = c.dilation_w == 1 && c.other_channels == 0 && !c.by_taps;
  const std::size_t run_len = whole_rows ? c.kernel_w * c.channels : c.channels;
  std::vector<std::size_t> offsets;
  for (std::size_t ky = 0; ky < c.kernel_h; ++ky) {
    for (std::size_t kx = 0; kx < (whole_rows ? 1 : c.kernel_w); ++kx)
      offsets.push_back((ky * c.dilation_h * c.in_w + kx * c.dilation_w) * pixel);
  }
  // The sums of each part of the runs, with all other weights 0.
  const std::size_t runs_per_sum = std::min(c.runs_per_sum, offsets.size());
  std::vector<float> expected(ref.out_h * ref.out_w * c.outputs, 0.0F);
  for (std::size_t run = 0; run < offsets.size(); run += runs_per_sum) {
    reference::IntegerConv part = ref;
    for (std::size_t i = 0; i < part.weights.size(); ++i) {
      const std::size_t at = i % row / run_len;
      if (at < run || at >= run + runs_per_sum) part.weights[i] = 0;
    }
    const std::vector<std::int64_t> sums = reference::integer_conv(part);
    for (std::size_t i = 0; i < sums.size(); ++i) expected[i] += static_cast<float>(sums[i]);
  }
  const std::size_t pairs = (run_len + 1) / 2, n_blocks = (c.outputs + 15) / 16;
  GuardedBuffer<std::int16_t> weights(n_blocks * offsets.size() * pairs * 32);
  std::fill_n(weights.data(), weights.size(), std::int16_t{0});
  for (std::size_t o = 0; o < c.outputs; ++o) {
    for (std::size_t k = 0; k < row; ++k) {
      const std::size_t pair = (o / 16 * offsets.size() + k / run_len) * pairs + k % run_len / 2;
      weights[(pair * 16 + o % 16) * 2 + k % run_len % 2] =
          static_cast<std::int16_t>(ref.weights[o * row + k]);
    }
  }
  const IconvParams params{.out_w = ref.out_w,
                           .pixel_step = c.stride_w * pixel,
                           .line_step = c.stride_h * c.in_w * pixel,
                           .n_runs = offsets.size(),
                           .run_pairs = pairs,
                           .runs_per_sum = runs_per_sum,
                           .run_offsets = offsets.data(),
                           .weights = weights.data()};
  const std::size_t block_end = std::min(c.block_end, n_blocks);
  const std::size_t channels = (block_end - c.block_begin) * 16, stride = channels + c.y_gap;
  for (std::size_t oy = 0; oy < ref.out_h; oy += c.rows_at_a_time) {
    const std::size_t oy_end = std::min(oy + c.rows_at_a_time, ref.out_h);
    GuardedBuffer<float> y(((oy_end - oy) * ref.out_w - 1) * stride + channels);
    std::fill_n(y.data(), y.size(), test::kUntouched);
    kernels.conv_i16(params, map.data(), oy, oy_end, c.block_begin, block_end, y.data(), stride);
    for (std::size_t i = 0; i < y.size(); ++i) {
      const std::size_t o = c.block_begin * 16 + i % stride;
      if (i % stride >= channels) {
        ASSERT_EQ(y[i], test::kUntouched);
      } else {
        const std::size_t at = (oy * ref.out_w + i / stride) * c.outputs + o;
        ASSERT_EQ(y[i], o < c.outputs ? expected[at] : 0.0F)
            << "row " << oy << ", pixel " << i / stride << ", channel " << o;
      }
    }
    EXPECT_TRUE(y.intact());
  }
}

class ConvI16 : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->conv_i16 == nullptr) GTEST_SKIP() << "served by the next backend down";
  }
  void check(const Case& c) { kernels::check(*GetParam().table, c); }
};

TEST_P(ConvI16, AgreesWithReferenceForEveryChannelCount) {
  for (const std::size_t channels : {1, 2, 3, 4, 17}) {
    for (const std::size_t outputs : {1, 16, 17, 33, 64, 65, 96, 128, 144}) {
      for (const std::size_t other : {0, 5}) {
        check({.channels = channels, .outputs = outputs, .other_channels = other});
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(ConvI16, AgreesWithReferenceForEveryWidth) {
  for (std::size_t width = 3; width <= 40; ++width) {
    for (const std::size_t outputs : {16, 32, 48, 64}) {
      for (const std::size_t rows : {1, 2, 5})
        check({.in_h = 5, .in_w = width, .outputs = outputs, .rows_at_a_time = rows});
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(ConvI16, AgreesWithReferenceForEveryWindow) {
  const std::size_t windows[][2] = {{1, 1}, {3, 3}, {5, 5}, {7, 7}, {2, 3}, {3, 1}};
  for (const auto& window : windows) {
    for (const std::size_t stride : {1, 2, 4}) {
      for (const std::size_t dilation : {1, 2}) {
        for (const bool by_taps : {false, true}) {
          check({.in_h = 15,
                 .in_w = 14,
                 .outputs = 40,
                 .kernel_h = window[0],
                 .kernel_w = window[1],
                 .stride_h = stride,
                 .stride_w = 5 - stride,
                 .dilation_h = 3 - dilation,
                 .dilation_w = dilation,
                 .by_taps = by_taps,
                 .rows_at_a_time = 2});
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(ConvI16, AddsPartsOfTheSumsAsFloats) {
  for (std::size_t runs = 1; runs <= 10; ++runs) {
    for (const std::size_t outputs : {16, 40, 64}) {
      for (const std::size_t width : {3, 5, 12}) {
        check({.in_w = width,
               .channels = 4,
               .outputs = outputs,
               .by_taps = true,
               .runs_per_sum = runs});
        check({.in_w = width, .channels = 7, .outputs = outputs, .runs_per_sum = runs});
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(ConvI16, WritesTheBlocksAskedForAndNoMore) {
  for (std::size_t begin = 0; begin < 6; ++begin) {
    for (std::size_t end = begin + 1; end <= 6; ++end) {
      for (const std::size_t width : {3, 4, 11}) {
        check({.in_h = 3,
               .in_w = width,
               .outputs = 90,
               .y_gap = 3,
               .block_begin = begin,
               .block_end = end});
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(ConvI16, HoldsSumsAtTheLimitOf32Bits) {
  for (const std::size_t channels : {1, 3, 64, 300, 4000})
    check({.channels = channels, .outputs = 20, .extreme = true});
  check({.channels = 2, .kernel_h = 1, .kernel_w = 1, .extreme = true});
  check({.channels = 1, .kernel_h = 1, .kernel_w = 1, .extreme = true});
}

INSTANTIATE_TEST_SUITE_P(All, ConvI16, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

}  // namespace
}  // namespace tac::kernels
