// bit_pool_bits against maxima and minima of unpacked codes.
#include "kernels/bit_pool/bit_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <ostream>
#include <random>
#include <vector>

#include "backends_under_test.h"
#include "guarded_buffer.h"
#include "reference/code_pool.h"

namespace tac::kernels {
namespace {

using test::GuardedBuffer;

struct Case {
  std::size_t in_h = 6, in_w = 7, channels = 32;
  std::size_t kernel_h = 2, kernel_w = 2, stride_h = 2, stride_w = 2, dilation_h = 1,
              dilation_w = 1;
  std::size_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;
  std::size_t n_planes = 1;
  bool bitwise = false;

  std::size_t out_h() const {
    return (in_h + pad_top + pad_bottom - (kernel_h - 1) * dilation_h - 1) / stride_h + 1;
  }
  std::size_t out_w() const {
    return (in_w + pad_left + pad_right - (kernel_w - 1) * dilation_w - 1) / stride_w + 1;
  }
};

std::ostream& operator<<(std::ostream& s, const Case& c) {
  return s << c.in_h << 'x' << c.in_w << 'x' << c.channels << ", kernel " << c.kernel_h << 'x'
           << c.kernel_w << ", stride " << c.stride_h << 'x' << c.stride_w << ", dilation "
           << c.dilation_h << 'x' << c.dilation_w << ", pads " << c.pad_top << ' ' << c.pad_left
           << ' ' << c.pad_bottom << ' ' << c.pad_right << ", " << c.n_planes << " planes, bitwise "
           << c.bitwise;
}

void check(bit_pool_bits_fn kernel, const Case& c, std::uint32_t seed) {
  SCOPED_TRACE(testing::Message() << c << ", seed " << seed);
  std::mt19937 random(seed);
  const std::size_t words = (c.channels + 31) / 32;
  const std::size_t in_plane = c.in_h * c.in_w * words + 1,
                    out_plane = c.out_h() * c.out_w() * words + 2;

  reference::CodePool naive;
  naive.in_h = c.in_h, naive.in_w = c.in_w, naive.out_h = c.out_h(), naive.out_w = c.out_w();
  naive.channels = c.channels, naive.kernel_h = c.kernel_h, naive.kernel_w = c.kernel_w;
  naive.stride_h = c.stride_h, naive.stride_w = c.stride_w;
  naive.dilation_h = c.dilation_h, naive.dilation_w = c.dilation_w;
  naive.pad_top = c.pad_top, naive.pad_left = c.pad_left;

  GuardedBuffer<std::uint32_t> take_min(words, seed % 3);
  std::ranges::fill(take_min.span(), 0U);
  for (std::size_t channel = 0; channel < c.channels; ++channel) {
    naive.take_min.push_back(random() % 2 == 0);
    take_min[channel / 32] |= (naive.take_min.back() ? 1U : 0U) << (channel % 32);
  }
  GuardedBuffer<std::uint32_t> input((c.n_planes - 1) * in_plane + c.in_h * c.in_w * words,
                                     seed % 5);
  std::ranges::fill(input.span(), 0U);
  for (std::size_t pixel = 0; pixel < c.in_h * c.in_w; ++pixel) {
    for (std::size_t channel = 0; channel < c.channels; ++channel) {
      naive.codes.push_back(static_cast<std::uint32_t>(random() % (1U << c.n_planes)));
      for (std::size_t plane = 0; plane < c.n_planes; ++plane) {
        input[plane * in_plane + pixel * words + channel / 32] |= (naive.codes.back() >> plane & 1U)
                                                                  << (channel % 32);
      }
    }
  }

  // Bitwise pooling is pooling of each plane as a code of one bit.
  std::vector<std::uint32_t> expected;
  if (c.bitwise) {
    const std::vector<std::uint32_t> codes = naive.codes;
    for (std::size_t plane = 0; plane < c.n_planes; ++plane) {
      for (std::size_t i = 0; i < codes.size(); ++i) naive.codes[i] = codes[i] >> plane & 1U;
      const std::vector<std::uint32_t> bits = reference::code_pool(naive);
      expected.resize(bits.size());
      for (std::size_t i = 0; i < bits.size(); ++i) expected[i] |= bits[i] << plane;
    }
  } else {
    expected = reference::code_pool(naive);
  }

  BitPoolParams p{};
  p.in_h = c.in_h, p.in_w = c.in_w, p.out_w = c.out_w(), p.words = words;
  p.kernel_h = c.kernel_h, p.kernel_w = c.kernel_w, p.stride_h = c.stride_h,
  p.stride_w = c.stride_w;
  p.dilation_h = c.dilation_h, p.dilation_w = c.dilation_w, p.pad_top = c.pad_top,
  p.pad_left = c.pad_left;
  p.n_planes = c.n_planes, p.in_plane_stride = in_plane, p.out_plane_stride = out_plane,
  p.bitwise = c.bitwise;
  p.take_min = take_min.data();

  // Each word is written once, and the gap between planes never: what is not expected keeps its
  // mark.
  constexpr std::uint32_t kUntouched = 0xDEADBEEF;
  GuardedBuffer<std::uint32_t> out((c.n_planes - 1) * out_plane + c.out_h() * c.out_w() * words,
                                   seed % 7);
  std::ranges::fill(out.span(), kUntouched);
  std::vector<std::uint32_t> expected_words(out.size(), kUntouched);
  for (std::size_t plane = 0; plane < c.n_planes; ++plane) {
    for (std::size_t i = 0; i < c.out_h() * c.out_w() * words; ++i)
      expected_words[plane * out_plane + i] = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      expected_words[plane * out_plane + i / c.channels * words + i % c.channels / 32] |=
          (expected[i] >> plane & 1U) << (i % c.channels % 32);
    }
  }
  for (std::size_t oy = 0; oy < c.out_h(); ++oy) {
    kernel(p, input.data(), oy, out.data() + oy * c.out_w() * words);
  }
  ASSERT_TRUE(out.intact());
  for (std::size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], expected_words[i]) << "word " << i;
}

