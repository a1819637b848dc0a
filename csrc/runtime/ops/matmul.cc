// Products of matrices that both come from the data, as those of attention.
#include <algorithm>

#include "kernels/flinear/flinear.h"
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

using kernels::kLinearBlock;

// Cut of the work, the same for any number of threads: columns of b that are packed at a time.
constexpr std::size_t kColumnsPerItem = 4 * kLinearBlock;

// A matrix of b is the weights of a fully connected layer, which are packed for every sample.
class MatMulStep final : public Step {
 public:
  MatMulStep(const MatMul& op, const PrepareContext& ctx)
      : op_(op), zeros_(kColumnsPerItem), kernel_(ctx.kernels().linear_f32) {
    const Tensor &a = ctx.tensor(op.a), &b = ctx.tensor(op.b);
    depth_ = rows_of(a).channels;
    columns_ = rows_of(b).channels;
    matrices_ = rows_of(b).rows / depth_;
    rows_ = rows_of(a).rows / matrices_;
    a_sample_ = a.is_constant ? 0 : element_count(a.dims);
    b_sample_ = b.is_constant ? 0 : element_count(b.dims);
    chunks_ = ceil_div(columns_, kColumnsPerItem);
    thread_scratch_bytes =
        depth_ * std::min(round_up(columns_, kLinearBlock), kColumnsPerItem) * sizeof(float);
    kernel = ctx.kernel_label(KernelId::linear_f32);
    macs = matrices_ * rows_ * depth_ * columns_;
  }

  void run(const RunContext& ctx) const noexcept override {
    ctx.pool->parallel_for(
        ctx.n_samples * matrices_ * chunks_,
        [&](std::size_t begin, std::size_t end, std::size_t thread) {
          auto* packed = ctx.scratch_of_thread<float>(thread);
          for (std::size_t i = begin; i < end; ++i) {
            const std::size_t sample = i / chunks_ / matrices_, matrix = i / chunks_ % matrices_,
                              first = i % chunks_ * kColumnsPerItem,
                              columns = std::min(columns_ - first, kColumnsPerItem);
            const float* a = ctx.read<float>(op_.a) + sample * a_sample_ + matrix * rows_ * depth_;
            const float* b =
                ctx.read<float>(op_.b) + sample * b_sample_ + matrix * depth_ * columns_ + first;
            float* y = ctx.write<float>(op_.output) +
                       (sample * matrices_ + matrix) * rows_ * columns_ + first;
            pack(b, columns, packed);
            kernel_({depth_, columns, packed, zeros_.data()}, a, rows_, depth_, 0,
                    ceil_div(columns, kLinearBlock), y, columns_);
          }
        });
  }

 private:
  void pack(const float* b, std::size_t columns, float* packed) const noexcept {
    for (std::size_t first = 0; first < columns; first += kLinearBlock) {
      const std::size_t n = std::min(columns - first, kLinearBlock);
      for (std::size_t k = 0; k < depth_; ++k, packed += kLinearBlock) {
        std::copy_n(b + k * columns_ + first, n, packed);
        std::fill(packed + n, packed + kLinearBlock, 0.0F);
      }
    }
  }

  MatMul op_;
  std::size_t matrices_, rows_, depth_, columns_;  // per sample
  std::size_t a_sample_, b_sample_;                // 0: a constant
  std::size_t chunks_;
  AlignedBuffer<float> zeros_;
  kernels::linear_f32_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const MatMul& op, const PrepareContext& ctx) {
  return std::make_unique<MatMulStep>(op, ctx);
}

}  // namespace tac
