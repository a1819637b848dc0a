// Softmax and its logarithm along any axis.
#include <algorithm>

#include "kernels/elementwise/elementwise.h"
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

// Positions after the axis that are gathered into rows at a time: a cache line of floats.
constexpr std::size_t kColumns = 16;

class SoftmaxStep final : public Step {
 public:
  SoftmaxStep(const Softmax& op, const PrepareContext& ctx)
      : input_(op.input), output_(op.output), log_(op.log), kernel_(ctx.kernels().softmax_f32) {
    const std::vector<std::int64_t>& dims = ctx.tensor(op.input).dims;
    const auto axis = static_cast<std::size_t>(op.axis);
    outer_ = element_count(std::span(dims).first(axis));
    size_ = static_cast<std::size_t>(dims[axis]);
    inner_ = element_count(std::span(dims).subspan(axis + 1));
    if (inner_ > 1) thread_scratch_bytes = kColumns * size_ * sizeof(float);
    kernel = ctx.kernel_label(KernelId::softmax_f32);
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    float* y = ctx.write<float>(output_);
    const std::size_t matrices = ctx.n_samples * outer_;
    if (inner_ == 1) {
      ctx.pool->parallel_for(matrices, [&](std::size_t begin, std::size_t end, std::size_t) {
        kernel_(log_, x + begin * size_, end - begin, size_, y + begin * size_);
      });
      return;
    }
    const std::size_t tiles = ceil_div(inner_, kColumns);
    ctx.pool->parallel_for(matrices * tiles,
                           [&](std::size_t begin, std::size_t end, std::size_t thread) {
                             auto* rows = ctx.scratch_of_thread<float>(thread);
                             for (std::size_t i = begin; i < end; ++i) {
                               const std::size_t first = i % tiles * kColumns,
                                                 columns = std::min(kColumns, inner_ - first);
                               const std::size_t offset = i / tiles * size_ * inner_ + first;
                               for (std::size_t k = 0; k < size_; ++k) {
                                 for (std::size_t c = 0; c < columns; ++c)
                                   rows[c * size_ + k] = x[offset + k * inner_ + c];
                               }
                               kernel_(log_, rows, columns, size_, rows);
                               for (std::size_t k = 0; k < size_; ++k) {
                                 for (std::size_t c = 0; c < columns; ++c)
                                   y[offset + k * inner_ + c] = rows[c * size_ + k];
                               }
                             }
                           });
  }

 private:
  TensorId input_, output_;
  bool log_;
  std::size_t outer_ = 0, size_ = 0, inner_ = 0;
  kernels::softmax_f32_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Softmax& op, const PrepareContext& ctx) {
  return std::make_unique<SoftmaxStep>(op, ctx);
}

}  // namespace tac