class BitPool : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->bit_pool_bits == nullptr)
      GTEST_SKIP() << "served by the next backend down";
  }
  void run_every_code(Case c) {
    for (c.n_planes = 1; c.n_planes <= 4; ++c.n_planes) {
      for (const bool bitwise : {false, true}) {
        c.bitwise = bitwise;
        check(GetParam().table->bit_pool_bits, c, seed_++);
        if (HasFatalFailure()) return;
      }
    }
  }
  std::uint32_t seed_ = 1;
};
INSTANTIATE_TEST_SUITE_P(All, BitPool, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

TEST_P(BitPool, MatchesPlainMaximaAndMinimaForEveryChannelCount) {
  for (const std::size_t channels :
       {1U, 3U, 31U, 32U, 33U, 64U, 65U, 96U, 128U, 130U, 256U, 300U, 512U, 540U}) {
    Case c;
    c.channels = channels;
    run_every_code(c);
  }
}

TEST_P(BitPool, MatchesPlainMaximaAndMinimaForEveryWindow) {
  struct Size {
    std::size_t h, w;
  };
  for (const Size kernel : {Size{1, 1}, Size{2, 2}, Size{3, 3}, Size{2, 3}, Size{5, 1}}) {
    for (const Size stride : {Size{1, 1}, Size{2, 2}, Size{2, 1}, Size{3, 3}}) {
      for (const std::size_t dilation : {1U, 2U}) {
        if ((kernel.h - 1) * dilation >= 6 || (kernel.w - 1) * dilation >= 7) continue;
        for (const bool padded : {false, true}) {
          Case c;
          c.channels = 40;
          c.kernel_h = kernel.h, c.kernel_w = kernel.w, c.stride_h = stride.h,
          c.stride_w = stride.w;
          c.dilation_h = c.dilation_w = dilation;
          if (padded) {  // less than the kernel's reach: no window without a tap inside
            c.pad_top = kernel.h / 2 * dilation, c.pad_left = kernel.w / 2 * dilation;
            c.pad_bottom = (kernel.h - 1) / 2 * dilation,
            c.pad_right = (kernel.w - 1) / 2 * dilation;
          }
          run_every_code(c);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(BitPool, PoolsAWholeMapIntoOnePixel) {
  Case c;
  c.in_h = c.kernel_h = 8, c.in_w = c.kernel_w = 8, c.channels = 70;
  run_every_code(c);
}

}  // namespace
}  // namespace tac::kernels
