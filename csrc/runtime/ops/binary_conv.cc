// Integer convolutions and fully connected layers on packed codes.
//
// The kernel knows signs only: with an input level (a_off + sum_i ca_i * s_i) / 2^a_shift and a
// weight level (sum_j cw_j * t_j) / 2^w_shift, s and t being +-1,
//
//   acc * 2^(a_shift + w_shift) = sum_ij ca_i * cw_j * (K_valid - 2 * popcount_ij)   planes against
//   planes
//                               + a_off * W_valid                                    offset of the
//                               encoding
//                               + pad_level * 2^a_shift * W_outside                  taps outside
//                               the map
//
// where K_valid counts the channels of the taps inside the map and W sums sum_j cw_j * t_j over
// taps and channels. All but the popcounts is known at load: it is the kernel's `base`, one row per
// class of pixels that see the same taps.
#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <utility>

#include "base/error.h"
#include "kernels/bconv/bconv.h"
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

using kernels::BconvParams;
using kernels::kBconvBlock;

// Weight blocks that one call works on: few enough for their weights to stay in the L1 or L2 cache
// while the rows of the map pass by, small where there would be too little work for all threads.
// Even, so that a chunk's channels fill whole words of output.
struct ChunkBlocks {
  std::size_t most, small;
};
ChunkBlocks chunk_blocks(const PrepareContext& ctx) {
  if (ctx.served_by("avx512", KernelId::bconv_b1_i32)) return {4, 2};
  // Kernels that look up prepare a row of inputs once a call, and a register has 4 or 2 blocks.
  return {8, ctx.served_by("avx512bw", KernelId::bconv_b1_i32) ? 4U : 2U};
}

// Samples that a fully connected layer takes at a time, as pixels of one row.
constexpr std::size_t kBatchTile = 64;

// Pixels of a row that several rows of a map are joined to: where sums are stored, no more than the
// L1 cache holds of a chunk.
constexpr std::size_t kJoinedPixels = 64;
constexpr std::size_t kJoinedSignPixels = 512;

// Strips of rows: what their unpacked inputs and their sums may take, within the L2 cache. They pay
// from so many pixels on, which fill tiles, and so many products of 64 channels an output: 9
// are 1.1 times as fast as counting bits, 18 and more 1.2 to 1.6 times, 4 slower.
constexpr std::size_t kStripBytes = 256 * 1024;
constexpr std::size_t kStripPixels = 40;
constexpr std::size_t kStripProducts = 8;

// How many rows of a map to join where windows are single pixels: calls and rows that end in the
// middle of a tile cost time. Leaves work for all threads.
std::size_t rows_to_join(const Map& map, std::size_t max_pixels, std::size_t n_chunks,
                         std::size_t n_threads) noexcept {
  constexpr std::size_t kTile = 4;  // pixels; with VPOPCNTDQ 6
  const auto tiles = [&](std::size_t n) { return ceil_div(n * map.w, kTile) + 1; };  // 1: the call
  std::size_t best = 1;
  for (std::size_t n = 2; n <= map.h && n * map.w <= max_pixels; ++n) {
    if (map.h % n != 0 || map.h / n * n_chunks < 2 * n_threads) continue;
    if (tiles(n) * best < tiles(best) * n) best = n;
  }
  return best;
}

// Copies n_bits bits from bit `first` of src to bit 0 of dst; the rest of the last word is set to
// 0. Reads no word without bits.
void extract_bits(const std::uint32_t* src, std::size_t first, std::size_t n_bits,
                  std::uint32_t* dst) noexcept {
  src += first / kWordBits;
  const std::size_t shift = first % kWordBits;
  for (; n_bits != 0; ++src, ++dst) {
    const std::size_t n = std::min(n_bits, kWordBits);
    std::uint32_t word = src[0] >> shift;
    if (shift + n > kWordBits) word |= src[1] << (kWordBits - shift);
    if (n < kWordBits) word &= (1U << n) - 1;
    *dst = word;
    n_bits -= n;
  }
}

// level = (offset + sum_i coefs[i] * s_i) / 2^shift
struct SignPlanes {
  std::vector<std::int64_t> coefs;
  std::int64_t offset = 0;
  int shift = 0;
};

