// Float max and average pooling.
#include "kernels/pool/pool.h"

#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

class PoolStep final : public RowStep {
 public:
  PoolStep(const Pool& op, const PrepareContext& ctx)
      : RowStep(op.input, op.output, ctx), kernel_(ctx.kernels().pool_f32) {
    const WindowSizes w = window_sizes(op.window);
    params_ = {in_.h,
               in_.w,
               out_.w,
               in_.c,
               w.kernel_h,
               w.kernel_w,
               w.stride_h,
               w.stride_w,
               w.dilation_h,
               w.dilation_w,
               w.pad_top,
               w.pad_left,
               w.pad_bottom,
               w.pad_right,
               op.kind == PoolKind::kAverage,
               op.count_include_pad};
    kernel = ctx.kernel_label(KernelId::pool_f32);
  }

 private:
  void make_row(const float* map, std::size_t oy, float* row) const noexcept override {
    kernel_(params_, map, oy, row);
  }

  kernels::PoolParams params_{};
  kernels::pool_f32_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Pool& op, const PrepareContext& ctx) {
  return std::make_unique<PoolStep>(op, ctx);
}

}  // namespace tac
