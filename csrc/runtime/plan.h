// A model made ready to run: prepared steps and a place for every tensor. Immutable but for what
// steps make for batches.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "base/aligned_buffer.h"
#include "ir/graph.h"
#include "kernels/dispatch.h"
#include "runtime/step.h"

namespace tac {

// Where the samples of a tensor lie. Tensors made by Reshape share the place of what they reshape.
struct Placement {
  enum class Kind : std::uint8_t { kConstant, kArena, kInput, kOutput };
  Kind kind = Kind::kArena;
  std::size_t index = 0;   // of the model's input or output: the caller's array is used in place
  std::size_t offset = 0;  // kConstant: in `constants`; kArena: in the arena, per sample
};

// An output that shares its memory with an input or with another output, and so must be copied.
struct OutputCopy {
  TensorId tensor = 0;
  std::size_t output = 0;
};

struct PlannedStep {
  std::unique_ptr<Step> step;
  std::vector<std::unique_ptr<Step>> followers;  // those of `step`
  std::size_t scratch_offset = 0;  // of its per-sample scratch in the arena, per sample
};

// The arena of a run of N samples (a tile of the batch): N * arena_sample_bytes, all offsets times
// N; then n_threads * thread_scratch_bytes. Keeps nothing of `graph`. Throws Error(kLimit) for a
// model too large, Error(kInvalidModel) where sums leave 32 bits.
struct Plan {
  Plan(const Graph& graph, const kernels::Selection& selection, std::size_t n_threads);

  std::vector<PlannedStep> steps;
  std::vector<Placement> placements;  // by tensor id
  std::vector<std::size_t>
      image_offsets;  // by input: where an image's floats go, per sample; unused without one
  std::vector<OutputCopy> copies;
  AlignedBuffer<std::byte> constants;
  std::size_t arena_sample_bytes = 0;
  std::size_t thread_scratch_bytes = 0;  // per thread, a multiple of 64
  std::size_t largest_sample_bytes = 0;  // of any tensor
  std::size_t flow_sample_bytes = 0;     // that the steps read and write, per sample
  std::size_t param_bytes = 0;           // packed weights, tables and constants
  std::size_t batch_bytes = 0;           // the sum of the steps' batch_bytes
};

}  // namespace tac
