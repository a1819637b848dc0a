// Local response normalisation over the channels.
#include <algorithm>
#include <cmath>

#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

constexpr std::size_t kElementsPerItem = 4096;

class LrnStep final : public Step {
 public:
  LrnStep(const Lrn& op, const PrepareContext& ctx)
      : op_(op), size_(static_cast<std::size_t>(op.size)), before_((size_ - 1) / 2) {
    const auto [rows, channels] = rows_of(ctx.tensor(op.input));
    rows_ = rows;
    channels_ = channels;
    rows_per_item_ = std::max<std::size_t>(1, kElementsPerItem / channels_);
    thread_scratch_bytes = (2 * channels_ + size_) * sizeof(float);
    kernel = "scan";
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(op_.input);
    float* y = ctx.write<float>(op_.output);
    const std::size_t rows = ctx.n_samples * rows_;
    ctx.pool->parallel_for(ceil_div(rows, rows_per_item_),
                           [&](std::size_t begin, std::size_t end, std::size_t thread) {
                             float* scratch = ctx.scratch_of_thread<float>(thread);
                             const std::size_t last = std::min(rows, end * rows_per_item_);
                             for (std::size_t r = begin * rows_per_item_; r < last; ++r)
                               normalise(x + r * channels_, y + r * channels_, scratch);
                           });
  }

 private:
  void normalise(const float* x, float* y, float* scratch) const noexcept {
    float* sums = scratch;
    float* squares = scratch + channels_;  // with zeros around
    std::fill_n(squares, channels_ + size_, 0.0F);
    for (std::size_t c = 0; c < channels_; ++c) squares[before_ + c] = x[c] * x[c];
    std::fill_n(sums, channels_, 0.0F);
    for (std::size_t i = 0; i < size_; ++i) {
      for (std::size_t c = 0; c < channels_; ++c) sums[c] += squares[c + i];
    }
    const float alpha = op_.alpha / static_cast<float>(size_);
    for (std::size_t c = 0; c < channels_; ++c) sums[c] = op_.bias + alpha * sums[c];
    // What every network has, without a call of pow.
    if (op_.beta == 0.75F) {
      for (std::size_t c = 0; c < channels_; ++c)
        y[c] = x[c] / std::sqrt(sums[c] * std::sqrt(sums[c]));
    } else {
      for (std::size_t c = 0; c < channels_; ++c) y[c] = x[c] / std::pow(sums[c], op_.beta);
    }
  }

  Lrn op_;
  std::size_t size_, before_;
  std::size_t rows_ = 0, channels_ = 0, rows_per_item_ = 0;
};

}  // namespace

std::unique_ptr<Step> prepare(const Lrn& op, const PrepareContext& ctx) {
  return std::make_unique<LrnStep>(op, ctx);
}

}  // namespace tac
