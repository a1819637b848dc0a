// Scale and shift per channel.
#include <algorithm>

#include "kernels/elementwise/elementwise.h"
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

// Few channels are repeated until a kernel row is this long, so that it fills vector registers.
constexpr std::size_t kMinRow = 128;

class AffineStep final : public TileStep {
 public:
  AffineStep(const Affine& op, const PrepareContext& ctx)
      : TileStep(op.output, ctx),
        input_(op.input),
        output_(op.output),
        repeat_(std::max<std::size_t>(1, kMinRow / channels_)),
        kernel_(ctx.kernels().affine_f32) {
    scale_ = AlignedBuffer<float>(channels_ * repeat_);
    shift_ = AlignedBuffer<float>(channels_ * repeat_);
    const AlignedBuffer<float> scale = expand(op.scale, channels_),
                               shift = expand(op.shift, channels_);
    for (std::size_t r = 0; r < repeat_; ++r) {
      std::copy_n(scale.data(), channels_, scale_.data() + r * channels_);
      std::copy_n(shift.data(), channels_, shift_.data() + r * channels_);
    }
    kernel = ctx.kernel_label(KernelId::affine_f32);
    macs = rows_ * channels_;
    param_bytes = scale_.bytes() + shift_.bytes();
  }

  void run_tile(const RunContext& ctx, const Tile& t) const noexcept override {
    const std::size_t first = first_of(t);
    const float* x = ctx.read<float>(input_) + first;
    float* y = ctx.write<float>(output_) + first;
    std::size_t row = 0;
    if (t.n_channels == channels_ && repeat_ > 1) {
      const std::size_t long_row = repeat_ * channels_;
      kernel_(scale_.data(), shift_.data(), long_row, t.n_rows / repeat_, x, long_row, y, long_row);
      row = t.n_rows / repeat_ * repeat_;
    }
    kernel_(scale_.data() + t.channel, shift_.data() + t.channel, t.n_channels, t.n_rows - row,
            x + row * channels_, channels_, y + row * channels_, channels_);
  }

  bool chains(TensorId) const noexcept override { return true; }
  kernels::ChainOp chain_op(const RunContext&, const Tile& t, TensorId) const noexcept override {
    kernels::ChainOp op{};
    op.kind = kernels::ChainKind::kAffine;
    op.a = scale_.data() + t.channel;
    op.b = shift_.data() + t.channel;
    return op;
  }

 private:
  TensorId input_, output_;
  std::size_t repeat_;
  AlignedBuffer<float> scale_, shift_;
  kernels::affine_f32_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Affine& op, const PrepareContext& ctx) {
  return std::make_unique<AffineStep>(op, ctx);
}

}  // namespace tac
