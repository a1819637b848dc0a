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

// A step that shall run, and what it reads and writes.
struct Member {
  std::unique_ptr<Step> step;
  std::vector<TensorId> reads;
  TensorId output = 0;
};

// A leader, and the elementwise ops that follow it tile by tile.
struct Group {
  std::vector<Member> members;
  std::size_t n_chained = 0;  // followers in the chain, the first ones
};

// Puts every step that can into the group that makes the last of its inputs; all others are
// complete by then.
std::vector<Group> group_steps(const Graph& graph, const PrepareContext& ctx,
                               const std::vector<TensorId>& root) {
  constexpr std::size_t kBeforeAll = SIZE_MAX;
  std::vector<Group> groups;
  std::vector<std::size_t> made_by(graph.tensors.size(), kBeforeAll);  // by root: its group
  for (const Op& op : graph.ops) {
    if (std::holds_alternative<Reshape>(op.op)) continue;
    const TensorUses uses = tensor_uses(op);
    Member member{prepare_op(op, ctx), uses.reads, uses.writes.front()};
    const auto group_of = [&](TensorId id) { return made_by[root[id]]; };
    std::size_t last = kBeforeAll;
    for (const TensorId id : member.reads) {
      if (group_of(id) != kBeforeAll && (last == kBeforeAll || group_of(id) > last)) {
        last = group_of(id);
      }
    }
    bool follows = member.step->follows && last != kBeforeAll &&
                   groups[last].members[0].step->leads != Step::Leads::kNot;
    // All of a group is cut into the same tiles.
    if (follows) {
      const Rows tiled = rows_of(graph.tensors[groups[last].members[0].output]);
      const auto fits = [&](TensorId id) {
        const Rows rows = rows_of(graph.tensors[id]);
        return rows.rows == tiled.rows && rows.channels == tiled.channels;
      };
      follows = fits(member.output);
      for (const TensorId id : member.reads) {
        if (group_of(id) != last) continue;
        follows = follows && fits(id) && graph.tensors[id].dtype == DType::kF32;
      }
    }
    const std::size_t group = follows ? last : groups.size();
    made_by[root[member.output]] = group;
    if (!follows) groups.emplace_back();
    groups[group].members.push_back(std::move(member));
  }
  return groups;
}

// Words of channels that are mostly empty are slower than a tile that runs on from row to row.
constexpr std::size_t kMinChainChannels = 8;

// Chooses the chain of every group. Returns which tensors are never in memory.
std::vector<bool> make_chains(const Graph& graph, std::vector<Group>& groups,
                              const std::vector<TensorId>& root) {
  std::vector<std::size_t> readers(graph.tensors.size(), 0);  // by root
  for (const TensorId id : graph.outputs) ++readers[root[id]];
  for (const Group& group : groups) {
    for (const Member& member : group.members) {
      for (const TensorId id : member.reads) ++readers[root[id]];
    }
  }
  std::vector<bool> in_registers(graph.tensors.size(), false);
  for (Group& group : groups) {
    Step& leader = *group.members[0].step;
    if (leader.leads == Step::Leads::kNot) continue;
    leader.chain.clear();
    TensorId value = group.members[0].output;
    std::size_t others = readers[root[value]];  // that read the value from memory
    bool in_memory = leader.leads == Step::Leads::kFromMemory;
    const bool few_channels = rows_of(graph.tensors[value]).channels < kMinChainChannels;
    const auto store = [&] {
      if (!in_memory && others != 0) leader.chain.push_back({nullptr, value});
      if (!in_memory && others == 0) in_registers[root[value]] = true;
    };
    // The links that take `value`: their number is not known before all of them are.
    std::vector<Step::Link> takers;
    const auto next_value = [&] {
      others -= takers.size();
      store();
      leader.chain.insert(leader.chain.end(), takers.begin(), takers.end());
      takers.clear();
    };
    for (std::size_t i = 1; i < group.members.size(); ++i) {
      const Member& member = group.members[i];
      const auto reads =
          std::ranges::count_if(member.reads, [&](TensorId id) { return root[id] == root[value]; });
      const auto taken =
          std::ranges::find_if(member.reads, [&](TensorId id) { return root[id] == root[value]; });
      if (reads != 1 || !member.step->chains(*taken) || (in_memory && few_channels) ||
          leader.chain.size() + takers.size() + 3 > kMaxChain) {
        break;
      }
      takers.push_back({member.step.get(), *taken});
      group.n_chained = i;
      if (graph.tensors[member.output].dtype == DType::kBits) continue;
      next_value();
      value = member.output;
      others = readers[root[value]];
      in_memory = false;
    }
    next_value();
  }
  // Reshaped forms too.
  for (TensorId id = 0; id < root.size(); ++id) in_registers[id] = in_registers[root[id]];
  return in_registers;
}

