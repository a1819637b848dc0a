#include "runtime/plan.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>
#include <optional>
#include <utility>

#include "base/error.h"
#include "ir/op_names.h"
#include "runtime/layout.h"
#include "runtime/memory_planner.h"

namespace tac {

std::string PrepareContext::kernel_label(KernelId id) const {
  static constexpr std::string_view kNames[] = {
#define TAC_KERNEL(name) #name,
#include "kernels/kernels.def"
#undef TAC_KERNEL
  };
  const auto index = static_cast<std::size_t>(id);
  return std::string(kNames[index]) + "/" + std::string(selection.kernel_backend[index]);
}

namespace {

// Which tensors an op reads and writes, from the names of its fields.
struct TensorUses {
  std::vector<TensorId> reads, writes;

  void operator()(std::string_view field, TensorId& id) {
    (field == "output" ? writes : reads).push_back(id);
  }
  void operator()(std::string_view, TensorList& list) {
    reads.insert(reads.end(), list.ids.begin(), list.ids.end());
  }
  template <class Field>
  void operator()(std::string_view, Field&) {}
};

TensorUses tensor_uses(const Op& op) {
  TensorUses uses;
  OpVariant copy = op.op;
  visit_op(copy, [&](auto& held) { held.fields(uses); });
  return uses;
}

std::unique_ptr<Step> prepare_op(const Op& op, const PrepareContext& ctx) {
  std::unique_ptr<Step> step;
  try {
    visit_op(op.op, [&](const auto& held) { step = prepare(held, ctx); });
  } catch (const Error& e) {
    throw Error(e.code(), op.name, e.tensor(), e.detail());
  }
  if (step == nullptr) return nullptr;
  step->name = op.name;
  step->kind = op_kind(op);
  const TensorUses uses = tensor_uses(op);
  for (const auto* ids : {&uses.reads, &uses.writes}) {
    for (const TensorId id : *ids) {
      if (!ctx.tensor(id).is_constant) step->io_bytes += sample_bytes(ctx.tensor(id));
    }
  }
  return step;
}

// First and last step in which the memory of a group of aliases is needed.
struct Lifetime {
  std::size_t first = SIZE_MAX, last = 0;
  void include(std::size_t step) {
    first = std::min(first, step);
    last = std::max(last, step);
  }
};

}  // namespace

Plan::Plan(const Graph& graph, const kernels::Selection& selection, std::size_t n_threads) {
  const PrepareContext ctx{graph, selection, n_threads};
  const std::size_t n_tensors = graph.tensors.size();

  // Steps, and for each group of aliases (by its first tensor) when it lives.
  std::vector<TensorId> root(n_tensors);
  std::iota(root.begin(), root.end(), TensorId{0});
  std::vector<Lifetime> lifetimes(n_tensors);
  for (const ModelInput& input : graph.inputs) lifetimes[input.tensor].include(0);
  for (const Op& op : graph.ops) {
    if (const auto* reshape = std::get_if<Reshape>(&op.op)) {
      root[reshape->output] = root[reshape->input];
      continue;
    }
    const TensorUses uses = tensor_uses(op);
    for (const TensorId id : uses.reads) lifetimes[root[id]].include(steps.size());
    for (const TensorId id : uses.writes) lifetimes[root[id]].include(steps.size());
    steps.push_back({prepare_op(op, ctx), 0});
  }

  // The caller's arrays serve as far as they go.
  placements.resize(n_tensors);
  std::vector<bool> placed(n_tensors, false);
  for (std::size_t i = 0; i < graph.inputs.size(); ++i) {
    placements[graph.inputs[i].tensor] = {Placement::Kind::kInput, i, 0};
    placed[graph.inputs[i].tensor] = true;
  }
  for (std::size_t i = 0; i < graph.outputs.size(); ++i) {
    const TensorId group = root[graph.outputs[i]];
    if (placed[group]) {
      copies.push_back({graph.outputs[i], i});
      lifetimes[group].include(steps.size());
    } else {
      placements[group] = {Placement::Kind::kOutput, i, 0};
      placed[group] = true;
    }
  }

  std::size_t constant_bytes = 0;
  for (TensorId id = 0; id < n_tensors; ++id) {
    const Tensor& tensor = graph.tensors[id];
    if (!tensor.is_constant) {
      largest_sample_bytes = std::max(largest_sample_bytes, sample_bytes(tensor));
      continue;
    }
    placements[id] = {Placement::Kind::kConstant, 0, constant_bytes};
    placed[id] = true;
    constant_bytes += round_up(tensor.data.size(), kCacheLine);
  }
  constants = AlignedBuffer<std::byte>(constant_bytes);
  for (TensorId id = 0; id < n_tensors; ++id) {
    const Tensor& tensor = graph.tensors[id];
    if (tensor.is_constant)
      std::memcpy(constants.data() + placements[id].offset, tensor.data.data(), tensor.data.size());
  }

  // The rest goes into the arena.
  std::vector<BufferUsage> usages;
  std::vector<std::size_t*> offsets;  // where to put the offset of each usage
  image_offsets.assign(graph.inputs.size(), 0);
  for (std::size_t i = 0; i < graph.inputs.size(); ++i) {
    if (graph.inputs[i].preprocess.lut.size() == 0) continue;
    const TensorId id = graph.inputs[i].tensor;
    usages.push_back({sample_bytes(graph.tensors[id]), 0, lifetimes[id].last});
    offsets.push_back(&image_offsets[i]);
  }
  for (TensorId id = 0; id < n_tensors; ++id) {
    if (root[id] != id || placed[id] || lifetimes[id].first == SIZE_MAX) continue;
    usages.push_back({sample_bytes(graph.tensors[id]), lifetimes[id].first, lifetimes[id].last});
    offsets.push_back(&placements[id].offset);
  }
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const Step& step = *steps[i].step;
    thread_scratch_bytes =
        std::max(thread_scratch_bytes, round_up(step.thread_scratch_bytes, kCacheLine));
    param_bytes += step.param_bytes;
    if (step.sample_scratch_bytes == 0) continue;
    usages.push_back({step.sample_scratch_bytes, i, i});
    offsets.push_back(&steps[i].scratch_offset);
  }
  param_bytes += constants.bytes();
  const MemoryPlan memory = plan_memory(usages);
  for (std::size_t i = 0; i < usages.size(); ++i) *offsets[i] = memory.offsets[i];
  arena_sample_bytes = memory.total_bytes;

  for (TensorId id = 0; id < n_tensors; ++id) placements[id] = placements[root[id]];
}

}  // namespace tac