SignPlanes sign_planes(const Encoding& encoding) {
  if (encoding.kind == Encoding::Kind::kSignZero) return {{1, 1}, 0, 1};
  // code = sum_i 2^i * (1 - s_i) / 2, hence 2 * level = 2 * lo + step * (2^planes - 1) - step *
  // sum_i 2^i * s_i.
  SignPlanes planes;
  const std::int64_t n_codes = std::int64_t{1} << encoding.n_planes();
  for (std::uint32_t i = 0; i < encoding.n_planes(); ++i) {
    planes.coefs.push_back(-(std::int64_t{encoding.step} << i));
  }
  planes.offset = 2 * std::int64_t{encoding.lo} + encoding.step * (n_codes - 1);
  planes.shift = 1;
  // {-1, +1} and the like need no halves.
  if (encoding.step % 2 == 0 && planes.offset % 2 == 0) {
    for (std::int64_t& c : planes.coefs) c /= 2;
    planes.offset /= 2;
    planes.shift = 0;
  }
  return planes;
}

// Taps of one axis that fall inside the map, for each output position. They are consecutive; none
// is {0, 0}.
using TapRange = std::pair<std::size_t, std::size_t>;
struct TapClasses {
  std::vector<TapRange> ranges;         // of each class
  std::vector<std::uint32_t> class_of;  // of each output position
};

TapClasses classify(std::size_t out, std::size_t in, std::size_t kernel, std::size_t stride,
                    std::size_t dilation, std::size_t pad) {
  TapClasses classes;
  std::map<TapRange, std::uint32_t> known;
  for (std::size_t o = 0; o < out; ++o) {
    // Tap k lies at begin + k * dilation of the padded map. In closed form: a loop over the taps of
    // a long kernel would make a small file take hours to load.
    const std::size_t begin = o * stride;
    const std::size_t first = begin >= pad ? 0 : ceil_div(pad - begin, dilation);
    const std::size_t end =
        begin >= pad + in ? 0 : std::min(kernel, ceil_div(pad + in - begin, dilation));
    const TapRange range = first < end ? TapRange{first, end} : TapRange{0, 0};
    const auto [it, added] = known.try_emplace(range, static_cast<std::uint32_t>(known.size()));
    if (added) classes.ranges.push_back(range);
    classes.class_of.push_back(it->second);
  }
  return classes;
}

