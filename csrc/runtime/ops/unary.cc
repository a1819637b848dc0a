// Elementwise functions of one float.
#include <algorithm>

#include "kernels/elementwise/elementwise.h"
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

constexpr std::size_t kElementsPerItem = 4096;

class UnaryStep final : public Step {
 public:
  UnaryStep(const Unary& op, const PrepareContext& ctx)
      : op_(op), size_(element_count(ctx.tensor(op.input).dims)), kernel_(ctx.kernels().unary_f32) {
    kernel = ctx.kernel_label(KernelId::unary_f32);
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(op_.input);
    float* y = ctx.write<float>(op_.output);
    const std::size_t size = ctx.n_samples * size_;
    ctx.pool->parallel_for(
        ceil_div(size, kElementsPerItem), [&](std::size_t begin, std::size_t end, std::size_t) {
          const std::size_t first = begin * kElementsPerItem,
                            last = std::min(size, end * kElementsPerItem);
          kernel_(op_.kind, op_.alpha, op_.beta, x + first, last - first, y + first);
        });
  }

 private:
  Unary op_;
  std::size_t size_;
  kernels::unary_f32_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Unary& op, const PrepareContext& ctx) {
  return std::make_unique<UnaryStep>(op, ctx);
}

}  // namespace tac
