// bconv_b1_* and bconv_strip_* against a loop nest on unpacked levels. The code here derives base
// and coefficients from an encoding, so that the formula in bconv.h is proved and not only
// repeated.
#include "kernels/bconv/bconv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <ostream>
#include <random>
#include <vector>

#include "backends_under_test.h"
#include "guarded_buffer.h"
#include "reference/integer_conv.h"

namespace tac::kernels {
namespace {

using test::GuardedBuffer;

// What the planes of an activation stand for.
struct Activation {
  enum Kind { kLinear, kSignZero } kind = kLinear;
  int lo = 1, step = -2, n_planes = 1;  // level = lo + step * code; the default is {+1, -1}

  int level(unsigned code) const {
    if (kind == kLinear) return lo + step * static_cast<int>(code);
    return code == 0U ? 1 : code == 2U ? 0 : -1;  // plane 0: below zero, plane 1: not above zero
  }
  // The codes that occur; kSignZero never has plane 0 set without plane 1.
  std::vector<unsigned> codes() const {
    if (kind == kSignZero) return {0U, 2U, 3U};
    std::vector<unsigned> all(1U << n_planes);
    for (unsigned i = 0; i < all.size(); ++i) all[i] = i;
    return all;
  }
};

struct Case {
  std::size_t in_h = 5, in_w = 5, in_channels = 32, out_channels = 16;
  std::size_t kernel_h = 3, kernel_w = 3, stride_h = 1, stride_w = 1, dilation_h = 1,
              dilation_w = 1;
  std::size_t pad_top = 1, pad_left = 1, pad_bottom = 1, pad_right = 1;
  int pad_level = 0;
  Activation activation;
  std::vector<int> w_coefs{1};  // weight level = sum of w_coefs[j] * s_j / 2^w_shift
  int w_shift = 0;
  std::size_t words_around = 0;  // words of other groups between pixels, in front and behind
  std::size_t block_begin = 0, block_end = 0;  // 0, 0: all

  std::size_t out_h() const {
    return (in_h + pad_top + pad_bottom - (kernel_h - 1) * dilation_h - 1) / stride_h + 1;
  }
  std::size_t out_w() const {
    return (in_w + pad_left + pad_right - (kernel_w - 1) * dilation_w - 1) / stride_w + 1;
  }
};

std::ostream& operator<<(std::ostream& s, const Case& c) {
  return s << c.in_h << 'x' << c.in_w << 'x' << c.in_channels << " -> " << c.out_channels
           << ", kernel " << c.kernel_h << 'x' << c.kernel_w << ", stride " << c.stride_h << 'x'
           << c.stride_w << ", dilation " << c.dilation_h << 'x' << c.dilation_w << ", pads "
           << c.pad_top << ' ' << c.pad_left << ' ' << c.pad_bottom << ' ' << c.pad_right
           << " at level " << c.pad_level << ", planes " << c.activation.n_planes << 'x'
           << c.w_coefs.size() << ", lo " << c.activation.lo << " step " << c.activation.step
           << ", words around " << c.words_around << ", blocks " << c.block_begin << ".."
           << c.block_end;
}

// The kernels for single rows, or those for strips.
struct Form {
  const KernelTable& kernels;
  bool strips;