class BinaryConvStep final : public Step {
 public:
  BinaryConvStep(const BinaryConv& op, const PrepareContext& ctx)
      : input_(op.input),
        output_(op.output),
        in_(map_of(ctx.tensor(op.input))),
        out_(map_of(ctx.tensor(op.output))),
        window_(window_sizes(op.window)),
        groups_(static_cast<std::size_t>(op.groups)),
        group_in_(in_.c / groups_),
        group_out_(out_.c / groups_),
        words_(ceil_div(group_in_, kWordBits)),
        n_blocks_(ceil_div(group_out_, kBconvBlock)),
        in_layout_(bits_layout(ctx.tensor(op.input))),
        bits_out_(ctx.tensor(op.output).dtype == DType::kBits),
        conv_(ctx.kernels().bconv_b1_i32),
        conv_bits_(ctx.kernels().bconv_b1_bits),
        strip_(ctx.kernels().bconv_strip_i32),
        strip_bits_(ctx.kernels().bconv_strip_bits),
        quantize_(ctx.kernels().quantize_i32_bits) {
    const Encoding& encoding = ctx.tensor(op.input).encoding;
    regroup_ = groups_ > 1 && group_in_ % kWordBits != 0;
    const bool whole_map = out_.h == 1 && out_.w == 1 && window_.kernel_h == in_.h &&
                           window_.kernel_w == in_.w && (window_.dilation_h == 1 || in_.h == 1) &&
                           (window_.dilation_w == 1 || in_.w == 1) && window_.pad_top == 0 &&
                           window_.pad_left == 0;
    samples_as_pixels_ = whole_map && groups_ == 1;
    const ChunkBlocks blocks = chunk_blocks(ctx);
    strips_ = ctx.served_by("amx", KernelId::bconv_strip_i32) && strips_pay(ctx);
    if (!strips_ && window_.kernel_h == 1 && window_.kernel_w == 1 && window_.stride_h == 1 &&
        window_.stride_w == 1 && in_.h == out_.h && in_.w == out_.w) {
      // Whether make_signs() will find that no sum is stored.
      const bool signs = bits_out_ && groups_ == 1 && op.w_coefs.size() == 1 &&
                         ctx.tensor(op.output).encoding.n_levels == 2 &&
                         (in_layout_.planes == 1 || encoding.kind == Encoding::Kind::kSignZero);
      const std::size_t n_rows =
          rows_to_join(in_, signs ? kJoinedSignPixels : kJoinedPixels,
                       groups_ > 1 ? 1 : ceil_div(n_blocks_, blocks.most), ctx.n_threads);
      in_.h = out_.h /= n_rows;
      in_.w = out_.w *= n_rows;
    }

    if (strips_) {
      pack_weights(op, [&](const std::uint32_t* rows, std::uint32_t* packed) {
        return ctx.kernels().bconv_strip_pack(rows, group_out_, window_.kernel_h * window_.kernel_w,
                                              words_, packed);
      });
    } else {
      pack_weights(op, [&](const std::uint32_t* rows, std::uint32_t* packed) {
        return ctx.kernels().bconv_b1_pack(rows, group_out_,
                                           window_.kernel_h * window_.kernel_w * words_, packed);
      });
    }
    rows_ = classify(out_.h, in_.h, window_.kernel_h, window_.stride_h, window_.dilation_h,
                     window_.pad_top);
    cols_ = classify(out_.w, in_.w, window_.kernel_w, window_.stride_w, window_.dilation_w,
                     window_.pad_left);
    row_class_ = AlignedBuffer<std::uint32_t>(out_.h);
    for (std::size_t oy = 0; oy < out_.h; ++oy) {
      row_class_[oy] = rows_.class_of[oy] * static_cast<std::uint32_t>(cols_.ranges.size());
    }
    col_class_ = AlignedBuffer<std::uint32_t>(samples_as_pixels_ ? kBatchTile : out_.w);
    if (!samples_as_pixels_) std::ranges::copy(cols_.class_of, col_class_.data());

    general_ = make_params(op, sign_planes(encoding));
    if (encoding.kind == Encoding::Kind::kSignZero) {
      has_zero_free_ = true;
      zero_free_ = make_params(op, {{1}, 0, 0});
    }
    if (bits_out_) {
      tables_ = ThresholdTables<std::int32_t>(op.thresholds, op.descending, out_.c,
                                              ctx.tensor(op.output).encoding);
      make_signs(general_);
      if (has_zero_free_) make_signs(zero_free_);
    } else {
      scales_ = expand(op.scale, out_.c);
      biases_ = expand(op.bias, out_.c);
    }

    chunk_blocks_ = groups_ > 1 ? n_blocks_ : std::min(blocks.most, n_blocks_);
    if (groups_ == 1 && ceil_div(n_blocks_, chunk_blocks_) * out_.h < 2 * ctx.n_threads) {
      chunk_blocks_ = std::min(blocks.small, n_blocks_);
    }
    if (strips_) plan_strips(ctx);
    n_chunks_ = ceil_div(n_blocks_, chunk_blocks_);
    row_stride_ = groups_ > 1 ? round_up(out_.c, kBconvBlock) : chunk_blocks_ * kBconvBlock;
    spills_ = groups_ > 1 && group_out_ % kBconvBlock != 0;
    const std::size_t row_pixels = samples_as_pixels_ ? kBatchTile : strip_rows_ * out_.w;
    row_values_ = strips_ && stores_no_sums() ? 0 : row_pixels * row_stride_;
    thread_scratch_bytes =
        (row_values_ + (spills_ ? row_pixels * n_blocks_ * kBconvBlock : 0)) * sizeof(std::int32_t);
    if (strips_) thread_scratch_bytes += ctx.kernels().bconv_strip_scratch(shape(), strip_rows_);
    regrouped_words_ = regroup_ ? in_layout_.planes * in_.h * in_.w * groups_ * words_ : 0;
    sample_scratch_bytes = regrouped_words_ * sizeof(std::uint32_t) + (has_zero_free_ ? 1 : 0);

    if (!bits_out_) lead(Leads::kFromRegisters, op.output, ctx);
    const bool signs = general_.signs || zero_free_.signs;
    kernel =
        ctx.kernel_label(strips_ ? (signs ? KernelId::bconv_strip_bits : KernelId::bconv_strip_i32)
                                 : (signs ? KernelId::bconv_b1_bits : KernelId::bconv_b1_i32));
    macs = out_.h * out_.w * out_.c * window_.kernel_h * window_.kernel_w * group_in_;
    param_bytes = weights_.bytes() + general_.base.bytes() + zero_free_.base.bytes() +
                  general_.limits.bytes() + zero_free_.limits.bytes() + row_class_.bytes() +
                  col_class_.bytes() + tables_.bytes() + scales_.bytes() + biases_.bytes();
  }

  void run(const RunContext& ctx) const noexcept override {
    if (has_zero_free_) mark_zero_free_samples(ctx);
    if (regroup_) regroup(ctx);
    if (samples_as_pixels_) {
      run_samples_as_pixels(ctx);
    } else if (strips_) {
      run_strips(ctx);
    } else {
      run_rows(ctx);
    }
  }

