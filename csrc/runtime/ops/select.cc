// Chosen positions along an axis.
#include <algorithm>
#include <cstring>

#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

constexpr std::size_t kElementsPerItem = 8192;

// The tensor is [outer][size][inner], the output [outer][indices][inner]: runs of neighbouring
// positions are copied whole.
class SelectStep final : public Step {
 public:
  SelectStep(const Select& op, const PrepareContext& ctx) : input_(op.input), output_(op.output) {
    const std::vector<std::int64_t>& dims = ctx.tensor(op.input).dims;
    const auto axis = static_cast<std::size_t>(op.axis);
    outer_ = element_count(std::span(dims).first(axis));
    const std::size_t inner = element_count(std::span(dims).subspan(axis + 1));
    in_row_ = static_cast<std::size_t>(dims[axis]) * inner;
    out_row_ = op.indices.size() * inner;
    for (const std::int32_t index : op.indices.view()) {
      const std::size_t begin = static_cast<std::size_t>(index) * inner;
      if (!runs_.empty() && runs_.back().begin + runs_.back().size == begin) {
        runs_.back().size += inner;
      } else {
        runs_.push_back({begin, inner});
      }
    }
    rows_per_item_ = std::max<std::size_t>(1, kElementsPerItem / out_row_);
    kernel = "copy";
    param_bytes = runs_.size() * sizeof(Run);
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    float* y = ctx.write<float>(output_);
    const std::size_t rows = ctx.n_samples * outer_;
    ctx.pool->parallel_for(ceil_div(rows, rows_per_item_),
                           [&](std::size_t begin, std::size_t end, std::size_t) {
                             const std::size_t last = std::min(rows, end * rows_per_item_);
                             for (std::size_t r = begin * rows_per_item_; r < last; ++r)
                               copy_row(x + r * in_row_, y + r * out_row_);
                           });
  }

 private:
  struct Run {
    std::size_t begin, size;
  };

  void copy_row(const float* x, float* y) const noexcept {
    for (const Run& run : runs_) {
      if (run.size == 1) {
        *y = x[run.begin];
      } else {
        std::memcpy(y, x + run.begin, run.size * sizeof(float));
      }
      y += run.size;
    }
  }

  TensorId input_, output_;
  std::size_t outer_ = 0, in_row_ = 0, out_row_ = 0, rows_per_item_ = 0;
  std::vector<Run> runs_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Select& op, const PrepareContext& ctx) {
  return std::make_unique<SelectStep>(op, ctx);
}

}  // namespace tac
