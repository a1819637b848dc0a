// What a plan is made of: prepared ops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "ir/graph.h"
#include "kernels/dispatch.h"

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

// One prepared op: packed weights, tables and the choice of how to split the work. Immutable once
// prepared, so one Step may run in many contexts at once. The calls of a float kernel are cut by
// shapes alone, never by the number of threads, so that a result does not depend on it.
class Step {
 public:
  virtual ~Step() = default;
  virtual void run(const RunContext& ctx) const noexcept = 0;

  std::string name;             // of the op
  std::string_view kind;        // "binary_conv"
  std::string kernel;           // "bconv_b1_i32/avx512", or "copy" where no kernel is called
  std::size_t macs = 0;         // multiplications with a weight, per sample
  std::size_t param_bytes = 0;  // of packed weights and tables
  std::size_t io_bytes = 0;     // read and written per sample, filled in by the plan
  std::size_t sample_scratch_bytes = 0;  // per sample, contents undefined at the start of run()
  std::size_t thread_scratch_bytes = 0;  // per thread
};

struct PrepareContext {
  const Graph& graph;
  const kernels::Selection& selection;
  std::size_t n_threads;

  const Tensor& tensor(TensorId id) const { return graph.tensors[id]; }
  const kernels::KernelTable& kernels() const { return selection.kernels; }
  // "name/backend"
  std::string kernel_label(KernelId id) const;
};

// One overload per op, each in ops/<op>.cc. The op fits its tensors (validate() said so). nullptr:
// nothing to do at run time.
#define TAC_OP(code, Struct, name) \
  std::unique_ptr<Step> prepare(const Struct& op, const PrepareContext& ctx);
#include "ir/ops.inc"
#undef TAC_OP

}  // namespace tac