 private:
  // What the kernel needs for one set of input planes.
  struct Params {
    std::vector<std::int32_t> coef;
    AlignedBuffer<std::int32_t> base;  // [group][class][n_blocks * 16]
    std::vector<BconvParams> groups;
    // Where the kernel itself compares, for one group.
    bool signs = false;
    AlignedBuffer<std::int32_t> limits;  // [class][channels, padded to whole words]
    AlignedBuffer<std::uint32_t> flip;
    BconvParams sign_params;
  };

  // File rows (kernel_h, kernel_w, channel) without gaps -> [group][plane], each in the kernel's
  // layout.
  template <class Pack>
  void pack_weights(const BinaryConv& op, const Pack& pack) {
    const std::size_t taps = window_.kernel_h * window_.kernel_w, n_planes = op.w_coefs.size();
    const std::size_t file_words = ceil_div(taps * group_in_, kWordBits);
    const std::size_t row_words = taps * words_;
    plane_words_ = pack(nullptr, nullptr);
    weights_ = AlignedBuffer<std::uint32_t>(groups_ * n_planes * plane_words_);
    tap_sums_.assign(out_.c * taps, 0);
    std::vector<std::uint32_t> rows(group_out_ * row_words);
    for (std::size_t group = 0; group < groups_; ++group) {
      for (std::size_t plane = 0; plane < n_planes; ++plane) {
        for (std::size_t i = 0; i < group_out_; ++i) {
          const std::size_t o = group * group_out_ + i;
          const std::uint32_t* file_row = op.weights.data() + (plane * out_.c + o) * file_words;
          for (std::size_t tap = 0; tap < taps; ++tap) {
            std::uint32_t* bits = rows.data() + i * row_words + tap * words_;
            extract_bits(file_row, tap * group_in_, group_in_, bits);
            std::int64_t ones = 0;
            for (std::size_t w = 0; w < words_; ++w) ones += std::popcount(bits[w]);
            tap_sums_[o * taps + tap] +=
                op.w_coefs[plane] * (static_cast<std::int64_t>(group_in_) - 2 * ones);
          }
        }
        pack(rows.data(), weights_.data() + (group * n_planes + plane) * plane_words_);
      }
    }
  }

  bool strips_pay(const PrepareContext& ctx) const noexcept {
    if (groups_ != 1 || samples_as_pixels_ || out_.h * out_.w < kStripPixels) return false;
    // More rows or columns cannot fit; with so few, and so few words, no product overflows.
    constexpr std::size_t kMost = kStripBytes / 64;
    const std::size_t rows = (window_.kernel_h - 1) * window_.dilation_h + 1;
    const std::size_t cols =
        (out_.w - 1) * window_.stride_w + (window_.kernel_w - 1) * window_.dilation_w + 1;
    if (rows > kMost || cols > kMost || words_ > kMost) return false;
    return ceil_div(words_, 2) * window_.kernel_h * window_.kernel_w >= kStripProducts &&
           ctx.kernels().bconv_strip_scratch(shape(), 1) <= kStripBytes;
  }

  BconvParams shape() const noexcept {
    BconvParams p{};
    p.in_h = in_.h;
    p.in_w = in_.w;
    p.out_w = out_.w;
    p.kernel_h = window_.kernel_h;
    p.kernel_w = window_.kernel_w;
    p.stride_h = window_.stride_h;
    p.stride_w = window_.stride_w;
    p.dilation_h = window_.dilation_h;
    p.dilation_w = window_.dilation_w;
    p.pad_top = window_.pad_top;
    p.pad_left = window_.pad_left;
    p.words = words_;
    return p;
  }

