// Where each buffer lies in the one arena of a run, decided before the first run.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace tac {

// A buffer that must hold its bytes from the beginning of step `first_step` to the end of step
// `last_step`.
struct BufferUsage {
  std::size_t bytes = 0;
  std::size_t first_step = 0, last_step = 0;
};

struct MemoryPlan {
  std::vector<std::size_t> offsets;  // of each usage, multiples of 64
  std::size_t total_bytes = 0;
};

// Greedy: the largest buffer first (then the one used earlier, then the one listed earlier), each
// into the smallest gap that holds it between those already placed that live at the same time, or
// after them. Sizes are rounded up to 64 bytes. Multiplying every offset and the total by N gives a
// plan for N times the bytes. Throws Error(kLimit) past 2^62 bytes.
MemoryPlan plan_memory(std::span<const BufferUsage> usages);

}  // namespace tac
