// Position of the largest value along an axis.
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

class ArgMaxStep final : public Step {
 public:
  ArgMaxStep(const ArgMax& op, const PrepareContext& ctx)
      : input_(op.input), output_(op.output), select_last_(op.select_last) {
    const std::vector<std::int64_t>& dims = ctx.tensor(op.input).dims;
    const auto axis = static_cast<std::size_t>(op.axis);
    outer_ = element_count(std::span(dims).first(axis));
    size_ = static_cast<std::size_t>(dims[axis]);
    inner_ = element_count(std::span(dims).subspan(axis + 1));
    kernel = "scan";
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    auto* y = ctx.write<std::int64_t>(output_);
    ctx.pool->parallel_for(
        ctx.n_samples * outer_, [&](std::size_t begin, std::size_t end, std::size_t) {
          for (std::size_t i = begin * inner_; i < end * inner_; ++i) {
            const float* column = x + i / inner_ * size_ * inner_ + i % inner_;
            std::size_t best = 0;
            for (std::size_t k = 1; k < size_; ++k) {
              const float value = column[k * inner_], largest = column[best * inner_];
              if (value > largest || (select_last_ && value == largest)) best = k;
            }
            y[i] = static_cast<std::int64_t>(best);
          }
        });
  }

 private:
  TensorId input_, output_;
  bool select_last_;
  std::size_t outer_ = 0, size_ = 0, inner_ = 0;
};

}  // namespace

std::unique_ptr<Step> prepare(const ArgMax& op, const PrepareContext& ctx) {
  return std::make_unique<ArgMaxStep>(op, ctx);
}

}  // namespace tac
