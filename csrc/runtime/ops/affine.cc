// Scale and shift per channel.
#include <algorithm>

#include "kernels/elementwise/elementwise.h"
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

constexpr std::size_t kElementsPerItem = 8192;
// Few channels are repeated until a kernel row is this long, so that it fills vector registers.
constexpr std::size_t kMinRow = 128;

class AffineStep final : public Step {
 public:
  AffineStep(const Affine& op, const PrepareContext& ctx)
      : input_(op.input), output_(op.output), kernel_(ctx.kernels().affine_f32) {
    const auto [rows, channels] = rows_of(ctx.tensor(op.input));
    std::size_t repeat = 1;
    for (std::size_t r = 2; r <= rows && channels * r <= kMinRow; ++r) {
      if (rows % r == 0) repeat = r;
    }
    rows_ = rows / repeat;
    channels_ = channels * repeat;
    scale_ = AlignedBuffer<float>(channels_);
    shift_ = AlignedBuffer<float>(channels_);
    const AlignedBuffer<float> scale = expand(op.scale, channels),
                               shift = expand(op.shift, channels);
    for (std::size_t r = 0; r < repeat; ++r) {
      std::copy_n(scale.data(), channels, scale_.data() + r * channels);
      std::copy_n(shift.data(), channels, shift_.data() + r * channels);
    }
    rows_per_item_ = std::max<std::size_t>(1, kElementsPerItem / channels_);
    kernel = ctx.kernel_label(KernelId::affine_f32);
    macs = rows * channels;
    param_bytes = scale_.bytes() + shift_.bytes();
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    float* y = ctx.write<float>(output_);
    const std::size_t rows = ctx.n_samples * rows_;
    ctx.pool->parallel_for(ceil_div(rows, rows_per_item_), [&](std::size_t begin, std::size_t end,
                                                               std::size_t) {
      const std::size_t first = begin * rows_per_item_, last = std::min(rows, end * rows_per_item_);
      kernel_(scale_.data(), shift_.data(), channels_, x + first * channels_, last - first,
              y + first * channels_);
    });
  }

 private:
  TensorId input_, output_;
  std::size_t rows_ = 0, channels_ = 0, rows_per_item_ = 0;
  AlignedBuffer<float> scale_, shift_;
  kernels::affine_f32_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Affine& op, const PrepareContext& ctx) {
  return std::make_unique<AffineStep>(op, ctx);
}

}  // namespace tac
