// Elementwise functions of two floats, with NumPy broadcasting.
#include <algorithm>
#include <array>

#include "kernels/elementwise/elementwise.h"
#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

constexpr std::size_t kMaxRank = 8;
constexpr std::size_t kElementsPerItem = 4096;

// An output axis and how far a step along it moves in each operand (0: broadcast).
struct Axis {
  std::size_t size, a_stride, b_stride;
};

// Per-sample axes of the output, outermost first; axes of size 1 are dropped and neighbours merged
// where both operands run on from one to the next.
std::vector<Axis> broadcast_axes(const Tensor& a, const Tensor& b, const Tensor& out) {
  const auto dim = [&](const Tensor& t, std::size_t from_last) {
    return from_last < t.dims.size()
               ? static_cast<std::size_t>(t.dims[t.dims.size() - 1 - from_last])
               : 1;
  };
  std::vector<Axis> axes;  // innermost first
  std::size_t a_stride = 1, b_stride = 1;
  for (std::size_t i = 0; i < out.dims.size(); ++i) {
    const std::size_t size = dim(out, i), a_size = dim(a, i), b_size = dim(b, i);
    const Axis axis{size, a_size == 1 ? 0 : a_stride, b_size == 1 ? 0 : b_stride};
    a_stride *= a_size;
    b_stride *= b_size;
    if (size == 1) continue;
    if (!axes.empty()) {
      Axis& inner = axes.back();
      if (axis.a_stride == inner.size * inner.a_stride &&
          axis.b_stride == inner.size * inner.b_stride) {
        inner.size *= size;
        continue;
      }
    }
    axes.push_back(axis);
  }
  if (axes.empty()) axes.push_back({1, 0, 0});
  std::ranges::reverse(axes);
  return axes;
}

class BinaryStep final : public Step {
 public:
  BinaryStep(const Binary& op, const PrepareContext& ctx)
      : op_(op),
        size_(element_count(ctx.tensor(op.output).dims)),
        a_sample_(ctx.tensor(op.a).is_constant ? 0 : element_count(ctx.tensor(op.a).dims)),
        b_sample_(ctx.tensor(op.b).is_constant ? 0 : element_count(ctx.tensor(op.b).dims)),
        kernel_(ctx.kernels().binary_f32) {
    std::vector<Axis> axes =
        broadcast_axes(ctx.tensor(op.a), ctx.tensor(op.b), ctx.tensor(op.output));
    inner_ = axes.back();
    axes.pop_back();
    n_outer_axes_ = axes.size();
    std::ranges::copy(axes, outer_.begin());
    chunks_ = ceil_div(inner_.size, kElementsPerItem);
    kernel = ctx.kernel_label(KernelId::binary_f32);
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* a = ctx.read<float>(op_.a);
    const float* b = ctx.read<float>(op_.b);
    float* y = ctx.write<float>(op_.output);
    const std::size_t runs = size_ / inner_.size;  // per sample
    ctx.pool->parallel_for(
        ctx.n_samples * runs * chunks_, [&](std::size_t begin, std::size_t end, std::size_t) {
          std::array<std::size_t, kMaxRank> index{};
          std::size_t a_offset = 0, b_offset = 0;
          for (std::size_t i = begin; i < end; ++i) {
            const std::size_t chunk = i % chunks_, run = i / chunks_ % runs,
                              sample = i / chunks_ / runs;
            if (i == begin) {
              std::size_t rest = run;
              for (std::size_t axis = n_outer_axes_; axis-- > 0;) {
                index[axis] = rest % outer_[axis].size;
                rest /= outer_[axis].size;
                a_offset += index[axis] * outer_[axis].a_stride;
                b_offset += index[axis] * outer_[axis].b_stride;
              }
            }
            const std::size_t first = chunk * kElementsPerItem;
            kernel_(op_.kind, a + sample * a_sample_ + a_offset + first * inner_.a_stride,
                    inner_.a_stride, b + sample * b_sample_ + b_offset + first * inner_.b_stride,
                    inner_.b_stride, std::min(kElementsPerItem, inner_.size - first),
                    y + sample * size_ + run * inner_.size + first);
            if (chunk + 1 != chunks_) continue;
            for (std::size_t axis = n_outer_axes_; axis-- > 0;) {
              a_offset += outer_[axis].a_stride;
              b_offset += outer_[axis].b_stride;
              if (++index[axis] != outer_[axis].size) break;
              a_offset -= outer_[axis].size * outer_[axis].a_stride;
              b_offset -= outer_[axis].size * outer_[axis].b_stride;
              index[axis] = 0;
            }
          }
        });
  }

 private:
  Binary op_;
  std::size_t size_, a_sample_, b_sample_;
  Axis inner_{};
  std::array<Axis, kMaxRank> outer_{};
  std::size_t n_outer_axes_ = 0, chunks_ = 0;
  kernels::binary_f32_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Binary& op, const PrepareContext& ctx) {
  return std::make_unique<BinaryStep>(op, ctx);
}

}  // namespace tac
