// Max pooling on packed codes.
#include "kernels/bit_pool/bit_pool.h"

#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

class BitPoolStep final : public Step {
 public:
  BitPoolStep(const BitPool& op, const PrepareContext& ctx)
      : input_(op.input),
        output_(op.output),
        in_layout_(bits_layout(ctx.tensor(op.input))),
        out_layout_(bits_layout(ctx.tensor(op.output))),
        out_h_(map_of(ctx.tensor(op.output)).h),
        out_w_(map_of(ctx.tensor(op.output)).w),
        take_min_(in_layout_.words),
        kernel_(ctx.kernels().bit_pool_bits) {
    const Encoding& encoding = ctx.tensor(op.input).encoding;
    const Map in = map_of(ctx.tensor(op.input));
    const bool sign_zero = encoding.kind == Encoding::Kind::kSignZero;
    // The larger level has the smaller code (step < 0), or fewer sign bits set in both planes
    // (kSignZero).
    const bool descending = sign_zero || encoding.step < 0;
    for (std::size_t c = 0; c < in.c; ++c) {
      const bool take_min = op.take_min.size() != 0 && op.take_min.data()[c] != 0;
      if (take_min != descending) take_min_[c / kWordBits] |= 1U << (c % kWordBits);
    }
    const WindowSizes w = window_sizes(op.window);
    params_ = {in.h,
               in.w,
               out_w_,
               in_layout_.words,
               w.kernel_h,
               w.kernel_w,
               w.stride_h,
               w.stride_w,
               w.dilation_h,
               w.dilation_w,
               w.pad_top,
               w.pad_left,
               in_layout_.planes,
               in_layout_.plane_words(),
               out_layout_.plane_words(),
               sign_zero,
               take_min_.data()};
    kernel = ctx.kernel_label(KernelId::bit_pool_bits);
    param_bytes = take_min_.bytes();
  }

  void run(const RunContext& ctx) const noexcept override {
    const auto* in = ctx.read<std::uint32_t>(input_);
    auto* out = ctx.write<std::uint32_t>(output_);
    ctx.pool->parallel_for(
        ctx.n_samples * out_h_, [&](std::size_t begin, std::size_t end, std::size_t) {
          for (std::size_t i = begin; i < end; ++i) {
            const std::size_t sample = i / out_h_, oy = i % out_h_;
            kernel_(params_, in + sample * in_layout_.sample_words(), oy,
                    out + sample * out_layout_.sample_words() + oy * out_w_ * out_layout_.words);
          }
        });
  }

 private:
  TensorId input_, output_;
  BitsLayout in_layout_, out_layout_;
  std::size_t out_h_, out_w_;
  AlignedBuffer<std::uint32_t> take_min_;
  kernels::BitPoolParams params_{};
  kernels::bit_pool_bits_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const BitPool& op, const PrepareContext& ctx) {
  return std::make_unique<BitPoolStep>(op, ctx);
}

}  // namespace tac
