// Float thresholds to packed codes.
#include <algorithm>

#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

constexpr std::size_t kElementsPerItem = 8192;

class QuantizeStep final : public Step {
 public:
  QuantizeStep(const Quantize& op, const PrepareContext& ctx)
      : input_(op.input),
        output_(op.output),
        layout_(bits_layout(ctx.tensor(op.output))),
        channels_(rows_of(ctx.tensor(op.input)).channels),
        tables_(op.thresholds, op.descending, channels_, ctx.tensor(op.output).encoding),
        params_{channels_,
                tables_.n_thresholds,
                tables_.n_planes,
                tables_.stride,
                tables_.thresholds.data(),
                tables_.flip.data(),
                tables_.code_of_index.data()},
        kernel_(ctx.kernels().quantize_f32_bits),
        rows_per_item_(std::max<std::size_t>(1, kElementsPerItem / channels_)) {
    kernel = ctx.kernel_label(KernelId::quantize_f32_bits);
    param_bytes = tables_.bytes();
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    auto* out = ctx.write<std::uint32_t>(output_);
    const std::size_t items = ceil_div(layout_.rows, rows_per_item_);
    ctx.pool->parallel_for(
        ctx.n_samples * items, [&](std::size_t begin, std::size_t end, std::size_t) {
          for (std::size_t i = begin; i < end; ++i) {
            const std::size_t sample = i / items, row = i % items * rows_per_item_;
            kernel_(params_, x + (sample * layout_.rows + row) * channels_,
                    std::min(rows_per_item_, layout_.rows - row), channels_,
                    out + sample * layout_.sample_words() + row * layout_.words, layout_.words,
                    layout_.plane_words());
          }
        });
  }

 private:
  TensorId input_, output_;
  BitsLayout layout_;
  std::size_t channels_;
  ThresholdTables<float> tables_;
  kernels::QuantizeParams<float> params_;
  kernels::quantize_f32_bits_fn kernel_;
  std::size_t rows_per_item_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Quantize& op, const PrepareContext& ctx) {
  return std::make_unique<QuantizeStep>(op, ctx);
}

}  // namespace tac
