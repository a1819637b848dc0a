// Elementwise functions of one float.
#include "kernels/elementwise/elementwise.h"
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

class UnaryStep final : public TileStep {
 public:
  UnaryStep(const Unary& op, const PrepareContext& ctx)
      : TileStep(op.output, ctx), op_(op), kernel_(ctx.kernels().unary_f32) {
    kernel = ctx.kernel_label(KernelId::unary_f32);
  }

  void run_tile(const RunContext& ctx, const Tile& t) const noexcept override {
    const std::size_t first = first_of(t);
    const float* x = ctx.read<float>(op_.input) + first;
    float* y = ctx.write<float>(op_.output) + first;
    if (t.n_channels == channels_) {
      kernel_(op_.kind, op_.alpha, op_.beta, 1, t.n_rows * channels_, x, 0, y, 0);
    } else {
      kernel_(op_.kind, op_.alpha, op_.beta, t.n_rows, t.n_channels, x, channels_, y, channels_);
    }
  }

  bool chains(TensorId) const noexcept override {
    return op_.kind == UnaryKind::kRelu || op_.kind == UnaryKind::kClip ||
           op_.kind == UnaryKind::kLeakyRelu;
  }
  kernels::ChainOp chain_op(const RunContext&, const Tile&, TensorId) const noexcept override {
    kernels::ChainOp op{};
    op.kind = op_.kind == UnaryKind::kRelu   ? kernels::ChainKind::kRelu
              : op_.kind == UnaryKind::kClip ? kernels::ChainKind::kClip
                                             : kernels::ChainKind::kLeakyRelu;
    op.alpha = op_.alpha;
    op.beta = op_.beta;
    return op;
  }

 private:
  Unary op_;
  kernels::unary_f32_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Unary& op, const PrepareContext& ctx) {
  return std::make_unique<UnaryStep>(op, ctx);
}

}  // namespace tac
