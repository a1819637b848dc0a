// Loads a model and runs it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "format/reader.h"
#include "ir/graph.h"
#include "kernels/dispatch.h"
#include "runtime/plan.h"

namespace tac {

inline constexpr std::size_t kMaxThreads = 1024;

struct EngineOptions {
  std::size_t threads = 1;  // 1..kMaxThreads, the caller of run() included
  std::string backend;  // empty: what the environment variable TAC_BACKEND names, or else the best
                        // one that runs here
};

// The kernels of an Engine with this EngineOptions::backend. Throws Error(kInvalidArgument) for a
// name, given or in TAC_BACKEND, that is unknown or cannot run here.
kernels::Selection choose_kernels(const std::string& backend);

struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;             // kF32 or kI64
  std::vector<std::int64_t> dims;        // without the batch axis
  bool takes_images = false;             // an input that may also be given as uint8 images
  std::vector<std::int64_t> image_dims;  // [H, W, C]; empty unless takes_images

  std::size_t sample_bytes() const noexcept;
  std::size_t image_bytes() const noexcept;
};

// Exactly one of the two is set (for an empty batch: none need be). Any alignment of its element
// type.
struct InputArray {
  const float* values = nullptr;         // [n][dims...]
  const std::uint8_t* images = nullptr;  // [n][H][W][C]
};

struct StepProfile {
  std::string name, kind;  // of the step that leads
  std::string kernel;      // its kernel, " + " the kinds of the elementwise steps fused into it
  double seconds = 0.0;    // median over the runs, whole batch
  std::size_t macs = 0;    // whole batch
  std::size_t bytes = 0;   // parameters for such a batch, plus the inputs and outputs of its steps
                           // for the whole batch
};

// Immutable after construction apart from a list of spare arenas behind a mutex and what steps make
// for batches; run() and profile() may be called by many threads at once. One caller at a time has
// the pool's workers; the others run on their own thread.
class Engine {
 public:
  // Throw Error: kIo..kInvalidModel for a bad file, kInvalidArgument for bad options, kLimit where
  // memory or threads do not suffice.
  explicit Engine(const std::filesystem::path& path, const EngineOptions& options = {});
  explicit Engine(std::span<const std::byte> file, const EngineOptions& options = {});
  explicit Engine(const Graph& graph,
                  const EngineOptions& options = {});  // validates it; keeps nothing of it
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  std::span<const TensorSpec> inputs() const noexcept { return inputs_; }
  std::span<const TensorSpec> outputs() const noexcept { return outputs_; }

  // Runs n_samples >= 0 samples. `inputs` and `outputs` follow inputs() and outputs(); an output
  // array has n_samples times sample_bytes() and overlaps no other array. Allocates nothing once a
  // run with as many samples has returned before. Throws Error(kInvalidInput) for arrays that do
  // not fit and for a NaN, Error(kLimit) where memory does not suffice.
  void run(std::span<const InputArray> inputs, std::span<void* const> outputs,
           std::size_t n_samples) const;

  // Runs n_runs >= 1 times, on outputs of its own, and times every step.
  std::vector<StepProfile> profile(std::span<const InputArray> inputs, std::size_t n_samples,
                                   std::size_t n_runs) const;

  // Bytes that hold the parameters and one run of n_samples; a large batch takes no more than a
  // tile of it. Makes what such a run needs. Throws Error(kLimit).
  std::size_t peak_bytes(std::size_t n_samples) const;
  std::size_t file_bytes() const noexcept {
    return file_bytes_;
  }  // 0 for an Engine made from a Graph
  std::size_t threads() const noexcept { return pool_->size(); }
  std::string_view backend() const noexcept { return selection_.backend; }
  const std::string& metadata() const noexcept { return metadata_; }

 private:
  struct RunState;
  class Lease;

  Engine(const LoadedModel& model, const EngineOptions& options);
  Engine(const Graph& graph, std::size_t file_bytes, const EngineOptions& options);

  // The samples of each tile of a batch but the last, which may have fewer.
  std::size_t tile_of(std::size_t n_samples) const noexcept;
  std::size_t arena_bytes(std::size_t n_samples) const;
  void make_ready(std::size_t n_samples) const;
  void check_arrays(std::span<const InputArray> inputs, std::span<void* const> outputs,
                    std::size_t n_samples) const;
  void check_no_nan(std::size_t input, const float* values, std::size_t n_samples) const;
  void images_to_floats(std::size_t input, const std::uint8_t* images, std::size_t n_samples,
                        float* values) const;
  // `lap(i)` is called after part i of the run: inputs, steps, copies. A part has one lap for each
  // tile of the batch.
  template <class Lap>
  void run_parts(std::span<const InputArray> inputs, std::span<void* const> outputs,
                 std::size_t n_samples, const Lap& lap) const;
  // Samples [first, first + n_samples), which fit into the state's arena.
  template <class Lap>
  void run_tile(std::span<const InputArray> inputs, std::span<void* const> outputs,
                std::size_t first, std::size_t n_samples, RunState& state, const Lap& lap) const;

  std::vector<TensorSpec> inputs_, outputs_;
  std::vector<TensorId> input_tensors_;
  std::vector<AlignedBuffer<float>> luts_;  // of each input, [C][256] or empty
  std::vector<bool> channels_first_;
  std::string metadata_;
  std::size_t file_bytes_ = 0;
  kernels::Selection selection_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Plan> plan_;
  // A larger batch runs in tiles of at most so many samples, which keeps what flows between the
  // layers in the cache.
  std::size_t tile_samples_ = 1;

  mutable std::mutex mutex_;  // guards the next two
  mutable std::vector<std::unique_ptr<RunState>> spare_;
  mutable std::size_t n_states_ = 0;
};

}  // namespace tac
