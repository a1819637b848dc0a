// One of two values, by a condition.
#include <array>

#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

constexpr std::size_t kMaxRank = 8;

// Broadcasting as a step along each output axis, 0 where the operand repeats.
struct Operand {
  TensorId tensor;
  std::size_t sample_size;
  std::array<std::size_t, kMaxRank> steps{};

  Operand(TensorId id, const PrepareContext& ctx, std::size_t rank) : tensor(id) {
    const Tensor& t = ctx.tensor(id);
    sample_size = t.is_constant ? 0 : element_count(t.dims);
    std::size_t stride = 1;
    for (std::size_t i = t.dims.size(); i-- > 0;) {
      const auto size = static_cast<std::size_t>(t.dims[i]);
      if (size != 1) steps[rank - t.dims.size() + i] = stride;
      stride *= size;
    }
  }
};

class WhereStep final : public Step {
 public:
  WhereStep(const Where& op, const PrepareContext& ctx)
      : output_(op.output),
        dims_(ctx.tensor(op.output).dims.begin(), ctx.tensor(op.output).dims.end()),
        condition_(op.condition, ctx, dims_.size()),
        a_(op.a, ctx, dims_.size()),
        b_(op.b, ctx, dims_.size()) {
    const auto [rows, channels] = rows_of(ctx.tensor(op.output));
    rows_ = rows;
    channels_ = channels;
    kernel = "choose";
  }

  void run(const RunContext& ctx) const noexcept override {
    float* y = ctx.write<float>(output_);
    const std::size_t inner = dims_.empty() ? 0 : dims_.size() - 1;
    ctx.pool->parallel_for(
        ctx.n_samples * rows_, [&](std::size_t begin, std::size_t end, std::size_t) {
          for (std::size_t i = begin; i < end; ++i) {
            const float* condition = row_of(ctx, condition_, i);
            const float* a = row_of(ctx, a_, i);
            const float* b = row_of(ctx, b_, i);
            for (std::size_t c = 0; c < channels_; ++c) {
              y[i * channels_ + c] = condition[c * condition_.steps[inner]] != 0.0F
                                         ? a[c * a_.steps[inner]]
                                         : b[c * b_.steps[inner]];
            }
          }
        });
  }

 private:
  const float* row_of(const RunContext& ctx, const Operand& operand,
                      std::size_t row) const noexcept {
    std::size_t offset = row / rows_ * operand.sample_size, rest = row % rows_;
    for (std::size_t axis = dims_.empty() ? 0 : dims_.size() - 1; axis-- > 0;) {
      offset += rest % dims_[axis] * operand.steps[axis];
      rest /= dims_[axis];
    }
    return ctx.read<float>(operand.tensor) + offset;
  }

  TensorId output_;
  std::vector<std::size_t> dims_;
  Operand condition_, a_, b_;
  std::size_t rows_ = 0, channels_ = 0;
};

}  // namespace

std::unique_ptr<Step> prepare(const Where& op, const PrepareContext& ctx) {
  return std::make_unique<WhereStep>(op, ctx);
}

}  // namespace tac