  std::size_t pack(const std::uint32_t* rows, std::size_t n_channels, std::size_t n_taps,
                   std::size_t words, std::uint32_t* packed) const {
    return strips ? kernels.bconv_strip_pack(rows, n_channels, n_taps, words, packed)
                  : kernels.bconv_b1_pack(rows, n_channels, n_taps * words, packed);
  }
  void sums(const BconvParams& p, const std::uint32_t* input, std::size_t oy, std::size_t n_rows,
            std::size_t block_begin, std::size_t block_end, std::int32_t* out,
            std::size_t out_stride) const {
    if (!strips) return kernels.bconv_b1_i32(p, input, oy, block_begin, block_end, out, out_stride);
    EXPECT_LE(kernels.bconv_strip_scratch(p, 1), kernels.bconv_strip_scratch(p, n_rows));
    GuardedBuffer<std::byte> scratch(kernels.bconv_strip_scratch(p, n_rows));
    kernels.bconv_strip_i32(p, input, oy, oy + n_rows, block_begin, block_end, scratch.data(), out,
                            out_stride);
    ASSERT_TRUE(scratch.intact());
  }
  void bits(const BconvParams& p, const std::uint32_t* flip, const std::uint32_t* input,
            std::size_t oy, std::size_t n_rows, std::size_t block_begin, std::size_t block_end,
            std::uint32_t* out, std::size_t out_stride) const {
    if (!strips) {
      return kernels.bconv_b1_bits(p, flip, input, oy, block_begin, block_end, out, out_stride);
    }
    GuardedBuffer<std::byte> scratch(kernels.bconv_strip_scratch(p, n_rows));
    kernels.bconv_strip_bits(p, flip, input, oy, oy + n_rows, block_begin, block_end,
                             scratch.data(), out, out_stride);
    ASSERT_TRUE(scratch.intact());
  }
};

// Runs the kernels on a random instance of `c`, one row or strips of any number of rows at a time,
// and compares with the loop nest.
void check(const Form& form, const Case& c, std::uint32_t seed) {
  SCOPED_TRACE(testing::Message() << c << ", seed " << seed << (form.strips ? ", strips" : ""));
  std::mt19937 random(seed);
  const std::size_t n_in = static_cast<std::size_t>(c.activation.n_planes), n_w = c.w_coefs.size();
  const std::size_t words = (c.in_channels + 31) / 32, pixel_words = words + 2 * c.words_around;
  const std::size_t n_blocks = (c.out_channels + kBconvBlock - 1) / kBconvBlock;
  const std::size_t taps = c.kernel_h * c.kernel_w;

  reference::IntegerConv naive;
  naive.in_h = c.in_h, naive.in_w = c.in_w, naive.out_h = c.out_h(), naive.out_w = c.out_w();
  naive.in_channels = c.in_channels, naive.out_channels = c.out_channels;
  naive.kernel_h = c.kernel_h, naive.kernel_w = c.kernel_w, naive.stride_h = c.stride_h,
  naive.stride_w = c.stride_w;
  naive.dilation_h = c.dilation_h, naive.dilation_w = c.dilation_w;
  naive.pad_top = c.pad_top, naive.pad_left = c.pad_left, naive.pad_level = c.pad_level;

  // Input: levels for the loop nest, planes for the kernel. The words of other groups hold noise.
  const std::size_t plane_words = c.in_h * c.in_w * pixel_words;
  GuardedBuffer<std::uint32_t> input(n_in * plane_words - c.words_around, seed % 3);
  for (std::uint32_t& word : input.span()) word = random();
  const std::vector<unsigned> codes = c.activation.codes();
  for (std::size_t pixel = 0; pixel < c.in_h * c.in_w; ++pixel) {
    for (std::size_t plane = 0; plane < n_in; ++plane) {
      for (std::size_t word = 0; word < words; ++word) {
        input[plane * plane_words + pixel * pixel_words + c.words_around + word] = 0;
      }
    }
    for (std::size_t channel = 0; channel < c.in_channels; ++channel) {
      const unsigned code = codes[random() % codes.size()];
      naive.input.push_back(c.activation.level(code));
      for (std::size_t plane = 0; plane < n_in; ++plane) {
        input[plane * plane_words + pixel * pixel_words + c.words_around + channel / 32] |=
            (code >> plane & 1U) << (channel % 32);
      }
    }
  }

  // Weights; sign patterns whose level is not an integer do not occur.
  std::vector<std::uint32_t> w_rows(n_w * c.out_channels * taps * words, 0U);
  std::vector<unsigned> patterns;
  std::map<unsigned, int> level_of_pattern;
  for (unsigned pattern = 0; pattern < 1U << n_w; ++pattern) {
    int level = 0;
    for (std::size_t j = 0; j < n_w; ++j)
      level += c.w_coefs[j] * ((pattern >> j & 1U) != 0 ? -1 : 1);
    if (level % (1 << c.w_shift) != 0) continue;
    patterns.push_back(pattern);
    level_of_pattern[pattern] = level / (1 << c.w_shift);
  }
  ASSERT_FALSE(patterns.empty());
  for (std::size_t oc = 0; oc < c.out_channels; ++oc) {
    for (std::size_t tap = 0; tap < taps; ++tap) {
      for (std::size_t channel = 0; channel < c.in_channels; ++channel) {
        const unsigned pattern = patterns[random() % patterns.size()];
        naive.weights.push_back(level_of_pattern[pattern]);
        for (std::size_t j = 0; j < n_w; ++j) {
          w_rows[((j * c.out_channels + oc) * taps + tap) * words + channel / 32] |=
              (pattern >> j & 1U) << (channel % 32);
        }
      }
    }
  }
  const std::size_t row_words = taps * words;
  const std::size_t w_plane_words = form.pack(nullptr, c.out_channels, taps, words, nullptr);
  GuardedBuffer<std::uint32_t> weights(n_w * w_plane_words);
  for (std::size_t j = 0; j < n_w; ++j) {
    ASSERT_EQ(form.pack(w_rows.data() + j * c.out_channels * row_words, c.out_channels, taps, words,
                        weights.data() + j * w_plane_words),
              w_plane_words);
  }

  // level = offset + sum of in_coefs[i] * s_i, everything doubled to stay whole.
  std::int64_t twice_offset = 0;
  std::vector<std::int64_t> twice_in_coefs(n_in);
  if (c.activation.kind == Activation::kLinear) {
    twice_offset = 2 * c.activation.lo + c.activation.step * ((1 << n_in) - 1);
    for (std::size_t i = 0; i < n_in; ++i) twice_in_coefs[i] = -c.activation.step * (1 << i);
  } else {
    for (std::size_t i = 0; i < n_in; ++i) twice_in_coefs[i] = 1;
  }
  int shift = 1 + c.w_shift;
  std::vector<std::int64_t> products;
  for (const std::int64_t in_coef : twice_in_coefs) {
    for (const int w_coef : c.w_coefs) products.push_back(in_coef * w_coef);
  }
  // The base is a multiple of 2^shift modulo what the popcounts add, so a common factor of 2 can
  // go.
  const bool halve =
      twice_offset % 2 == 0 && std::ranges::all_of(products, [](auto v) { return v % 2 == 0; });
  if (halve) {
    twice_offset /= 2;
    for (std::int64_t& v : products) v /= 2;
    --shift;
  }
  GuardedBuffer<std::int32_t> coef(n_in * n_w);
  std::ranges::copy(products, coef.span().begin());

  // Classes: one per distinct set of taps inside the map, per axis.
  const auto classes = [](std::size_t n_out, std::size_t stride, std::size_t dilation,
                          std::size_t kernel, std::size_t pad, std::size_t size,
                          std::vector<std::vector<bool>>& sets) {
    std::vector<std::uint32_t> ids;
    for (std::size_t o = 0; o < n_out; ++o) {
      std::vector<bool> inside;
      for (std::size_t k = 0; k < kernel; ++k)
        inside.push_back(o * stride + k * dilation - pad < size);
      const auto found = std::ranges::find(sets, inside);
      ids.push_back(static_cast<std::uint32_t>(found - sets.begin()));
      if (found == sets.end()) sets.push_back(inside);
    }
    return ids;
  };
  std::vector<std::vector<bool>> row_sets, col_sets;
  auto rows = classes(c.out_h(), c.stride_h, c.dilation_h, c.kernel_h, c.pad_top, c.in_h, row_sets);
  const auto cols =
      classes(c.out_w(), c.stride_w, c.dilation_w, c.kernel_w, c.pad_left, c.in_w, col_sets);
  for (std::uint32_t& row : rows) row *= static_cast<std::uint32_t>(col_sets.size());
  GuardedBuffer<std::uint32_t> row_class(rows.size()), col_class(cols.size());
  std::ranges::copy(rows, row_class.span().begin());
  std::ranges::copy(cols, col_class.span().begin());

  GuardedBuffer<std::int32_t> base(row_sets.size() * col_sets.size() * n_blocks * kBconvBlock);
  std::ranges::fill(base.span(), 0);
  for (std::size_t r = 0; r < row_sets.size(); ++r) {
    for (std::size_t l = 0; l < col_sets.size(); ++l) {
      for (std::size_t oc = 0; oc < c.out_channels; ++oc) {
        std::int64_t sum = 0;
        for (std::size_t tap = 0; tap < taps; ++tap) {
          const bool inside = row_sets[r][tap / c.kernel_w] && col_sets[l][tap % c.kernel_w];
          for (std::size_t channel = 0; channel < c.in_channels; ++channel) {
            const std::int64_t level = naive.weights[(oc * taps + tap) * c.in_channels + channel];
            if (inside) {
              sum += twice_offset * level * (1 << c.w_shift);
            } else {
              sum += c.pad_level * level * (std::int64_t{1} << shift);
            }
          }
          if (inside) {
            for (const std::int64_t v : products)
              sum += v * static_cast<std::int64_t>(c.in_channels);
          }
        }
        base[((r * col_sets.size() + l) * n_blocks) * kBconvBlock + oc] =
            static_cast<std::int32_t>(sum);
      }
    }
  }

  BconvParams p{};
  p.in_h = c.in_h, p.in_w = c.in_w, p.out_w = c.out_w();
  p.kernel_h = c.kernel_h, p.kernel_w = c.kernel_w, p.stride_h = c.stride_h,
  p.stride_w = c.stride_w;
  p.dilation_h = c.dilation_h, p.dilation_w = c.dilation_w, p.pad_top = c.pad_top,
  p.pad_left = c.pad_left;
  p.words = words, p.pixel_words = pixel_words, p.n_blocks = n_blocks;
  p.n_in_planes = n_in, p.n_w_planes = n_w, p.in_plane_words = plane_words,
  p.w_plane_words = w_plane_words;
  p.weights = weights.data(), p.coef = coef.data(), p.base = base.data();
  p.row_class = row_class.data(), p.col_class = col_class.data(), p.shift = shift;

  const std::size_t block_end = c.block_end == 0 ? n_blocks : c.block_end;
  const std::size_t out_stride = (block_end - c.block_begin) * kBconvBlock;
  const std::vector<std::int64_t> expected = reference::integer_conv(naive);
  // Output rows [oy, oy + n_rows) are made at a time.
  const auto rows_from = [&](std::size_t oy) {
    return form.strips ? 1 + random() % (c.out_h() - oy) : std::size_t{1};
  };
  for (std::size_t oy = 0, n_rows; oy < c.out_h(); oy += n_rows) {
    n_rows = rows_from(oy);
    const std::size_t n_pixels = n_rows * c.out_w();
    GuardedBuffer<std::int32_t> out(n_pixels * out_stride);
    std::ranges::fill(out.span(), std::numeric_limits<std::int32_t>::min());
    form.sums(p, input.data() + c.words_around, oy, n_rows, c.block_begin, block_end, out.data(),
              out_stride);
    ASSERT_TRUE(out.intact());
    for (std::size_t i = 0; i < n_pixels; ++i) {
      const std::size_t last = std::min(c.out_channels, block_end * kBconvBlock);
      for (std::size_t oc = c.block_begin * kBconvBlock; oc < last; ++oc) {
        ASSERT_EQ(out[i * out_stride + oc - c.block_begin * kBconvBlock],
                  expected[(oy * c.out_w() + i) * c.out_channels + oc])
            << "pixel " << i << " from row " << oy << " on, channel " << oc;
      }
    }
  }

  // Signs: the limit of a popcount from a random threshold of the output.
  if (n_in * n_w != 1 || c.block_begin % 2 != 0 || (block_end % 2 != 0 && block_end != n_blocks))
    return;
  const std::size_t n_words = (n_blocks + 1) / 2,
                    n_classes = base.size() / (n_blocks * kBconvBlock);
  GuardedBuffer<std::int32_t> limits(n_classes * n_words * 32);
  GuardedBuffer<std::uint32_t> flip(n_words);
  std::ranges::fill(limits.span(), -1);
  std::ranges::fill(flip.span(), 0U);
  std::vector<std::int64_t> thresholds(c.out_channels);
  const std::int64_t factor = 2 * std::int64_t{coef[0]};
  for (std::size_t oc = 0; oc < c.out_channels; ++oc) {
    const std::size_t out_pixels = c.out_h() * c.out_w();
    thresholds[oc] = expected[random() % out_pixels * c.out_channels + oc] + random() % 3 - 1;
    const std::int64_t sum = thresholds[oc] * (std::int64_t{1} << shift);
    if (factor < 0) flip[oc / 32] |= 1U << (oc % 32);
    for (std::size_t k = 0; k < n_classes; ++k) {
      // base - factor * count >= sum, by trying: the largest count that passes, or the largest
      // that does not.
      const std::int64_t b = base[k * n_blocks * kBconvBlock + oc];
      std::int32_t limit = -1;
      while (limit < static_cast<std::int32_t>(taps * words * 32) &&
             (b - factor * (limit + 1) >= sum) == (factor > 0)) {
        ++limit;
      }
      limits[k * n_words * 32 + oc] = limit;
    }
  }
  p.base = limits.data();
  for (std::size_t oy = 0, n_rows; oy < c.out_h(); oy += n_rows) {
    n_rows = rows_from(oy);
    const std::size_t n_pixels = n_rows * c.out_w();
    const std::size_t first = c.block_begin / 2, end = (block_end + 1) / 2, stride = end - first;
    GuardedBuffer<std::uint32_t> bits(n_pixels * stride);
    std::ranges::fill(bits.span(), 0xA5A5A5A5U);
    form.bits(p, flip.data(), input.data() + c.words_around, oy, n_rows, c.block_begin, block_end,
              bits.data(), stride);
    ASSERT_TRUE(bits.intact());
    for (std::size_t i = 0; i < n_pixels; ++i) {
      for (std::size_t oc = first * 32; oc < end * 32; ++oc) {
        const bool bit = oc < c.out_channels &&
                         expected[(oy * c.out_w() + i) * c.out_channels + oc] >= thresholds[oc];
        ASSERT_EQ(bits[i * stride + oc / 32 - first] >> (oc % 32) & 1U, bit ? 1U : 0U)
            << "sign of pixel " << i << " from row " << oy << " on, channel " << oc;
      }
    }
  }
}

class Bconv : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->bconv_b1_i32 != nullptr) forms_.push_back({*GetParam().table, false});
    if (GetParam().table->bconv_strip_i32 != nullptr) forms_.push_back({*GetParam().table, true});
    if (forms_.empty()) GTEST_SKIP() << "served by the next backend down";
  }
  void run(const Case& c) {
    for (const Form& form : forms_) check(form, c, seed_++);
  }
  std::vector<Form> forms_;
  std::uint32_t seed_ = 1;
};
INSTANTIATE_TEST_SUITE_P(All, Bconv, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

TEST_P(Bconv, MatchesTheLoopNestForEveryChannelCount) {
  for (const std::size_t channels : {1U, 3U, 31U, 32U, 33U, 64U, 65U, 96U, 128U, 130U, 256U}) {
    for (const std::size_t kernel : {1U, 3U}) {
      Case c;
      c.in_channels = channels, c.out_channels = 17, c.kernel_h = c.kernel_w = kernel;
      c.in_h = 4, c.in_w = 7;
      c.pad_top = c.pad_left = c.pad_bottom = c.pad_right = kernel / 2;
      run(c);
    }
  }
}

TEST_P(Bconv, MatchesTheLoopNestForEveryNumberOfOutputChannels) {
  for (const std::size_t channels :
       {1U, 10U, 16U, 17U, 31U, 32U, 33U, 48U, 49U, 64U, 65U, 80U, 96U, 97U, 130U}) {
    Case c;
    c.in_channels = 40, c.out_channels = channels;
    run(c);
  }
}

// Every number of pixels a tile can have left over, and every border of the map.
TEST_P(Bconv, MatchesTheLoopNestForEveryWidth) {
  for (std::size_t width = 1; width <= 14; ++width) {
    Case c;
    c.in_h = 3, c.in_w = width, c.in_channels = 33, c.out_channels = 65;
    run(c);
  }
}

TEST_P(Bconv, MatchesTheLoopNestForEveryWindow) {
  struct Kernel {
    std::size_t h, w;
  };
  struct Pads {
    std::size_t top, left, bottom, right;
  };
  for (const Kernel kernel :
       {Kernel{1, 1}, Kernel{3, 3}, Kernel{5, 5}, Kernel{2, 3}, Kernel{7, 7}}) {
    for (const Kernel stride : {Kernel{1, 1}, Kernel{2, 2}, Kernel{2, 1}}) {
      for (const std::size_t dilation : {1U, 2U}) {
        // The last ones reach beyond the kernel: whole windows lie outside the map.
        for (const Pads pads :
             {Pads{0, 0, 0, 0}, Pads{1, 1, 1, 1}, Pads{0, 2, 1, 3}, Pads{9, 15, 8, 14}}) {
          for (const int pad_level : {0, 1, -1}) {
            Case c;
            c.in_h = 8, c.in_w = 9, c.in_channels = 33, c.out_channels = 18;
            c.kernel_h = kernel.h, c.kernel_w = kernel.w, c.stride_h = stride.h,
            c.stride_w = stride.w;
            c.dilation_h = c.dilation_w = dilation;
            c.pad_top = pads.top, c.pad_left = pads.left, c.pad_bottom = pads.bottom,
            c.pad_right = pads.right;
            c.pad_level = pad_level;
            if (c.in_h + pads.top + pads.bottom <= (kernel.h - 1) * dilation) continue;
            if (c.in_w + pads.left + pads.right <= (kernel.w - 1) * dilation) continue;
            run(c);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// Kernels may prepare about 2000 words of inputs at once: rows of more, windows of as many and of
// more.
TEST_P(Bconv, MatchesTheLoopNestForLongRowsAndLargeWindows) {
  struct Size {
    std::size_t in_w, words;
    int planes;
  };
  for (const Size size : {Size{400, 3, 1}, Size{9, 75, 2}, Size{4, 150, 1}, Size{3, 341, 1},
                          Size{3, 342, 1}, Size{2, 400, 2}}) {
    for (const std::size_t stride : {1U, 2U}) {
      for (const std::size_t dilation : {1U, 2U}) {
        if (stride == 2 && size.in_w < 9) continue;
        Case c;
        c.in_h = 2, c.in_w = size.in_w, c.in_channels = size.words * 32 - 5, c.out_channels = 18;
        c.stride_w = stride, c.dilation_w = dilation, c.pad_left = c.pad_right = dilation;
        if (size.planes == 2) c.activation = {Activation::kLinear, 0, 1, 2};
        run(c);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Windows much wider than the map: a single row must not need more scratch than several.
TEST_P(Bconv, MatchesTheLoopNestForWindowsWiderThanTheMap) {
  Case c;
  c.in_h = c.in_w = 9, c.in_channels = 70, c.dilation_h = c.dilation_w = 12;
  c.pad_top = c.pad_left = c.pad_bottom = c.pad_right = 12;
  for (int i = 0; i < 4; ++i) run(c);
}

TEST_P(Bconv, MatchesTheLoopNestForEveryEncoding) {
  const std::vector<Activation> activations = {
      {Activation::kLinear, 1, -2, 1}, {Activation::kLinear, -1, 2, 1},
      {Activation::kLinear, 0, 1, 1},  {Activation::kLinear, 0, 1, 2},
      {Activation::kLinear, -1, 1, 2}, {Activation::kLinear, -3, 2, 2},
      {Activation::kLinear, 0, 1, 3},  {Activation::kLinear, 7, -1, 3},
      {Activation::kLinear, 0, 1, 4},  {Activation::kLinear, -15, 2, 4},
      {Activation::kSignZero, 0, 0, 2}};
  struct Weights {
    std::vector<int> coefs;
    int shift;
  };
  const std::vector<Weights> weights = {
      {{1}, 0},     {{1, 2}, 0},    {{1, 1}, 1},         {{1, 2, 1}, 1},
      {{-3, 5}, 1}, {{1, 2, 4}, 0}, {{1, 1, 2, 4, 8}, 1}};
  for (const Activation& activation : activations) {
    for (const Weights& w : weights) {
      for (const int pad_level : {0, -1}) {
        Case c;
        c.in_channels = 45, c.out_channels = 33, c.activation = activation, c.pad_level = pad_level;
        c.w_coefs = w.coefs, c.w_shift = w.shift;
        run(c);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(Bconv, ReadsOnlyItsGroup) {
  for (const std::size_t words_around : {1U, 3U}) {
    for (const std::size_t kernel : {1U, 3U}) {
      for (const int planes : {1, 2}) {
        Case c;
        c.in_channels = 64, c.out_channels = 40, c.words_around = words_around;
        c.kernel_h = c.kernel_w = kernel, c.activation = {Activation::kLinear, 0, 1, planes};
        run(c);
      }
    }
  }
}

TEST_P(Bconv, WritesOnlyItsBlocks) {
  for (std::size_t begin = 0; begin < 6; ++begin) {
    for (std::size_t end = begin + 1; end <= 6; ++end) {
      Case c;
      c.in_channels = 64, c.out_channels = 90, c.block_begin = begin, c.block_end = end;
      run(c);
    }
  }
}

// Fully connected layers: one pixel, many words. The lengths surround those at which byte counts
// are widened.
TEST_P(Bconv, MatchesTheLoopNestForFullyConnectedLayers) {
  for (const std::size_t words :
       {6U, 7U, 8U, 13U, 14U, 15U, 30U, 31U, 32U, 61U, 62U, 63U, 64U, 93U, 256U}) {
    for (const std::size_t outputs : {10U, 65U}) {
      Case c;
      c.in_h = c.in_w = c.kernel_h = c.kernel_w = 1;
      c.pad_top = c.pad_left = c.pad_bottom = c.pad_right = 0;
      c.in_channels = words * 32 - 5, c.out_channels = outputs;
      run(c);
    }
  }
}

// All bits differ, so each counter gains as much as it can with every word, and the coefficient
// takes the result from one end of int32 to the other: as far as `base - 2 * coef * popcount` goes
// before it no longer fits. The lengths surround those at which bytes are widened (7, 31 words) and
// 16-bit counts (2047 words, 65504 bits).
TEST_P(Bconv, ReachesTheEndsOfTheAccumulator) {
  const std::size_t lengths[] = {1,  6,  7,    8,    14,   15,   30,   31,   32,
                                 62, 93, 1024, 2046, 2047, 2048, 2051, 4094, 4095};
  for (const std::size_t words : lengths) {
    for (const bool down : {true, false}) {
      for (const std::size_t width : {1U, 2U, 3U, 4U, 5U}) {
        SCOPED_TRACE(testing::Message()
                     << words << " words, width " << width << (down ? ", down" : ", up"));
        for (const Form& form : forms_) {
          const std::vector<std::uint32_t> zeros(words * 5 * kBconvBlock, 0U);
          GuardedBuffer<std::uint32_t> input(words * width), row_class(1), col_class(width);
          GuardedBuffer<std::uint32_t> weights(
              form.pack(nullptr, 5 * kBconvBlock, 1, words, nullptr));
          form.pack(zeros.data(), 5 * kBconvBlock, 1, words, weights.data());
          std::ranges::fill(input.span(), 0xFFFFFFFFU);
          std::ranges::fill(row_class.span(), 0U);
          std::ranges::fill(col_class.span(), 0U);
          const std::int64_t low = std::numeric_limits<std::int32_t>::min();
          const std::int64_t high = std::numeric_limits<std::int32_t>::max();
          const std::int64_t popcount = static_cast<std::int64_t>(words) * 32;
          const std::int64_t magnitude = (high - low) / (2 * popcount);
          GuardedBuffer<std::int32_t> coef(1), base(5 * kBconvBlock), out(width * 5 * kBconvBlock);
          coef[0] = static_cast<std::int32_t>(down ? magnitude : -magnitude);
          std::ranges::fill(base.span(), static_cast<std::int32_t>(down ? high : low));
          BconvParams p{};
          p.in_h = 1, p.in_w = width, p.out_w = width;
          p.kernel_h = p.kernel_w = p.stride_h = p.stride_w = p.dilation_h = p.dilation_w = 1;
          p.words = p.pixel_words = words, p.n_blocks = 5, p.n_in_planes = p.n_w_planes = 1;
          p.in_plane_words = input.size(), p.w_plane_words = weights.size();
          p.weights = weights.data(), p.coef = coef.data(), p.base = base.data();
          p.row_class = row_class.data(), p.col_class = col_class.data();
          form.sums(p, input.data(), 0, 1, 0, 5, out.data(), 5 * kBconvBlock);
          const std::int64_t expected = (down ? high : low) - 2 * std::int64_t{coef[0]} * popcount;
          ASSERT_GE(expected, low);
          ASSERT_LE(expected, high);
          for (const std::int32_t value : out.span()) ASSERT_EQ(value, expected);
          for (const std::int64_t below : {0, 1}) {
            GuardedBuffer<std::int32_t> limits(6 * kBconvBlock);
            GuardedBuffer<std::uint32_t> flip(3), bits(width * 3);
            std::ranges::fill(limits.span(), static_cast<std::int32_t>(popcount - below));
            std::ranges::fill(flip.span(), 0U);
            std::fill_n(limits.data() + 5 * kBconvBlock, kBconvBlock, -1);
            p.base = limits.data();
            form.bits(p, flip.data(), input.data(), 0, 1, 0, 5, bits.data(), 3);
            for (std::size_t i = 0; i < bits.size(); ++i)
              ASSERT_EQ(bits[i], below == 1 ? 0U : i % 3 == 2 ? 0xFFFFU : 0xFFFFFFFFU);
          }
        }
      }
    }
  }
}

// Any bit of any word, alone, reaches its own output channel and no other.
TEST_P(Bconv, CountsEveryBitOnce) {
  constexpr std::size_t kBlocks = 3, kChannels = kBlocks * kBconvBlock;
  for (const std::size_t words : {1U, 10U}) {
    for (const Form& form : forms_) {
      std::vector<std::uint32_t> rows(words * kChannels, 0U);
      GuardedBuffer<std::uint32_t> weights(form.pack(nullptr, kChannels, 1, words, nullptr));
      GuardedBuffer<std::uint32_t> input(words), row_class(1), col_class(1);
      GuardedBuffer<std::int32_t> coef(1), base(kChannels), out(kChannels);
      std::ranges::fill(input.span(), 0U);
      std::ranges::fill(base.span(), 0);
      coef[0] = 1, row_class[0] = 0, col_class[0] = 0;
      BconvParams p{};
      p.in_h = p.in_w = p.out_w = 1;
      p.kernel_h = p.kernel_w = p.stride_h = p.stride_w = p.dilation_h = p.dilation_w = 1;
      p.words = p.pixel_words = words, p.n_blocks = kBlocks, p.n_in_planes = p.n_w_planes = 1;
      p.in_plane_words = input.size(), p.w_plane_words = weights.size();
      p.weights = weights.data(), p.coef = coef.data(), p.base = base.data();
      p.row_class = row_class.data(), p.col_class = col_class.data();
      for (std::size_t bit = 0; bit < rows.size() * 32; ++bit) {
        rows[bit / 32] = 1U << (bit % 32);
        form.pack(rows.data(), kChannels, 1, words, weights.data());
        rows[bit / 32] = 0U;
        form.sums(p, input.data(), 0, 1, 0, kBlocks, out.data(), kChannels);
        for (std::size_t oc = 0; oc < kChannels; ++oc) {
          ASSERT_EQ(out[oc], oc == bit / 32 / words ? -2 : 0)
              << "bit " << bit << ", channel " << oc;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tac::kernels
