// Many values to one, over any axes.
#include "kernels/reduce/reduce.h"

#include <algorithm>

#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

constexpr std::size_t kElementsPerItem = 8192;
constexpr std::size_t kColumnsPerItem = 256;

// [outer][size][inner] -> [outer][inner]
struct Pass {
  ReduceKind kind;
  std::size_t outer, size, inner;
};

// What joins the results of the pass before.
ReduceKind next_kind(ReduceKind kind) {
  return kind == ReduceKind::kL1 || kind == ReduceKind::kSumSquare ? ReduceKind::kSum : kind;
}

// A pass for each run of neighbouring axes, the innermost first.
std::vector<Pass> passes_of(const std::vector<std::int64_t>& dims, const Reduce& op) {
  std::vector<Pass> passes;
  ReduceKind kind = op.kind;
  std::size_t kept = 1;  // product of the axes seen that stay
  for (std::size_t axis = dims.size(); axis-- > 0;) {
    const auto size = static_cast<std::size_t>(dims[axis]);
    const bool reduced =
        std::ranges::find(op.axes, static_cast<std::int64_t>(axis)) != op.axes.end();
    const std::size_t outer = element_count(std::span(dims).first(axis));
    if (!reduced || size == 1) {
      kept *= size;
    } else if (!passes.empty() && passes.back().inner == kept) {
      passes.back().outer = outer;
      passes.back().size *= size;
    } else {
      passes.push_back({kind, outer, size, kept});
      kind = next_kind(op.kind);
    }
  }
  if (passes.empty()) passes.push_back({kind, kept, 1, 1});
  return passes;
}

class ReduceStep final : public Step {
 public:
  ReduceStep(const Reduce& op, const PrepareContext& ctx)
      : input_(op.input),
        output_(op.output),
        passes_(passes_of(ctx.tensor(op.input).dims, op)),
        rows_kernel_(ctx.kernels().reduce_rows_f32),
        columns_kernel_(ctx.kernels().reduce_columns_f32) {
    // Results of passes but the last lie in two areas in turn; they get smaller.
    if (passes_.size() > 1) first_area_ = passes_[0].outer * passes_[0].inner;
    const std::size_t second_area =
        passes_.size() > 2 ? passes_[1].outer * passes_[1].inner : std::size_t{0};
    sample_scratch_bytes = (first_area_ + second_area) * sizeof(float);
    kernel = ctx.kernel_label(passes_[0].inner == 1 ? KernelId::reduce_rows_f32
                                                    : KernelId::reduce_columns_f32);
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    std::size_t x_sample = passes_[0].outer * passes_[0].size * passes_[0].inner;
    for (std::size_t i = 0; i < passes_.size(); ++i) {
      const Pass& pass = passes_[i];
      float* y = ctx.write<float>(output_);
      std::size_t y_sample = pass.outer * pass.inner;
      if (i + 1 != passes_.size()) {
        y = reinterpret_cast<float*>(ctx.sample_scratch) + (i % 2 == 0 ? 0 : first_area_);
        y_sample = sample_scratch_bytes / sizeof(float);
      }
      run_pass(ctx, pass, x, x_sample, y, y_sample);
      x = y;
      x_sample = y_sample;
    }
  }

 private:
  void run_pass(const RunContext& ctx, const Pass& pass, const float* x, std::size_t x_sample,
                float* y, std::size_t y_sample) const noexcept {
    if (pass.inner == 1) {
      const std::size_t rows = std::max<std::size_t>(1, kElementsPerItem / pass.size);
      const std::size_t chunks = ceil_div(pass.outer, rows);
      ctx.pool->parallel_for(ctx.n_samples * chunks,
                             [&](std::size_t begin, std::size_t end, std::size_t) {
                               for (std::size_t i = begin; i < end; ++i) {
                                 const std::size_t sample = i / chunks, row = i % chunks * rows;
                                 rows_kernel_(pass.kind, x + sample * x_sample + row * pass.size,
                                              std::min(rows, pass.outer - row), pass.size,
                                              pass.size, y + sample * y_sample + row);
                               }
                             });
      return;
    }
    const std::size_t chunks = ceil_div(pass.inner, kColumnsPerItem);
    ctx.pool->parallel_for(ctx.n_samples * pass.outer * chunks, [&](std::size_t begin,
                                                                    std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) {
        const std::size_t column = i % chunks * kColumnsPerItem, outer = i / chunks % pass.outer,
                          sample = i / chunks / pass.outer;
        columns_kernel_(pass.kind, x + sample * x_sample + outer * pass.size * pass.inner + column,
                        pass.size, pass.inner, std::min(kColumnsPerItem, pass.inner - column),
                        y + sample * y_sample + outer * pass.inner + column);
      }
    });
  }

  TensorId input_, output_;
  std::vector<Pass> passes_;
  std::size_t first_area_ = 0;
  kernels::reduce_rows_f32_fn rows_kernel_;
  kernels::reduce_columns_f32_fn columns_kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Reduce& op, const PrepareContext& ctx) {
  return std::make_unique<ReduceStep>(op, ctx);
}

}  // namespace tac
