// Packed codes to floats by a table.
#include <algorithm>

#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

constexpr std::size_t kElementsPerItem = 8192;

class DequantizeStep final : public Step {
 public:
  DequantizeStep(const Dequantize& op, const PrepareContext& ctx)
      : input_(op.input),
        output_(op.output),
        layout_(bits_layout(ctx.tensor(op.input))),
        channels_(rows_of(ctx.tensor(op.input)).channels),
        kernel_(ctx.kernels().dequantize_bits_f32),
        rows_per_item_(std::max<std::size_t>(1, kElementsPerItem / channels_)) {
    const Encoding& encoding = ctx.tensor(op.input).encoding;
    const bool per_channel = op.values.size() != encoding.n_levels;
    const std::size_t stride = per_channel ? channels_ : 1;
    values_ = AlignedBuffer<float>((std::size_t{1} << layout_.planes) * stride);
    const auto codes = codes_of_ascending_levels(encoding);
    for (std::size_t c = 0; c < stride; ++c) {
      for (std::size_t level = 0; level < encoding.n_levels; ++level) {
        values_[codes[level] * stride + c] = op.values.data()[c * encoding.n_levels + level];
      }
    }
    params_ = {channels_, layout_.planes, per_channel, values_.data()};
    lead(Leads::kFromMemory, op.output, ctx);
    kernel = ctx.kernel_label(KernelId::dequantize_bits_f32);
    param_bytes = values_.bytes();
  }

  void run(const RunContext& ctx) const noexcept override {
    const auto* bits = ctx.read<std::uint32_t>(input_);
    float* y = ctx.write<float>(output_);
    const std::size_t items = ceil_div(layout_.rows, rows_per_item_);
    ctx.pool->parallel_for(
        ctx.n_samples * items, [&](std::size_t begin, std::size_t end, std::size_t) {
          for (std::size_t i = begin; i < end; ++i) {
            const std::size_t sample = i / items, row = i % items * rows_per_item_;
            const std::size_t n_rows = std::min(rows_per_item_, layout_.rows - row);
            kernel_(params_, bits + sample * layout_.sample_words() + row * layout_.words, n_rows,
                    layout_.words, layout_.plane_words(),
                    y + (sample * layout_.rows + row) * channels_);
            finish_tile(ctx, {sample, row, n_rows, 0, channels_});
          }
        });
  }

 private:
  TensorId input_, output_;
  BitsLayout layout_;
  std::size_t channels_;
  AlignedBuffer<float> values_;
  kernels::DequantizeParams params_{};
  kernels::dequantize_bits_f32_fn kernel_;
  std::size_t rows_per_item_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Dequantize& op, const PrepareContext& ctx) {
  return std::make_unique<DequantizeStep>(op, ctx);
}

}  // namespace tac
