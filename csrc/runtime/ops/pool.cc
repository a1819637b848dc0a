// Float max and average pooling.
#include "kernels/pool/pool.h"

#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

class PoolStep final : public Step {
 public:
  PoolStep(const Pool& op, const PrepareContext& ctx)
      : input_(op.input),
        output_(op.output),
        in_(map_of(ctx.tensor(op.input))),
        out_(map_of(ctx.tensor(op.output))),
        kernel_(ctx.kernels().pool_f32) {
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
    lead(Leads::kFromMemory, op.output, ctx);
    kernel = ctx.kernel_label(KernelId::pool_f32);
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    float* y = ctx.write<float>(output_);
    ctx.pool->parallel_for(
        ctx.n_samples * out_.h, [&](std::size_t begin, std::size_t end, std::size_t) {
          for (std::size_t i = begin; i < end; ++i) {
            const std::size_t sample = i / out_.h, oy = i % out_.h;
            kernel_(params_, x + sample * in_.h * in_.w * in_.c, oy, y + i * out_.w * out_.c);
            finish_tile(ctx, {sample, oy * out_.w, out_.w, 0, out_.c});
          }
        });
  }

 private:
  TensorId input_, output_;
  Map in_, out_;
  kernels::PoolParams params_{};
  kernels::pool_f32_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Pool& op, const PrepareContext& ctx) {
  return std::make_unique<PoolStep>(op, ctx);
}

}  // namespace tac
