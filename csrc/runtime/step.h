// What a plan is made of: prepared ops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "ir/graph.h"
#include "kernels/dispatch.h"
#include "runtime/layout.h"

namespace tac {

enum class KernelId : std::size_t {
#define TAC_KERNEL(name) name,
#include "kernels/kernels.def"
#undef TAC_KERNEL
};

// Everything that differs between two runs.
struct RunContext {
  ThreadPool* pool = nullptr;
  std::byte* const* tensors =
      nullptr;  // first sample of each tensor, by id; inputs and constants are only read
  std::size_t n_samples = 0;
  std::byte* sample_scratch =
      nullptr;  // n_samples times the step's sample_scratch_bytes, 64-byte aligned
  std::byte* thread_scratch = nullptr;  // one area per thread, 64-byte aligned
  std::size_t thread_scratch_stride = 0;

  template <class T>
  const T* read(TensorId id) const noexcept {
    return reinterpret_cast<const T*>(tensors[id]);
  }
  template <class T>
  T* write(TensorId id) const noexcept {
    return reinterpret_cast<T*>(tensors[id]);
  }
  template <class T>
  T* scratch_of_thread(std::size_t thread_index) const noexcept {
    return reinterpret_cast<T*>(thread_scratch + thread_index * thread_scratch_stride);
  }
};

struct PrepareContext;

// A rectangle of a tensor [rows][channels] of one sample: what a step makes at a time. It begins at
// a whole word of channels and ends at one or with the last channel.
struct Tile {
  std::size_t sample, row, n_rows, channel, n_channels;
};

// One prepared op: packed weights, tables and the choice of how to split the work. Immutable once
// planned but for make_ready(), so one Step may run in many contexts at once. The calls of a float
// kernel are cut by shapes alone, never by the number of threads, so that a result does not depend
// on it.
//
// Elementwise ops follow the step that makes their input, tile by tile: as a chain in registers as
// far as it goes, the others while the tile is in the cache.
class Step {
 public:
  virtual ~Step() = default;
  virtual void run(const RunContext& ctx) const noexcept = 0;
  // Makes what run() needs for so many samples and for fewer, where not all do. Comes before it;
  // any number of threads may call it while others run.
  virtual void make_ready(std::size_t /*n_samples*/) const {}
  // Once ready: what run() calls for so many samples, and the bytes of packed weights and tables.
  virtual std::string kernel_for(std::size_t /*n_samples*/) const { return kernel; }
  virtual std::size_t param_bytes_for(std::size_t /*n_samples*/) const { return param_bytes; }
  // Where `follows`: makes a tile of the output from the same tile of the inputs.
  virtual void run_tile(const RunContext&, const Tile&) const noexcept {}
  // Whether the step can be an op of a chain that holds `value`, one of its inputs, in registers.
  virtual bool chains(TensorId /*value*/) const noexcept { return false; }
  // That op, for a tile.
  virtual kernels::ChainOp chain_op(const RunContext&, const Tile&,
                                    TensorId /*value*/) const noexcept {
    return {};
  }

  std::string name;             // of the op
  std::string_view kind;        // "binary_conv"
  std::string kernel;           // "bconv_b1_i32/avx512", or "copy" where no kernel is called
  std::size_t macs = 0;         // multiplications with a weight, per sample
  std::size_t param_bytes = 0;  // of packed weights and tables, those for one sample
  std::size_t batch_bytes = 0;  // about what a large batch reads of others, made for it
  std::size_t io_bytes = 0;     // read and written per sample, filled in by the plan
  std::size_t sample_scratch_bytes = 0;  // per sample, contents undefined at the start of run()
  std::size_t thread_scratch_bytes = 0;  // per thread

  bool follows = false;
  enum class Leads : std::uint8_t {
    kNot,
    kFromMemory,     // run() calls finish_tile() for every tile of its output once it is written,
    kFromRegisters,  // or instead of writing it
  };
  Leads leads = Leads::kNot;

  // What the plan chooses; alone, a step writes its output. A link is a step and the value that it
  // takes or, without a step, a value that goes to memory.
  struct Link {
    const Step* step;
    TensorId value;
  };
  std::vector<Link> chain;
  std::vector<const Step*> followers;  // in order, those behind the chain

 protected:
  // Announces that the step makes `output` in tiles.
  void lead(Leads how, TensorId output, const PrepareContext& ctx);
  void finish_tile(const RunContext& ctx, const Tile& tile) const noexcept;  // kFromMemory
  // kFromRegisters: `first` makes the output of sums.
  void finish_tile(const RunContext& ctx, const Tile& tile, const kernels::ChainSource& sums,
                   const kernels::ChainOp& first) const noexcept;

 private:
  void run_chain(const RunContext& ctx, const Tile& tile, const kernels::ChainSource& source,
                 const kernels::ChainOp* first) const noexcept;

  kernels::chain_f32_fn chain_kernel_ = nullptr;
  TensorId made_ = 0;
  std::size_t made_rows_ = 0, made_channels_ = 0;
};

// Links of a chain, at most.
inline constexpr std::size_t kMaxChain = 30;

// An elementwise op: run() is run_tile() over all of it.
class TileStep : public Step {
 public:
  void run(const RunContext& ctx) const noexcept final;

 protected:
  TileStep(TensorId output, const PrepareContext& ctx);
  // Index of the tile's first value.
  std::size_t first_of(const Tile& tile) const noexcept {
    return (tile.sample * rows_ + tile.row) * channels_ + tile.channel;
  }
  std::size_t rows_, channels_;  // of the output

 private:
  std::size_t rows_per_item_, channels_per_item_;
};

struct PrepareContext {
  const Graph& graph;
  const kernels::Selection& selection;
  std::size_t n_threads;

  const Tensor& tensor(TensorId id) const { return graph.tensors[id]; }
  const kernels::KernelTable& kernels() const { return selection.kernels; }
  // "name/backend"
  std::string kernel_label(KernelId id) const;
  // Whether the kernel is that backend's.
  bool served_by(std::string_view backend, KernelId id) const {
    return selection.kernel_backend[static_cast<std::size_t>(id)] == backend;
  }
};

// A float op that makes a row of the output map at a time, all channels, from a map.
class RowStep : public Step {
 public:
  void run(const RunContext& ctx) const noexcept final;

 protected:
  RowStep(TensorId input, TensorId output, const PrepareContext& ctx);
  virtual void make_row(const float* map, std::size_t oy, float* row) const noexcept = 0;
  Map in_, out_;

 private:
  TensorId input_, output_;
};

// One overload per op, each in ops/<op>.cc. The op fits its tensors (validate() said so). nullptr:
// nothing to do at run time.
#define TAC_OP(code, Struct, name) \
  std::unique_ptr<Step> prepare(const Struct& op, const PrepareContext& ctx);
#include "ir/ops.inc"
#undef TAC_OP

}  // namespace tac