  Params make_params(const BinaryConv& op, const SignPlanes& planes) {
    Params params;
    std::int64_t coef_sum = 0, coef_magnitude = 0;
    for (const std::int64_t a : planes.coefs) {
      for (const std::int64_t w : op.w_coefs) {
        params.coef.push_back(static_cast<std::int32_t>(a * w));
        coef_sum += a * w;
        coef_magnitude += std::abs(a * w);
      }
    }
    const std::size_t kh = window_.kernel_h, kw = window_.kernel_w;
    const std::size_t n_classes = rows_.ranges.size() * cols_.ranges.size();
    const std::size_t group_base = n_classes * n_blocks_ * kBconvBlock;
    params.base = AlignedBuffer<std::int32_t>(groups_ * group_base);
    // prefix[y][x]: sum of the tap sums above and left of (y, x)
    std::vector<std::int64_t> prefix((kh + 1) * (kw + 1), 0);
    for (std::size_t o = 0; o < out_.c; ++o) {
      const auto at = [&](std::size_t y, std::size_t x) -> std::int64_t& {
        return prefix[y * (kw + 1) + x];
      };
      for (std::size_t y = 0; y < kh; ++y) {
        for (std::size_t x = 0; x < kw; ++x) {
          at(y + 1, x + 1) =
              tap_sums_[(o * kh + y) * kw + x] + at(y, x + 1) + at(y + 1, x) - at(y, x);
        }
      }
      std::int32_t* base = params.base.data() + o / group_out_ * group_base + o % group_out_;
      for (const auto& [y0, y1] : rows_.ranges) {
        for (const auto& [x0, x1] : cols_.ranges) {
          const std::int64_t k_valid = static_cast<std::int64_t>((y1 - y0) * (x1 - x0) * group_in_);
          const std::int64_t w_valid = at(y1, x1) - at(y0, x1) - at(y1, x0) + at(y0, x0);
          const std::int64_t value =
              coef_sum * k_valid + planes.offset * w_valid +
              op.pad_level * (std::int64_t{1} << planes.shift) * (at(kh, kw) - w_valid);
          if (std::abs(value) + 2 * coef_magnitude * k_valid >
              std::numeric_limits<std::int32_t>::max()) {
            throw Error(ErrorCode::kInvalidModel,
                        "the sums of a binary convolution leave the range of 32 bits");
          }
          *base = static_cast<std::int32_t>(value);
          base += n_blocks_ * kBconvBlock;
        }
      }
    }
    const std::size_t pixel_words = regroup_ ? groups_ * words_ : in_layout_.words;
    for (std::size_t g = 0; g < groups_; ++g) {
      BconvParams p = shape();
      p.pixel_words = pixel_words;
      p.in_plane_words = in_.h * in_.w * pixel_words;
      p.n_blocks = n_blocks_;
      p.n_in_planes = planes.coefs.size();
      p.n_w_planes = op.w_coefs.size();
      p.w_plane_words = plane_words_;
      p.weights = weights_.data() + g * op.w_coefs.size() * plane_words_;
      p.coef = params.coef.data();
      p.base = params.base.data() + g * group_base;
      p.row_class = row_class_.data();
      p.col_class = col_class_.data();
      p.shift = planes.shift + static_cast<int>(op.w_shift);
      if (samples_as_pixels_) {
        // A sample is a pixel of one row: a 1x1 window over all its words.
        p.in_h = p.kernel_h = p.kernel_w = p.stride_h = p.stride_w = p.dilation_h = p.dilation_w =
            1;
        p.words = p.in_plane_words;
        p.pixel_words = in_layout_.sample_words();
      }
      params.groups.push_back(p);
    }
    return params;
  }

  bool stores_no_sums() const noexcept {
    return general_.signs && (!has_zero_free_ || zero_free_.signs);
  }

  // How many rows a strip has, and how many blocks of channels at a time: as many as the cache
  // holds, since each strip and chunk unpacks its inputs, and few enough to leave work for all
  // threads.
  void plan_strips(const PrepareContext& ctx) {
    const auto fits = [&](std::size_t n_rows) {
      return ctx.kernels().bconv_strip_scratch(shape(), n_rows) <= kStripBytes &&
             (stores_no_sums() ||
              n_rows * out_.w * n_blocks_ * kBconvBlock * sizeof(std::int32_t) <= kStripBytes);
    };
    while (strip_rows_ < out_.h && fits(strip_rows_ + 1)) ++strip_rows_;
    std::size_t n_strips = ceil_div(out_.h, strip_rows_);
    chunk_blocks_ = n_blocks_;
    while (ctx.n_threads > 1 && n_strips * ceil_div(n_blocks_, chunk_blocks_) < 2 * ctx.n_threads) {
      if (out_.h / n_strips * out_.w >= 2 * kJoinedPixels) {
        n_strips *= 2;
      } else if (chunk_blocks_ >= 4) {
        chunk_blocks_ = round_up(ceil_div(chunk_blocks_, 2), 2);
      } else {
        break;
      }
    }
    strip_rows_ = ceil_div(out_.h, n_strips);
  }

