// Dense float fully connected layers.
#include <algorithm>

#include "ir/coded_weights.h"
#include "kernels/flinear/flinear.h"
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

using kernels::kLinearBlock;

// Cut of the work, the same for any number of threads.
constexpr std::size_t kBlocksPerItem = 4;
constexpr std::size_t kRowsPerItem = 32;

class LinearStep final : public Step {
 public:
  LinearStep(const Linear& op, const PrepareContext& ctx)
      : input_(op.input), output_(op.output), kernel_(ctx.kernels().linear_f32) {
    const auto [rows, in_features] = rows_of(ctx.tensor(op.input));
    const std::size_t out_features = rows_of(ctx.tensor(op.output)).channels;
    rows_ = rows;
    n_blocks_ = ceil_div(out_features, kLinearBlock);
    weights_ = AlignedBuffer<float>(n_blocks_ * in_features * kLinearBlock);
    for (std::size_t o = 0; o < out_features; ++o) {
      float* packed =
          weights_.data() + o / kLinearBlock * in_features * kLinearBlock + o % kLinearBlock;
      for (std::size_t k = 0; k < in_features; ++k)
        packed[k * kLinearBlock] = op.weights.data()[o * in_features + k];
    }
    bias_ = expand(op.bias, out_features);
    params_ = {in_features, out_features, weights_.data(), bias_.data()};
    kernel = ctx.kernel_label(KernelId::linear_f32);
    macs = rows * in_features * out_features;
    param_bytes = weights_.bytes() + bias_.bytes();
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    float* y = ctx.write<float>(output_);
    const std::size_t n_rows = ctx.n_samples * rows_, chunks = ceil_div(n_blocks_, kBlocksPerItem);
    ctx.pool->parallel_for(
        ceil_div(n_rows, kRowsPerItem) * chunks,
        [&](std::size_t begin, std::size_t end, std::size_t) {
          for (std::size_t i = begin; i < end; ++i) {
            const std::size_t row = i / chunks * kRowsPerItem, block = i % chunks * kBlocksPerItem;
            kernel_(params_, x + row * params_.in_features, std::min(kRowsPerItem, n_rows - row),
                    params_.in_features, block, std::min(block + kBlocksPerItem, n_blocks_),
                    y + row * params_.out_features, params_.out_features);
          }
        });
  }

 private:
  TensorId input_, output_;
  std::size_t rows_ = 0, n_blocks_ = 0;
  AlignedBuffer<float> weights_, bias_;
  kernels::LinearParams params_{};
  kernels::linear_f32_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Linear& op, const PrepareContext& ctx) {
  return std::make_unique<LinearStep>(op, ctx);
}

std::unique_ptr<Step> prepare(const CodedLinear& op, const PrepareContext& ctx) {
  const auto outputs = static_cast<std::size_t>(ctx.tensor(op.output).dims.back());
  const auto features = static_cast<std::size_t>(ctx.tensor(op.input).dims.back());
  const AlignedBuffer<float> weights = decode(op.weights, outputs, features);
  return prepare(Linear{op.input, op.output, {std::as_bytes(weights.view())}, op.bias}, ctx);
}

}  // namespace tac
