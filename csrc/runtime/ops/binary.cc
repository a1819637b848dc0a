// Elementwise functions of two floats, with NumPy broadcasting.
#include <algorithm>
#include <array>
#include <optional>

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

// Any broadcasting.
class BroadcastStep final : public Step {
 public:
  BroadcastStep(const Binary& op, const PrepareContext& ctx)
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
    ctx.pool->parallel_for(ctx.n_samples * runs * chunks_, [&](std::size_t begin, std::size_t end,
                                                               std::size_t) {
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
        kernel_(op_.kind,
                {a + sample * a_sample_ + a_offset + first * inner_.a_stride, 0, inner_.a_stride},
                {b + sample * b_sample_ + b_offset + first * inner_.b_stride, 0, inner_.b_stride},
                1, std::min(kElementsPerItem, inner_.size - first),
                y + sample * size_ + run * inner_.size + first, 0);
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

// An operand that is seen as [rows][channels] of the output: value (r, c) of a sample is at
// r * row_stride + c * step.
struct RowOperand {
  TensorId tensor;
  std::size_t sample_size, row_stride, step;
};

std::optional<RowOperand> row_operand(TensorId id, const Tensor& tensor, const Tensor& out) {
  const auto [rows, channels] = rows_of(tensor);
  const Rows out_rows = rows_of(out);
  const std::size_t sample_size = tensor.is_constant ? 0 : rows * channels;
  const bool whole_row = channels == out_rows.channels, whole_map = rows == out_rows.rows;
  if ((!whole_row && channels != 1) || (!whole_map && rows != 1)) return std::nullopt;
  return RowOperand{id, sample_size, whole_map && out_rows.rows != 1 ? channels : 0,
                    whole_row ? std::size_t{1} : 0};
}

// Operands that are a whole map, a row of it, a value for each row or a single value.
class RowBinaryStep final : public TileStep {
 public:
  RowBinaryStep(const Binary& op, const RowOperand& a, const RowOperand& b,
                const PrepareContext& ctx)
      : TileStep(op.output, ctx),
        kind_(op.kind),
        a_(a),
        b_(b),
        output_(op.output),
        kernel_(ctx.kernels().binary_f32) {
    kernel = ctx.kernel_label(KernelId::binary_f32);
  }

  void run_tile(const RunContext& ctx, const Tile& t) const noexcept override {
    const kernels::BinaryOperand a = operand(ctx, a_, t), b = operand(ctx, b_, t);
    float* y = ctx.write<float>(output_) + first_of(t);
    if (t.n_channels == channels_ && runs_on(a) && runs_on(b)) {
      kernel_(kind_, a, b, 1, t.n_rows * channels_, y, 0);
    } else {
      kernel_(kind_, a, b, t.n_rows, t.n_channels, y, channels_);
    }
  }

  bool chains(TensorId value) const noexcept override {
    if (a_.tensor == b_.tensor || kind_ == BinaryKind::kDiv || kind_ == BinaryKind::kPow ||
        kind_ > BinaryKind::kPRelu) {
      return false;
    }
    return value == a_.tensor || kind_ == BinaryKind::kAdd || kind_ == BinaryKind::kMul;
  }
  kernels::ChainOp chain_op(const RunContext& ctx, const Tile& t,
                            TensorId value) const noexcept override {
    kernels::ChainOp op{};
    op.kind = chain_kind();
    op.operand = operand(ctx, value == a_.tensor ? b_ : a_, t);
    return op;
  }

 private:
  kernels::ChainKind chain_kind() const noexcept {
    switch (kind_) {
      case BinaryKind::kSub: return kernels::ChainKind::kSub;
      case BinaryKind::kMul: return kernels::ChainKind::kMul;
      case BinaryKind::kMin: return kernels::ChainKind::kMin;
      case BinaryKind::kMax: return kernels::ChainKind::kMax;
      case BinaryKind::kPRelu: return kernels::ChainKind::kPRelu;
      default: return kernels::ChainKind::kAdd;
    }
  }
  static kernels::BinaryOperand operand(const RunContext& ctx, const RowOperand& operand,
                                        const Tile& t) noexcept {
    return {ctx.read<float>(operand.tensor) + t.sample * operand.sample_size +
                t.row * operand.row_stride + t.channel * operand.step,
            operand.row_stride, operand.step};
  }
  // All rows of the tile are one long row.
  bool runs_on(const kernels::BinaryOperand& operand) const noexcept {
    return operand.stride == channels_ * operand.step;
  }

  BinaryKind kind_;
  RowOperand a_, b_;
  TensorId output_;
  kernels::binary_f32_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const Binary& op, const PrepareContext& ctx) {
  const Tensor& out = ctx.tensor(op.output);
  const auto a = row_operand(op.a, ctx.tensor(op.a), out);
  const auto b = row_operand(op.b, ctx.tensor(op.b), out);
  if (a && b) return std::make_unique<RowBinaryStep>(op, *a, *b, ctx);
  return std::make_unique<BroadcastStep>(op, ctx);
}

}  // namespace tac
