#include "runtime/step.h"

#include <algorithm>
#include <array>

namespace tac {

namespace {

// Cut of the work, the same for any number of threads. A multiple of a word of channels.
constexpr std::size_t kElementsPerItem = 4096;

}  // namespace

void Step::lead(Leads how, TensorId output, const PrepareContext& ctx) {
  leads = how;
  made_ = output;
  const auto [rows, channels] = rows_of(ctx.tensor(output));
  made_rows_ = rows;
  made_channels_ = channels;
  chain_kernel_ = ctx.kernels().chain_f32;
  if (how == Leads::kFromRegisters) chain = {{nullptr, output}};
}

void Step::run_chain(const RunContext& ctx, const Tile& tile, const kernels::ChainSource& source,
                     const kernels::ChainOp* first) const noexcept {
  std::array<kernels::ChainOp, kMaxChain + 1> ops;
  std::size_t n = 0;
  if (first != nullptr) ops[n++] = *first;
  for (const auto& [step, value] : chain) {
    if (step != nullptr) {
      ops[n++] = step->chain_op(ctx, tile, value);
      continue;
    }
    kernels::ChainOp& op = ops[n++];
    op.kind = kernels::ChainKind::kStore;
    op.y = ctx.write<float>(value) + (tile.sample * made_rows_ + tile.row) * made_channels_ +
           tile.channel;
    op.y_stride = made_channels_;
  }
  chain_kernel_(source, tile.n_rows, tile.n_channels, ops.data(), n);
}

void Step::finish_tile(const RunContext& ctx, const Tile& tile) const noexcept {
  if (!chain.empty()) {
    const float* made = ctx.read<float>(made_) +
                        (tile.sample * made_rows_ + tile.row) * made_channels_ + tile.channel;
    run_chain(ctx, tile, {nullptr, made, made_channels_}, nullptr);
  }
  for (const Step* follower : followers) follower->run_tile(ctx, tile);
}

void Step::finish_tile(const RunContext& ctx, const Tile& tile, const kernels::ChainSource& sums,
                       const kernels::ChainOp& first) const noexcept {
  run_chain(ctx, tile, sums, &first);
  for (const Step* follower : followers) follower->run_tile(ctx, tile);
}

TileStep::TileStep(TensorId output, const PrepareContext& ctx)
    : rows_(rows_of(ctx.tensor(output)).rows),
      channels_(rows_of(ctx.tensor(output)).channels),
      rows_per_item_(std::max<std::size_t>(1, kElementsPerItem / channels_)),
      channels_per_item_(std::min(channels_, kElementsPerItem)) {
  follows = true;
  if (ctx.tensor(output).dtype == DType::kF32) lead(Leads::kFromMemory, output, ctx);
}

void TileStep::run(const RunContext& ctx) const noexcept {
  const std::size_t row_items = ceil_div(rows_, rows_per_item_),
                    channel_items = ceil_div(channels_, channels_per_item_);
  ctx.pool->parallel_for(ctx.n_samples * row_items * channel_items,
                         [&](std::size_t begin, std::size_t end, std::size_t) {
                           for (std::size_t i = begin; i < end; ++i) {
                             const std::size_t row = i / channel_items % row_items * rows_per_item_,
                                               channel = i % channel_items * channels_per_item_;
                             const Tile tile{i / channel_items / row_items, row,
                                             std::min(rows_per_item_, rows_ - row), channel,
                                             std::min(channels_per_item_, channels_ - channel)};
                             run_tile(ctx, tile);
                             finish_tile(ctx, tile);
                           }
                         });
}

RowStep::RowStep(TensorId input, TensorId output, const PrepareContext& ctx)
    : in_(map_of(ctx.tensor(input))),
      out_(map_of(ctx.tensor(output))),
      input_(input),
      output_(output) {
  lead(Leads::kFromMemory, output, ctx);
}

void RowStep::run(const RunContext& ctx) const noexcept {
  const float* x = ctx.read<float>(input_);
  float* y = ctx.write<float>(output_);
  ctx.pool->parallel_for(
      ctx.n_samples * out_.h, [&](std::size_t begin, std::size_t end, std::size_t) {
        for (std::size_t i = begin; i < end; ++i) {
          const std::size_t sample = i / out_.h, oy = i % out_.h;
          make_row(x + sample * in_.h * in_.w * in_.c, oy, y + i * out_.w * out_.c);
          finish_tile(ctx, {sample, oy * out_.w, out_.w, 0, out_.c});
        }
      });
}

}  // namespace tac
