// Float convolutions.
#include <algorithm>

#include "ir/coded_weights.h"
#include "kernels/depthwise/depthwise.h"
#include "kernels/fconv/fconv.h"
#include "runtime/conv_items.h"
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

using kernels::ConvParams;
using kernels::kConvBlock;

class ConvStep final : public Step {
 public:
  ConvStep(const Conv& op, const PrepareContext& ctx)
      : input_(op.input),
        output_(op.output),
        in_(map_of(ctx.tensor(op.input))),
        out_(map_of(ctx.tensor(op.output))),
        groups_(static_cast<std::size_t>(op.groups)),
        rows_per_item_(conv_rows_per_item(out_.h, out_.w)),
        kernel_(ctx.kernels().conv_f32) {
    const WindowSizes w = window_sizes(op.window);
    const std::size_t group_in = in_.c / groups_, group_out = out_.c / groups_;
    const std::size_t row = w.kernel_h * w.kernel_w * group_in;  // weights of one output channel
    n_blocks_ = ceil_div(group_out, kConvBlock);
    weights_ = AlignedBuffer<float>(groups_ * n_blocks_ * row * kConvBlock);
    biases_ = AlignedBuffer<float>(groups_ * n_blocks_ * kConvBlock);
    const AlignedBuffer<float> bias = expand(op.bias, out_.c);
    for (std::size_t o = 0; o < out_.c; ++o) {
      const std::size_t group = o / group_out, lane = o % group_out % kConvBlock;
      const std::size_t block = group * n_blocks_ + o % group_out / kConvBlock;
      biases_[block * kConvBlock + lane] = bias[o];
      for (std::size_t k = 0; k < row; ++k) {
        weights_[(block * row + k) * kConvBlock + lane] = op.weights.data()[o * row + k];
      }
    }
    for (std::size_t g = 0; g < groups_; ++g) {
      params_.push_back({in_.h, in_.w, out_.w, w.kernel_h, w.kernel_w, w.stride_h, w.stride_w,
                         w.dilation_h, w.dilation_w, w.pad_top, w.pad_left, group_in, group_out,
                         in_.c, weights_.data() + g * n_blocks_ * row * kConvBlock,
                         biases_.data() + g * n_blocks_ * kConvBlock});
    }
    if (groups_ == 1) lead(Leads::kFromMemory, op.output, ctx);
    kernel = ctx.kernel_label(KernelId::conv_f32);
    macs = out_.h * out_.w * out_.c * row;
    param_bytes = weights_.bytes() + biases_.bytes();
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    float* y = ctx.write<float>(output_);
    const std::size_t chunks = ceil_div(n_blocks_, kConvBlocksPerItem),
                      group_out = out_.c / groups_;
    const std::size_t row_items = ceil_div(out_.h, rows_per_item_);
    const std::size_t items = ctx.n_samples * chunks * row_items;
    ctx.pool->parallel_for(items, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) {
        const std::size_t sample = i / (chunks * row_items);
        const std::size_t oy = i % row_items * rows_per_item_;
        const std::size_t oy_end = std::min(oy + rows_per_item_, out_.h);
        const std::size_t block = i / row_items % chunks * kConvBlocksPerItem;
        const std::size_t block_end = std::min(block + kConvBlocksPerItem, n_blocks_);
        for (std::size_t g = 0; g < groups_; ++g) {
          kernel_(params_[g], x + sample * in_.h * in_.w * in_.c + g * params_[g].in_channels, oy,
                  oy_end, block, block_end,
                  y + (sample * out_.h + oy) * out_.w * out_.c + g * group_out, out_.c);
        }
        if (groups_ == 1) {
          const std::size_t channel = block * kConvBlock;
          finish_tile(ctx, {sample, oy * out_.w, (oy_end - oy) * out_.w, channel,
                            std::min(out_.c, block_end * kConvBlock) - channel});
        }
      }
    });
  }

 private:
  TensorId input_, output_;
  Map in_, out_;
  std::size_t groups_, rows_per_item_, n_blocks_ = 0;
  AlignedBuffer<float> weights_, biases_;
  std::vector<ConvParams> params_;  // of each group
  kernels::conv_f32_fn kernel_;
};

// A group for every channel, of one input and one output.
class DepthwiseStep final : public RowStep {
 public:
  DepthwiseStep(const Conv& op, const PrepareContext& ctx)
      : RowStep(op.input, op.output, ctx),
        bias_(expand(op.bias, out_.c)),
        kernel_(ctx.kernels().depthwise_f32) {
    const WindowSizes w = window_sizes(op.window);
    const std::size_t taps = w.kernel_h * w.kernel_w;
    weights_ = AlignedBuffer<float>(taps * out_.c);
    for (std::size_t c = 0; c < out_.c; ++c) {
      for (std::size_t tap = 0; tap < taps; ++tap)
        weights_[tap * out_.c + c] = op.weights.data()[c * taps + tap];
    }
    params_ = {in_.h,      in_.w,      out_.w,          out_.c,       w.kernel_h,
               w.kernel_w, w.stride_h, w.stride_w,      w.dilation_h, w.dilation_w,
               w.pad_top,  w.pad_left, weights_.data(), bias_.data()};
    kernel = ctx.kernel_label(KernelId::depthwise_f32);
    macs = out_.h * out_.w * out_.c * taps;
    param_bytes = weights_.bytes() + bias_.bytes();
  }

 private:
  void make_row(const float* map, std::size_t oy, float* row) const noexcept override {
    kernel_(params_, map, oy, row);
  }

  AlignedBuffer<float> weights_, bias_;
  kernels::DepthwiseParams params_{};
  kernels::depthwise_f32_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const CodedConv& op, const PrepareContext& ctx) {
  const auto outputs = static_cast<std::size_t>(ctx.tensor(op.output).dims[2]);
  const auto channels = static_cast<std::size_t>(ctx.tensor(op.input).dims[2] / op.groups);
  const auto taps = static_cast<std::size_t>(op.window.kernel[0] * op.window.kernel[1]);
  const AlignedBuffer<float> weights = decode(op.weights, outputs, taps * channels);
  return prepare(
      Conv{op.input, op.output, op.window, op.groups, {std::as_bytes(weights.view())}, op.bias},
      ctx);
}

std::unique_ptr<Step> prepare(const Conv& op, const PrepareContext& ctx) {
  const Map in = map_of(ctx.tensor(op.input)), out = map_of(ctx.tensor(op.output));
  const auto groups = static_cast<std::size_t>(op.groups);
  if (groups > 1 && groups == in.c && groups == out.c) {
    return std::make_unique<DepthwiseStep>(op, ctx);
  }
  return std::make_unique<ConvStep>(op, ctx);
}

}  // namespace tac
