#include "runtime/memory_planner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>

#include "base/error.h"

namespace tac {
namespace {

using Offsets = std::vector<std::size_t>;

TEST(MemoryPlanner, NothingTakesNothing) {
  const MemoryPlan plan = plan_memory({});
  EXPECT_EQ(plan.total_bytes, 0U);
  EXPECT_TRUE(plan.offsets.empty());
}

TEST(MemoryPlanner, RoundsSizesUpToCacheLines) {
  const MemoryPlan plan = plan_memory(std::vector<BufferUsage>{{100, 0, 1}, {1, 0, 1}});
  EXPECT_EQ(plan.offsets, (Offsets{0, 128}));
  EXPECT_EQ(plan.total_bytes, 192U);
}

TEST(MemoryPlanner, ReusesWhatIsDead) {
  // A chain: each buffer lives from the step that writes it to the step that reads it.
  const MemoryPlan plan =
      plan_memory(std::vector<BufferUsage>{{256, 0, 1}, {128, 1, 2}, {256, 2, 3}, {64, 3, 4}});
  EXPECT_EQ(plan.offsets, (Offsets{0, 256, 0, 256}));
  EXPECT_EQ(plan.total_bytes, 384U);
}

TEST(MemoryPlanner, BuffersOfOneStepDoNotShare) {
  const MemoryPlan plan = plan_memory(std::vector<BufferUsage>{{64, 0, 1}, {64, 1, 2}});
  EXPECT_EQ(plan.offsets, (Offsets{0, 64}));
}

TEST(MemoryPlanner, PlacesTheLargestFirst) {
  const MemoryPlan plan =
      plan_memory(std::vector<BufferUsage>{{64, 0, 0}, {640, 0, 0}, {128, 0, 0}});
  EXPECT_EQ(plan.offsets, (Offsets{768, 0, 640}));
}

TEST(MemoryPlanner, PrefersSmallestGap) {
  // The first six lie one behind the other. In step 5 the first, third and fifth are dead: gaps of
  // 512, 320 and 192 bytes.
  const std::vector<BufferUsage> usages{{512, 0, 4}, {448, 0, 5}, {320, 0, 4}, {256, 0, 5},
                                        {192, 0, 4}, {128, 0, 5}, {64, 5, 5}};
  const MemoryPlan plan = plan_memory(usages);
  EXPECT_EQ(plan.offsets, (Offsets{0, 512, 960, 1280, 1536, 1728, 1536}));
  EXPECT_EQ(plan.total_bytes, 1856U);
}

TEST(MemoryPlanner, EqualGapsTakeTheFirst) {
  const std::vector<BufferUsage> usages{
      {128, 0, 0}, {128, 0, 1}, {128, 0, 0}, {128, 0, 1}, {64, 1, 1}};
  EXPECT_EQ(plan_memory(usages).offsets, (Offsets{0, 128, 256, 384, 0}));
}

TEST(MemoryPlanner, RefusesWhatNoMemoryHolds) {
  const std::size_t huge = std::size_t{1} << 62;
  EXPECT_THROW(plan_memory(std::vector<BufferUsage>{{huge + 64, 0, 0}}), Error);
  EXPECT_THROW(plan_memory(std::vector<BufferUsage>{{huge, 0, 0}, {huge, 0, 0}}), Error);
}

TEST(MemoryPlanner, LiveBuffersOfRandomGraphsNeverOverlap) {
  constexpr std::uint32_t kSeed = 20240517;
  std::mt19937 random(kSeed);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random()) % n; };
  for (int graph = 0; graph < 300; ++graph) {
    std::vector<BufferUsage> usages(1 + below(40));
    for (BufferUsage& u : usages) {
      u.bytes = 1 + below(2000);
      u.first_step = below(30);
      u.last_step = u.first_step + below(6);
    }
    const MemoryPlan plan = plan_memory(usages);
    std::vector<std::size_t> live_bytes(40, 0);
    for (std::size_t i = 0; i < usages.size(); ++i) {
      const std::size_t end = plan.offsets[i] + usages[i].bytes;
      ASSERT_EQ(plan.offsets[i] % 64, 0U);
      ASSERT_LE(end, plan.total_bytes);
      for (std::size_t step = usages[i].first_step; step <= usages[i].last_step; ++step) {
        live_bytes[step] += (usages[i].bytes + 63) / 64 * 64;
      }
      for (std::size_t j = 0; j < i; ++j) {
        const bool together = usages[i].first_step <= usages[j].last_step &&
                              usages[j].first_step <= usages[i].last_step;
        if (!together) continue;
        ASSERT_TRUE(end <= plan.offsets[j] || plan.offsets[j] + usages[j].bytes <= plan.offsets[i])
            << "seed " << kSeed << ", graph " << graph << ", buffers " << i << " and " << j;
      }
    }
    // No plan is smaller than what lives at once; a greedy one is not far off.
    const std::size_t bound = *std::max_element(live_bytes.begin(), live_bytes.end());
    EXPECT_GE(plan.total_bytes, bound);
    EXPECT_LE(plan.total_bytes, 2 * bound) << "seed " << kSeed << ", graph " << graph;
  }
}

}  // namespace
}  // namespace tac
