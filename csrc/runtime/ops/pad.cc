// Constant padding and cropping of a float tensor.
#include <algorithm>
#include <cstring>

#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

class PadStep final : public Step {
 public:
  PadStep(const Pad& op, const PrepareContext& ctx)
      : input_(op.input),
        output_(op.output),
        value_(op.value),
        in_size_(element_count(ctx.tensor(op.input).dims)),
        out_size_(element_count(ctx.tensor(op.output).dims)) {
    const Tensor& in = ctx.tensor(op.input);
    const Tensor& out = ctx.tensor(op.output);
    for (std::size_t i = 0; i < in.dims.size(); ++i)
      axes_.push_back({in.dims[i], out.dims[i], op.begin[i]});
    if (axes_.empty()) axes_.push_back({1, 1, 0});
    rows_ = out_size_ / static_cast<std::size_t>(axes_.back().out);
    kernel = "copy";
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    float* y = ctx.write<float>(output_);
    ctx.pool->parallel_for(ctx.n_samples * rows_,
                           [&](std::size_t begin, std::size_t end, std::size_t) {
                             for (std::size_t i = begin; i < end; ++i) {
                               copy_row(x + i / rows_ * in_size_, i % rows_,
                                        y + i * static_cast<std::size_t>(axes_.back().out));
                             }
                           });
  }

 private:
  struct Axis {
    std::int64_t in, out, begin;
  };

  void copy_row(const float* x, std::size_t row, float* y) const noexcept {
    const Axis& last = axes_.back();
    std::int64_t offset = 0, stride = last.in;
    auto rest = static_cast<std::int64_t>(row);
    bool inside = true;
    for (std::size_t axis = axes_.size() - 1; axis-- > 0;) {
      const std::int64_t position = rest % axes_[axis].out - axes_[axis].begin;
      rest /= axes_[axis].out;
      inside = inside && position >= 0 && position < axes_[axis].in;
      offset += position * stride;
      stride *= axes_[axis].in;
    }
    // Output positions [from, to) come from the input.
    const std::int64_t from = inside ? std::clamp<std::int64_t>(last.begin, 0, last.out) : last.out;
    const std::int64_t to =
        inside ? std::clamp<std::int64_t>(last.begin + last.in, from, last.out) : last.out;
    std::fill_n(y, from, value_);
    if (to > from) {
      std::memcpy(y + from, x + offset + (from - last.begin),
                  static_cast<std::size_t>(to - from) * sizeof(float));
    }
    std::fill_n(y + to, last.out - to, value_);
  }

  TensorId input_, output_;
  float value_;
  std::size_t in_size_, out_size_, rows_ = 0;
  std::vector<Axis> axes_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Pad& op, const PrepareContext& ctx) {
  return std::make_unique<PadStep>(op, ctx);
}

}  // namespace tac