// A follower writes over an operand that nobody reads afterwards: the tile is in the cache, and the
// memory is needed once.
void share_memory(const Graph& graph, const std::vector<Group>& groups,
                  const std::vector<bool>& in_registers, std::vector<TensorId>& root) {
  constexpr std::size_t kForever = SIZE_MAX;
  // By root: the last group that reads it, and how often that does.
  std::vector<std::size_t> last(graph.tensors.size(), 0), times(graph.tensors.size(), 0);
  for (std::size_t g = 0; g < groups.size(); ++g) {
    for (const Member& member : groups[g].members) {
      for (const TensorId id : member.reads) {
        times[root[id]] = last[root[id]] == g ? times[root[id]] + 1 : 1;
        last[root[id]] = g;
      }
    }
  }
  for (const TensorId id : graph.outputs) last[root[id]] = kForever;
  for (const ModelInput& input : graph.inputs) last[root[input.tensor]] = kForever;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    std::vector<TensorId> spare;  // roots
    const std::vector<Member>& members = groups[g].members;
    for (std::size_t i = 1; i < members.size(); ++i) {
      const Rows rows = rows_of(graph.tensors[members[i].output]);
      for (const TensorId id : members[i].reads) {
        const Tensor& tensor = graph.tensors[id];
        const Rows read = rows_of(tensor);
        if (!tensor.is_constant && tensor.dtype == DType::kF32 && read.rows == rows.rows &&
            read.channels == rows.channels && last[root[id]] == g && times[root[id]] == 1 &&
            !in_registers[root[id]]) {
          spare.push_back(root[id]);
        }
      }
      const TensorId output = root[members[i].output];
      if (in_registers[output] || graph.tensors[members[i].output].dtype != DType::kF32 ||
          spare.empty()) {
        continue;
      }
      const TensorId from = spare.back();
      spare.pop_back();
      last[from] = last[output];
      times[from] = times[output];
      std::ranges::replace(root, output, from);  // its reshaped forms come along
    }
  }
}

}  // namespace

Plan::Plan(const Graph& graph, const kernels::Selection& selection, std::size_t n_threads) {
  const PrepareContext ctx{graph, selection, n_threads};
  const std::size_t n_tensors = graph.tensors.size();

  // Tensors that share memory are a group of aliases, named by one of them.
  std::vector<TensorId> root(n_tensors);
  std::iota(root.begin(), root.end(), TensorId{0});
  for (const Op& op : graph.ops) {
    if (const auto* reshape = std::get_if<Reshape>(&op.op)) {
      root[reshape->output] = root[reshape->input];
    }
  }
  std::vector<Group> groups = group_steps(graph, ctx, root);
  const std::vector<bool> in_registers = make_chains(graph, groups, root);
  share_memory(graph, groups, in_registers, root);

  // When each group of aliases lives.
  std::vector<Lifetime> lifetimes(n_tensors);
  for (const ModelInput& input : graph.inputs) lifetimes[input.tensor].include(0);
  for (Group& group : groups) {
    PlannedStep planned;
    for (std::size_t i = 0; i < group.members.size(); ++i) {
      Member& member = group.members[i];
      if (!in_registers[member.output]) lifetimes[root[member.output]].include(steps.size());
      for (const TensorId id : member.reads) {
        if (!in_registers[id]) lifetimes[root[id]].include(steps.size());
      }
      if (i == 0) {
        planned.step = std::move(member.step);
        continue;
      }
      if (i > group.n_chained) planned.step->followers.push_back(member.step.get());
      planned.followers.push_back(std::move(member.step));
    }
    steps.push_back(std::move(planned));
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
    batch_bytes += step.batch_bytes;
    flow_sample_bytes += step.io_bytes;
    for (const auto& follower : steps[i].followers) {
      param_bytes += follower->param_bytes;
      flow_sample_bytes += follower->io_bytes;
    }
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
