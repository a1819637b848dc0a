// Joins float tensors along an axis.
#include <cstring>

#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

class ConcatStep final : public Step {
 public:
  ConcatStep(const Concat& op, const PrepareContext& ctx) : output_(op.output) {
    const Tensor& out = ctx.tensor(op.output);
    const auto axis = static_cast<std::size_t>(op.axis);
    outer_ = element_count(std::span(out.dims).first(axis));
    row_ = element_count(out.dims) / outer_;
    for (const TensorId id : op.inputs.ids) {
      const std::size_t size = element_count(ctx.tensor(id).dims);
      parts_.push_back({id, size / outer_, ctx.tensor(id).is_constant ? 0 : size});
    }
    kernel = "copy";
  }

  void run(const RunContext& ctx) const noexcept override {
    ctx.pool->parallel_for(
        ctx.n_samples * outer_, [&](std::size_t begin, std::size_t end, std::size_t) {
          float* y = ctx.write<float>(output_) + begin * row_;
          for (std::size_t i = begin; i < end; ++i) {
            for (const Part& part : parts_) {
              const float* x =
                  ctx.read<float>(part.tensor) + i / outer_ * part.sample + i % outer_ * part.row;
              std::memcpy(y, x, part.row * sizeof(float));
              y += part.row;
            }
          }
        });
  }

 private:
  struct Part {
    TensorId tensor;
    std::size_t row, sample;  // elements from one outer index, one sample, to the next
  };
  TensorId output_;
  std::size_t outer_ = 0, row_ = 0;
  std::vector<Part> parts_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Concat& op, const PrepareContext& ctx) {
  return std::make_unique<ConcatStep>(op, ctx);
}

}  // namespace tac
