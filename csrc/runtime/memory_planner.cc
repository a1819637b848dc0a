#include "runtime/memory_planner.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <tuple>

#include "base/aligned_buffer.h"
#include "base/error.h"

namespace tac {

MemoryPlan plan_memory(std::span<const BufferUsage> usages) {
  constexpr std::size_t kMaxBytes = std::size_t{1} << (sizeof(std::size_t) * 8 - 2);
  MemoryPlan plan;
  plan.offsets.assign(usages.size(), 0);
  std::vector<std::size_t> order(usages.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) {
    return std::make_tuple(usages[b].bytes, usages[a].first_step) <
           std::make_tuple(usages[a].bytes, usages[b].first_step);
  });

  std::vector<std::size_t> placed;  // indices, by offset
  for (const std::size_t index : order) {
    const BufferUsage& usage = usages[index];
    if (usage.bytes > kMaxBytes)
      throw Error(ErrorCode::kLimit, "a buffer of the model is too large");
    const std::size_t bytes = round_up(usage.bytes, kCacheLine);
    std::size_t end = 0;  // of the live buffers seen so far
    std::size_t best_offset = SIZE_MAX, best_gap = SIZE_MAX;
    for (const std::size_t other : placed) {
      const BufferUsage& neighbour = usages[other];
      if (neighbour.last_step < usage.first_step || neighbour.first_step > usage.last_step)
        continue;
      const std::size_t offset = plan.offsets[other];
      if (offset > end && offset - end >= bytes && offset - end < best_gap) {
        best_gap = offset - end;
        best_offset = end;
      }
      end = std::max(end, offset + round_up(neighbour.bytes, kCacheLine));
    }
    const std::size_t offset = best_offset == SIZE_MAX ? end : best_offset;
    if (offset > kMaxBytes - bytes) {
      throw Error(ErrorCode::kLimit, "the working memory of the model is too large");
    }
    plan.offsets[index] = offset;
    plan.total_bytes = std::max(plan.total_bytes, offset + bytes);
    placed.insert(std::ranges::upper_bound(placed, offset, {},
                                           [&](std::size_t i) { return plan.offsets[i]; }),
                  index);
  }
  return plan;
}

}  // namespace tac
