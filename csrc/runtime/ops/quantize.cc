// Float thresholds to packed codes.
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

class QuantizeStep final : public TileStep {
 public:
  QuantizeStep(const Quantize& op, const PrepareContext& ctx)
      : TileStep(op.output, ctx),
        input_(op.input),
        output_(op.output),
        layout_(bits_layout(ctx.tensor(op.output))),
        tables_(op.thresholds, op.descending, channels_, ctx.tensor(op.output).encoding),
        params_{channels_,
                tables_.n_thresholds,
                tables_.n_planes,
                tables_.stride,
                tables_.thresholds.data(),
                tables_.flip.data(),
                tables_.code_of_index.data()},
        kernel_(ctx.kernels().quantize_f32_bits) {
    kernel = ctx.kernel_label(KernelId::quantize_f32_bits);
    param_bytes = tables_.bytes();
  }

  void run_tile(const RunContext& ctx, const Tile& t) const noexcept override {
    kernels::QuantizeParams<float> params = params_;
    params.channels = t.n_channels;
    params.thresholds += t.channel;
    params.flip += t.channel / kWordBits;
    kernel_(params, ctx.read<float>(input_) + first_of(t), t.n_rows, channels_, bits(ctx, t),
            layout_.words, layout_.plane_words());
  }

  bool chains(TensorId) const noexcept override { return true; }
  kernels::ChainOp chain_op(const RunContext& ctx, const Tile& t,
                            TensorId) const noexcept override {
    kernels::ChainOp op{};
    op.kind = kernels::ChainKind::kBits;
    op.quantize = &params_;
    op.first_channel = t.channel;
    op.bits = bits(ctx, t);
    op.out_stride = layout_.words;
    op.plane_stride = layout_.plane_words();
    return op;
  }

 private:
  std::uint32_t* bits(const RunContext& ctx, const Tile& t) const noexcept {
    return ctx.write<std::uint32_t>(output_) + t.sample * layout_.sample_words() +
           t.row * layout_.words + t.channel / kWordBits;
  }

  TensorId input_, output_;
  BitsLayout layout_;
  ThresholdTables<float> tables_;
  kernels::QuantizeParams<float> params_;
  kernels::quantize_f32_bits_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Quantize& op, const PrepareContext& ctx) {
  return std::make_unique<QuantizeStep>(op, ctx);
}

}  // namespace tac
