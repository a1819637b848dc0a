// Convolutions of floats in integers: weights as levels, inputs rounded.
#include <algorithm>
#include <vector>

#include "ir/coded_weights.h"
#include "ir/integer_runs.h"
#include "kernels/iconv/iconv.h"
#include "runtime/conv_items.h"
#include "runtime/layout.h"
#include "runtime/rounding.h"
#include "runtime/step.h"

namespace tac {

namespace {

using kernels::IconvParams;
using kernels::kIconvBlock;

// Of a row longer than this an item is a part.
constexpr std::size_t kMaxColumnsPerItem = 256;
constexpr std::size_t kValuesPerItem = 8192;

class IntegerConvStep final : public Step {
 public:
  IntegerConvStep(const IntegerConv& op, const PrepareContext& ctx)
      : input_(op.input),
        in_(map_of(ctx.tensor(op.input))),
        out_(map_of(ctx.tensor(op.output))),
        window_(window_sizes(op.window)),
        groups_(static_cast<std::size_t>(op.groups)),
        group_in_(in_.c / groups_),
        group_out_(out_.c / groups_),
        padded_h_(in_.h + window_.pad_top + window_.pad_bottom),
        padded_row_((in_.w + window_.pad_left + window_.pad_right) * in_.c),
        runs_(op, in_.c),
        limit_(static_cast<std::int32_t>(op.input_limit)),
        fixed_unit_(op.input_unit),
        bias_(expand(op.bias, out_.c)),
        max_magnitude_(ctx.kernels().max_magnitude_f32),
        round_(ctx.kernels().round_f32_i16),
        conv_(ctx.kernels().conv_i16) {
    level_scales_.assign(op.level_scale.view().begin(), op.level_scale.view().end());
    set_runs(op);
    pack(op);
    const std::size_t runs_per_sum =
        std::min(static_cast<std::size_t>(op.runs_per_sum), run_offsets_.size());
    const std::size_t group_weights = n_blocks_ * block_weights();
    for (std::size_t g = 0; g < groups_; ++g) {
      params_.push_back({out_.w, window_.stride_w * in_.c, window_.stride_h * padded_row_,
                         run_offsets_.size(), runs_.size / 2, runs_per_sum, run_offsets_.data(),
                         weights_.data() + g * group_weights});
    }
    rows_per_item_ = conv_rows_per_item(out_.h, out_.w);
    columns_per_item_ = std::min(out_.w, kMaxColumnsPerItem);
    padded_rows_per_item_ = std::max<std::size_t>(1, kValuesPerItem / padded_row_);
    // The last run of a piece may reach farther than its values.
    map_slack_ = runs_.per_piece * runs_.size - runs_.piece;
    map_stride_ = round_up(padded_h_ * padded_row_ + map_slack_, kCacheLine / sizeof(std::int16_t));
    scale_stride_ = round_up(out_.c, kCacheLine / sizeof(float));
    max_stride_ = round_up(ceil_div(in_.h * in_.w * in_.c, kValuesPerItem),
                           kCacheLine / sizeof(std::uint32_t));
    sample_scratch_bytes = map_stride_ * sizeof(std::int16_t) + scale_stride_ * sizeof(float) +
                           max_stride_ * sizeof(std::uint32_t);
    // Whole blocks run over the last channel of a group.
    sum_stride_ = groups_ == 1 ? std::min(n_blocks_, kConvBlocksPerItem) * kIconvBlock
                               : round_up(out_.c, kIconvBlock) + kIconvBlock;
    thread_scratch_bytes = rows_per_item_ * columns_per_item_ * sum_stride_ * sizeof(float);
    lead(Leads::kFromRegisters, op.output, ctx);
    kernel = ctx.kernel_label(KernelId::conv_i16);
    macs = out_.h * out_.w * out_.c * window_.kernel_h * window_.kernel_w * group_in_;
    param_bytes = weights_.bytes() + bias_.bytes() + level_scales_.size() * sizeof(float);
  }