  // One threshold and one plane out of one pair of planes in: sum >= threshold is a limit of the
  // popcount, and no sum is ever stored.
  void make_signs(Params& params) {
    if (groups_ != 1 || params.coef.size() != 1 || params.coef[0] == 0) return;
    if (tables_.n_thresholds != 1 || tables_.n_planes != 1) return;
    if (tables_.code_of_index[0] == tables_.code_of_index[1]) return;
    const std::size_t words = ceil_div(out_.c, kWordBits), row = words * kWordBits;
    const std::size_t n_classes = rows_.ranges.size() * cols_.ranges.size();
    const std::int64_t factor = 2 * std::int64_t{params.coef[0]};
    params.signs = true;
    params.sign_params = params.groups[0];
    params.limits = AlignedBuffer<std::int32_t>(n_classes * row);
    std::fill_n(params.limits.data(), params.limits.size(), -1);
    params.flip = AlignedBuffer<std::uint32_t>(words);
    params.sign_params.base = params.limits.data();
    for (std::size_t o = 0; o < out_.c; ++o) {
      // (base - factor * count) >> shift >= threshold
      const std::int64_t least = std::int64_t{tables_.thresholds[o]} << params.sign_params.shift;
      const std::uint32_t descending = tables_.flip[o / kWordBits] >> (o % kWordBits) & 1U;
      const std::uint32_t inverted =
          descending ^ (factor < 0 ? 1U : 0U) ^ (tables_.code_of_index[0] != 0 ? 1U : 0U);
      params.flip[o / kWordBits] |= inverted << (o % kWordBits);
      for (std::size_t k = 0; k < n_classes; ++k) {
        const std::int64_t room = params.base[k * n_blocks_ * kBconvBlock + o] - least;
        // The largest count that passes; for a negative factor, the largest that does not.
        const std::int64_t limit = factor > 0  ? (room >= 0 ? room / factor : -1)
                                   : room >= 0 ? -1
                                               : (-room - 1) / -factor;
        params.limits[k * row + o] = static_cast<std::int32_t>(
            std::min<std::int64_t>(limit, std::numeric_limits<std::int32_t>::max()));
      }
    }
    params.base = {};  // the limits stand for it
  }

  std::uint8_t* zero_free_flags(const RunContext& ctx) const noexcept {
    return reinterpret_cast<std::uint8_t*>(ctx.sample_scratch) +
           ctx.n_samples * regrouped_words_ * sizeof(std::uint32_t);
  }

