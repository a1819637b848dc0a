// Permutes the axes of a float tensor.
#include <algorithm>
#include <cstring>

#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

// Side of the squares in which a matrix is transposed: 16 floats are a cache line.
constexpr std::size_t kTile = 16;
constexpr std::size_t kRowsOfFewChannels = 1024;

struct Axis {
  std::size_t size, in_stride;
};

// Output axes, outermost first, without axes of size 1; neighbours in both tensors are merged.
std::vector<Axis> permuted_axes(const Tensor& in, const std::vector<std::int64_t>& perm) {
  std::vector<std::size_t> strides(in.dims.size());
  std::size_t stride = 1;
  for (std::size_t i = in.dims.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= static_cast<std::size_t>(in.dims[i]);
  }
  std::vector<Axis> axes;
  for (const std::int64_t p : perm) {
    const auto axis = static_cast<std::size_t>(p);
    const auto size = static_cast<std::size_t>(in.dims[axis]);
    if (size == 1) continue;
    if (!axes.empty() && axes.back().in_stride == size * strides[axis]) {
      axes.back() = {axes.back().size * size, strides[axis]};
    } else {
      axes.push_back({size, strides[axis]});
    }
  }
  return axes;
}

// The few channels of a picture: y[r][c] = x[c * stride + r]. A loop of fixed length inside.
template <std::size_t kChannels>
void interleave(const float* x, std::size_t stride, std::size_t begin, std::size_t end,
                float* y) noexcept {
  for (std::size_t r = begin; r < end; ++r) {
    for (std::size_t c = 0; c < kChannels; ++c) y[r * kChannels + c] = x[c * stride + r];
  }
}

// Seen as matrices: a [.., rows, .., cols] tensor whose output ends in (cols-like, rows-like) axes
// is a stack of matrix transpositions; [C, H, W] -> [H, W, C] is a single one. If the last axis
// stays, runs are copied whole.
class TransposeStep final : public Step {
 public:
  TransposeStep(const Transpose& op, const PrepareContext& ctx)
      : input_(op.input), output_(op.output), size_(element_count(ctx.tensor(op.input).dims)) {
    axes_ = permuted_axes(ctx.tensor(op.input), op.perm);
    while (axes_.size() < 2) axes_.insert(axes_.begin(), {1, 0});
    minor_ = axes_.back();
    axes_.pop_back();
    major_ = axes_.back();
    axes_.pop_back();
    rows_per_item_ = minor_.size <= 4 ? kRowsOfFewChannels : kTile;
    tiles_ = ceil_div(major_.size, rows_per_item_);
    matrices_ = size_ / (major_.size * minor_.size);
    kernel = "copy";
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    float* y = ctx.write<float>(output_);
    const std::size_t items = ctx.n_samples * matrices_ * tiles_;
    ctx.pool->parallel_for(items, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) {
        const std::size_t matrix = i / tiles_, first = i % tiles_ * rows_per_item_;
        std::size_t offset = matrix / matrices_ * size_, rest = matrix % matrices_;
        for (std::size_t axis = axes_.size(); axis-- > 0;) {
          offset += rest % axes_[axis].size * axes_[axis].in_stride;
          rest /= axes_[axis].size;
        }
        copy_rows(x + offset, first, std::min(first + rows_per_item_, major_.size),
                  y + matrix * major_.size * minor_.size);
      }
    });
  }

 private:
  void copy_rows(const float* x, std::size_t begin, std::size_t end, float* y) const noexcept {
    if (minor_.in_stride <= 1) {
      for (std::size_t r = begin; r < end; ++r) {
        std::memcpy(y + r * minor_.size, x + r * major_.in_stride, minor_.size * sizeof(float));
      }
      return;
    }
    if (major_.in_stride == 1 && minor_.size >= 2 && minor_.size <= 4) {
      switch (minor_.size) {
        case 2: return interleave<2>(x, minor_.in_stride, begin, end, y);
        case 3: return interleave<3>(x, minor_.in_stride, begin, end, y);
        default: return interleave<4>(x, minor_.in_stride, begin, end, y);
      }
    }
    for (std::size_t tile = 0; tile < minor_.size; tile += kTile) {
      const std::size_t tile_end = std::min(tile + kTile, minor_.size);
      for (std::size_t r = begin; r < end; ++r) {
        const float* in = x + r * major_.in_stride;
        for (std::size_t c = tile; c < tile_end; ++c)
          y[r * minor_.size + c] = in[c * minor_.in_stride];
      }
    }
  }

  TensorId input_, output_;
  std::size_t size_;
  std::vector<Axis> axes_;  // all but the last two of the output
  Axis major_{}, minor_{};
  std::size_t rows_per_item_ = 0, tiles_ = 0, matrices_ = 0;
};

}  // namespace

std::unique_ptr<Step> prepare(const Transpose& op, const PrepareContext& ctx) {
  return std::make_unique<TransposeStep>(op, ctx);
}

}  // namespace tac