  void run(const RunContext& ctx) const noexcept override {
    const Scratch scratch = scratch_of(ctx);
    if (fixed_unit_ == 0.0F) find_maxima(ctx, scratch);
    round_maps(ctx, scratch);
    const std::size_t chunks = groups_ == 1 ? ceil_div(n_blocks_, kConvBlocksPerItem) : 1;
    const std::size_t row_items = ceil_div(out_.h, rows_per_item_),
                      column_items = ceil_div(out_.w, columns_per_item_);
    const std::size_t items = row_items * column_items;  // innermost: a chunk's weights stay cached
    ctx.pool->parallel_for(ctx.n_samples * chunks * items, [&](std::size_t begin, std::size_t end,
                                                               std::size_t thread) {
      auto* sums = ctx.scratch_of_thread<float>(thread);
      for (std::size_t i = begin; i < end; ++i) {
        const std::size_t sample = i / (chunks * items);
        const std::size_t oy = i % items / column_items * rows_per_item_;
        const std::size_t ox = i % column_items * columns_per_item_;
        const std::size_t oy_end = std::min(oy + rows_per_item_, out_.h);
        const std::size_t n_columns = std::min(columns_per_item_, out_.w - ox);
        const std::int16_t* map =
            scratch.maps + sample * map_stride_ + ox * window_.stride_w * in_.c;
        Tile tile{sample, oy * out_.w + ox, (oy_end - oy) * n_columns, 0, out_.c};
        const auto convolve = [&](std::size_t group, std::size_t block, std::size_t block_end) {
          IconvParams params = params_[group];
          params.out_w = n_columns;
          conv_(params, map + group * group_in_, oy, oy_end, block, block_end,
                sums + group * group_out_, sum_stride_);
        };
        if (groups_ == 1) {
          const std::size_t block = i / items % chunks * kConvBlocksPerItem;
          const std::size_t block_end = std::min(block + kConvBlocksPerItem, n_blocks_);
          convolve(0, block, block_end);
          tile.channel = block * kIconvBlock;
          tile.n_channels = std::min(out_.c, block_end * kIconvBlock) - tile.channel;
        } else {
          // What a group writes behind its channels, the next one writes over.
          for (std::size_t g = 0; g < groups_; ++g) convolve(g, 0, n_blocks_);
        }
        kernels::ChainOp scale{};
        scale.kind = kernels::ChainKind::kAffine;
        scale.a = scratch.scales + sample * scale_stride_ + tile.channel;
        scale.b = bias_.data() + tile.channel;
        finish_tile(ctx, tile, {nullptr, sums, sum_stride_}, scale);
      }
    });
  }

 private:
  struct Scratch {
    std::int16_t* maps;     // [n][padded_h][padded_row]
    float* scales;          // [n][out_c]
    std::uint32_t* maxima;  // [n][parts of a sample], magnitudes
  };
  Scratch scratch_of(const RunContext& ctx) const noexcept {
    auto* maps = reinterpret_cast<std::int16_t*>(ctx.sample_scratch);
    auto* scales = reinterpret_cast<float*>(maps + ctx.n_samples * map_stride_);
    return {maps, scales, reinterpret_cast<std::uint32_t*>(scales + ctx.n_samples * scale_stride_)};
  }

  std::size_t block_weights() const noexcept {
    return run_offsets_.size() * runs_.size * kIconvBlock;
  }

  void set_runs(const IntegerConv& op) {
    const bool contiguous = IntegerRuns::is_contiguous(op);
    for (std::size_t ky = 0; ky < window_.kernel_h; ++ky) {
      for (std::size_t kx = 0; kx < (contiguous ? 1 : window_.kernel_w); ++kx) {
        for (std::size_t part = 0; part < runs_.per_piece; ++part) {
          run_offsets_.push_back(ky * window_.dilation_h * padded_row_ +
                                 kx * window_.dilation_w * in_.c + part * runs_.size);
        }
      }
    }
  }

  void pack(const IntegerConv& op) {
    const std::size_t row = window_.kernel_h * window_.kernel_w * group_in_;
    const AlignedBuffer<float> weights = decode(op.weights, out_.c, row);
    n_blocks_ = ceil_div(group_out_, kIconvBlock);
    weights_ = AlignedBuffer<std::int16_t>(groups_ * n_blocks_ * block_weights());
    std::vector<std::size_t> places(row);  // of the products, in a block of one output
    for (std::size_t k = 0; k < row; ++k) {
      const std::size_t at = runs_.of(k) * runs_.size + k % runs_.piece % runs_.size;
      places[k] = at / 2 * kIconvBlock * 2 + at % 2;
    }
    for (std::size_t o = 0; o < out_.c; ++o) {
      const std::size_t lane = o % group_out_ % kIconvBlock;
      const std::size_t block = o / group_out_ * n_blocks_ + o % group_out_ / kIconvBlock;
      std::int16_t* to = weights_.data() + block * block_weights() + lane * 2;
      for (std::size_t k = 0; k < row; ++k) {
        to[places[k]] = static_cast<std::int16_t>(level_of(weights[o * row + k], level_scales_[o]));
      }
    }
  }