  // kSignZero: no zero in a sample makes its planes equal, and level = s_0.
  void mark_zero_free_samples(const RunContext& ctx) const noexcept {
    const auto* input = ctx.read<std::uint32_t>(input_);
    const std::size_t plane = in_layout_.plane_words();
    std::uint8_t* flags = zero_free_flags(ctx);
    ctx.pool->parallel_for(ctx.n_samples, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) {
        const std::uint32_t* sample = input + i * in_layout_.sample_words();
        flags[i] = std::memcmp(sample, sample + plane, plane * sizeof(std::uint32_t)) == 0 ? 1 : 0;
      }
    });
  }

  // Gives every group whole words of its own: [plane][H][W][group][words].
  void regroup(const RunContext& ctx) const noexcept {
    const auto* input = ctx.read<std::uint32_t>(input_);
    auto* scratch = reinterpret_cast<std::uint32_t*>(ctx.sample_scratch);
    const std::size_t pixels = in_layout_.planes * in_.h * in_.w;
    ctx.pool->parallel_for(ctx.n_samples * pixels,
                           [&](std::size_t begin, std::size_t end, std::size_t) {
                             for (std::size_t i = begin; i < end; ++i) {
                               for (std::size_t g = 0; g < groups_; ++g) {
                                 extract_bits(input + i * in_layout_.words, g * group_in_,
                                              group_in_, scratch + (i * groups_ + g) * words_);
                               }
                             }
                           });
  }

  // Channels [first, first + channels) of n_rows pixels, from accumulators to the output at pixel
  // `out_row` of `sample`.
  void finish(const RunContext& ctx, const std::int32_t* acc, std::size_t n_rows,
              std::size_t sample, std::size_t out_row, std::size_t first,
              std::size_t channels) const noexcept {
    if (bits_out_) {
      const std::size_t words = ceil_div(out_.c, kWordBits), plane = out_.h * out_.w * words;
      kernels::QuantizeParams<std::int32_t> p{channels,
                                              tables_.n_thresholds,
                                              tables_.n_planes,
                                              tables_.stride,
                                              tables_.thresholds.data() + first,
                                              tables_.flip.data() + first / kWordBits,
                                              tables_.code_of_index.data()};
      std::uint32_t* out = ctx.write<std::uint32_t>(output_) + sample * tables_.n_planes * plane +
                           out_row * words + first / kWordBits;
      quantize_(p, acc, n_rows, row_stride_, out,
                samples_as_pixels_ ? tables_.n_planes * words : words, plane);
    } else {
      kernels::ChainOp scale{};
      scale.kind = kernels::ChainKind::kAffine;
      scale.a = scales_.data() + first;
      scale.b = biases_.data() + first;
      if (!samples_as_pixels_) {
        finish_tile(ctx, {sample, out_row, n_rows, first, channels}, {acc, nullptr, row_stride_},
                    scale);
        return;
      }
      for (std::size_t i = 0; i < n_rows; ++i) {
        finish_tile(ctx, {sample + i, 0, 1, first, channels},
                    {acc + i * row_stride_, nullptr, row_stride_}, scale);
      }
    }
  }

  // Where the signs of a block go at pixel `out_row` of `sample`.
  std::uint32_t* sign_words(const RunContext& ctx, std::size_t sample, std::size_t out_row,
                            std::size_t block) const noexcept {
    const std::size_t words = ceil_div(out_.c, kWordBits);
    return ctx.write<std::uint32_t>(output_) + (sample * out_.h * out_.w + out_row) * words +
           block * kBconvBlock / kWordBits;
  }

  void run_samples_as_pixels(const RunContext& ctx) const noexcept {
    const auto* input = ctx.read<std::uint32_t>(input_);
    const std::uint8_t* flags = has_zero_free_ ? zero_free_flags(ctx) : nullptr;
    const std::size_t tiles = ceil_div(ctx.n_samples, kBatchTile);
    ctx.pool->parallel_for(tiles * n_chunks_, [&](std::size_t begin, std::size_t end,
                                                  std::size_t thread) {
      auto* acc = ctx.scratch_of_thread<std::int32_t>(thread);
      for (std::size_t i = begin; i < end; ++i) {
        const std::size_t sample = i / n_chunks_ * kBatchTile,
                          block = i % n_chunks_ * chunk_blocks_;
        const std::size_t n_samples = std::min(kBatchTile, ctx.n_samples - sample);
        const std::size_t block_end = std::min(block + chunk_blocks_, n_blocks_);
        const bool zero_free =
            flags != nullptr &&
            std::all_of(flags + sample, flags + sample + n_samples, [](auto f) { return f != 0; });
        const Params& params = zero_free ? zero_free_ : general_;
        BconvParams p = params.signs ? params.sign_params : params.groups[0];
        p.in_w = p.out_w = n_samples;
        if (params.signs) {
          conv_bits_(p, params.flip.data(), input + sample * in_layout_.sample_words(), 0, block,
                     block_end, sign_words(ctx, sample, 0, block), ceil_div(out_.c, kWordBits));
          continue;
        }
        conv_(p, input + sample * in_layout_.sample_words(), 0, block, block_end, acc, row_stride_);
        finish(ctx, acc, n_samples, sample, 0, block * kBconvBlock,
               std::min(out_.c, block_end * kBconvBlock) - block * kBconvBlock);
      }
    });
  }

  void run_rows(const RunContext& ctx) const noexcept {
    const auto* input = regroup_ ? reinterpret_cast<const std::uint32_t*>(ctx.sample_scratch)
                                 : ctx.read<std::uint32_t>(input_);
    const std::size_t sample_words = regroup_ ? regrouped_words_ : in_layout_.sample_words();
    const std::uint8_t* flags = has_zero_free_ ? zero_free_flags(ctx) : nullptr;
    const std::size_t items =
        ctx.n_samples * n_chunks_ * out_.h;  // rows innermost: a chunk's weights stay in the cache
    ctx.pool->parallel_for(items, [&](std::size_t begin, std::size_t end, std::size_t thread) {
      auto* acc = ctx.scratch_of_thread<std::int32_t>(thread);
      for (std::size_t i = begin; i < end; ++i) {
        const std::size_t sample = i / (n_chunks_ * out_.h), oy = i % out_.h;
        const std::size_t block = i / out_.h % n_chunks_ * chunk_blocks_;
        const std::size_t block_end = std::min(block + chunk_blocks_, n_blocks_);
        const Params& params = flags != nullptr && flags[sample] != 0 ? zero_free_ : general_;
        const std::uint32_t* in = input + sample * sample_words;
        if (params.signs) {
          conv_bits_(params.sign_params, params.flip.data(), in, oy, block, block_end,
                     sign_words(ctx, sample, oy * out_.w, block), ceil_div(out_.c, kWordBits));
        } else if (groups_ == 1) {
          conv_(params.groups[0], in, oy, block, block_end, acc, row_stride_);
          finish(ctx, acc, out_.w, sample, oy * out_.w, block * kBconvBlock,
                 std::min(out_.c, block_end * kBconvBlock) - block * kBconvBlock);
        } else {
          for (std::size_t g = 0; g < groups_; ++g)
            run_group(params.groups[g], in + g * words_, oy, g, acc);
          finish(ctx, acc, out_.w, sample, oy * out_.w, 0, out_.c);
        }
      }
    });
  }

  void run_strips(const RunContext& ctx) const noexcept {
    const auto* input = ctx.read<std::uint32_t>(input_);
    const std::uint8_t* flags = has_zero_free_ ? zero_free_flags(ctx) : nullptr;
    const std::size_t n_strips = ceil_div(out_.h, strip_rows_);
    ctx.pool->parallel_for(
        ctx.n_samples * n_strips * n_chunks_,
        [&](std::size_t begin, std::size_t end, std::size_t thread) {
          auto* acc = ctx.scratch_of_thread<std::int32_t>(thread);
          auto* scratch = reinterpret_cast<std::byte*>(acc + row_values_);
          for (std::size_t i = begin; i < end; ++i) {
            const std::size_t sample = i / n_chunks_ / n_strips;
            const std::size_t block = i % n_chunks_ * chunk_blocks_;
            const std::size_t block_end = std::min(block + chunk_blocks_, n_blocks_);
            const std::size_t oy = i / n_chunks_ % n_strips * strip_rows_;
            const std::size_t oy_end = std::min(oy + strip_rows_, out_.h);
            const Params& params = flags != nullptr && flags[sample] != 0 ? zero_free_ : general_;
            const std::uint32_t* in = input + sample * in_layout_.sample_words();
            if (params.signs) {
              strip_bits_(params.sign_params, params.flip.data(), in, oy, oy_end, block, block_end,
                          scratch, sign_words(ctx, sample, oy * out_.w, block),
                          ceil_div(out_.c, kWordBits));
            } else {
              strip_(params.groups[0], in, oy, oy_end, block, block_end, scratch, acc, row_stride_);
              finish(ctx, acc, (oy_end - oy) * out_.w, sample, oy * out_.w, block * kBconvBlock,
                     std::min(out_.c, block_end * kBconvBlock) - block * kBconvBlock);
            }
          }
        });
  }

  void run_group(const BconvParams& params, const std::uint32_t* input, std::size_t oy,
                 std::size_t group, std::int32_t* row) const noexcept {
    if (!spills_) {
      conv_(params, input, oy, 0, n_blocks_, row + group * group_out_, row_stride_);
      return;
    }
    // Whole blocks would run over the next group's channels.
    std::int32_t* blocks = row + row_values_;
    const std::size_t stride = n_blocks_ * kBconvBlock;
    conv_(params, input, oy, 0, n_blocks_, blocks, stride);
    for (std::size_t ox = 0; ox < out_.w; ++ox) {
      std::copy_n(blocks + ox * stride, group_out_, row + ox * row_stride_ + group * group_out_);
    }
  }

  TensorId input_, output_;
  Map in_, out_;
  WindowSizes window_;
  std::size_t groups_, group_in_, group_out_;
  std::size_t words_, n_blocks_;  // per group
  BitsLayout in_layout_;
  bool bits_out_;
  bool regroup_ = false;            // groups do not begin and end at whole words of the input
  bool samples_as_pixels_ = false;  // fully connected
  bool has_zero_free_ = false;      // kSignZero input
  bool spills_ = false;             // groups do not fill whole blocks of output channels
  bool strips_ = false;             // by the kernels that take several rows at a time

  std::size_t plane_words_ = 0;
  AlignedBuffer<std::uint32_t> weights_;
  std::vector<std::int64_t>
      tap_sums_;  // [output channel][tap]: sum of sum_j cw_j * t_j over the channels
  TapClasses rows_, cols_;
  AlignedBuffer<std::uint32_t> row_class_, col_class_;
  Params general_, zero_free_;
  ThresholdTables<std::int32_t> tables_;
  AlignedBuffer<float> scales_, biases_;

  std::size_t chunk_blocks_ = 0, n_chunks_ = 0, strip_rows_ = 1;
  std::size_t row_stride_ = 0, row_values_ = 0, regrouped_words_ = 0;
  kernels::bconv_b1_i32_fn conv_;
  kernels::bconv_b1_bits_fn conv_bits_;
  kernels::bconv_strip_i32_fn strip_;
  kernels::bconv_strip_bits_fn strip_bits_;
  kernels::quantize_i32_bits_fn quantize_;
};

}  // namespace

std::unique_ptr<Step> prepare(const BinaryConv& op, const PrepareContext& ctx) {
  return std::make_unique<BinaryConvStep>(op, ctx);
}

}  // namespace tac