  void find_maxima(const RunContext& ctx, const Scratch& scratch) const noexcept {
    const std::size_t values = in_.h * in_.w * in_.c, parts = ceil_div(values, kValuesPerItem);
    const float* x = ctx.read<float>(input_);
    ctx.pool->parallel_for(
        ctx.n_samples * parts, [&](std::size_t begin, std::size_t end, std::size_t) {
          for (std::size_t i = begin; i < end; ++i) {
            const std::size_t sample = i / parts, first = i % parts * kValuesPerItem;
            scratch.maxima[sample * max_stride_ + i % parts] = max_magnitude_(
                x + sample * values + first, std::min(kValuesPerItem, values - first));
          }
        });
  }

  Rounding rounding_of_sample(const Scratch& scratch, std::size_t sample) const noexcept {
    if (fixed_unit_ != 0.0F)
      return {{1.0F, 1.0F / fixed_unit_, static_cast<float>(limit_)}, fixed_unit_};
    const std::uint32_t* maxima = scratch.maxima + sample * max_stride_;
    const std::size_t parts = ceil_div(in_.h * in_.w * in_.c, kValuesPerItem);
    return rounding_of(*std::max_element(maxima, maxima + parts), limit_);
  }

  // The samples as integers, with their padding, and what the sums are multiplied by.
  void round_maps(const RunContext& ctx, const Scratch& scratch) const noexcept {
    const float* x = ctx.read<float>(input_);
    const std::size_t row_values = in_.w * in_.c, left = window_.pad_left * in_.c;
    const std::size_t items = ceil_div(padded_h_, padded_rows_per_item_);
    ctx.pool->parallel_for(ctx.n_samples * items, [&](std::size_t begin, std::size_t end,
                                                      std::size_t) {
      for (std::size_t i = begin; i < end; ++i) {
        const std::size_t sample = i / items, first = i % items * padded_rows_per_item_;
        const Rounding rounding = rounding_of_sample(scratch, sample);
        std::int16_t* map = scratch.maps + sample * map_stride_;
        if (first == 0) {
          float* scales = scratch.scales + sample * scale_stride_;
          for (std::size_t o = 0; o < out_.c; ++o)
            scales[o] = static_cast<float>(level_scales_[o] * rounding.unit);
          std::fill_n(map + padded_h_ * padded_row_, map_slack_, std::int16_t{0});
        }
        for (std::size_t y = first; y < std::min(first + padded_rows_per_item_, padded_h_); ++y) {
          std::int16_t* row = map + y * padded_row_;
          if (y < window_.pad_top || y >= window_.pad_top + in_.h) {
            std::fill_n(row, padded_row_, std::int16_t{0});
            continue;
          }
          std::fill_n(row, left, std::int16_t{0});
          round_(rounding.scale, x + (sample * in_.h + y - window_.pad_top) * row_values,
                 row_values, row + left);
          std::fill(row + left + row_values, row + padded_row_, std::int16_t{0});
        }
      }
    });
  }

  TensorId input_;
  Map in_, out_;
  WindowSizes window_;
  std::size_t groups_, group_in_, group_out_;
  std::size_t padded_h_, padded_row_;
  IntegerRuns runs_;
  std::int32_t limit_;
  float fixed_unit_;
  std::vector<float> level_scales_;
  AlignedBuffer<float> bias_;
  std::size_t n_blocks_ = 0;  // of a group
  std::vector<std::size_t> run_offsets_;
  AlignedBuffer<std::int16_t> weights_;
  std::vector<IconvParams> params_;  // of each group
  std::size_t rows_per_item_ = 0, columns_per_item_ = 0, padded_rows_per_item_ = 0;
  std::size_t map_slack_ = 0, map_stride_ = 0, scale_stride_ = 0, max_stride_ = 0, sum_stride_ = 0;
  kernels::max_magnitude_f32_fn max_magnitude_;
  kernels::round_f32_i16_fn round_;
  kernels::conv_i16_fn conv_;
};

}  // namespace

std::unique_ptr<Step> prepare(const IntegerConv& op, const PrepareContext& ctx) {
  return std::make_unique<IntegerConvStep>(op, ctx);
}

}  // namespace tac
