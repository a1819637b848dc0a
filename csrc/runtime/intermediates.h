// Makes every tensor of a model visible, to find the first layer that differs from the original.
#pragma once

#include <vector>

#include "base/aligned_buffer.h"
#include "ir/graph.h"

namespace tac {

// A copy of a graph whose outputs are all tensors that ops write: floats and integers themselves,
// packed tensors as their levels in float32. It runs with the same kernels, but holds all of them
// at once, so it is for looking, not for speed.
struct ExposedGraph {
  explicit ExposedGraph(const Graph& original);

  Graph graph;                    // its blobs point into `original`'s storage and into `levels`
  std::vector<TensorId> tensors;  // of the original, for each output of `graph`
  std::vector<AlignedBuffer<float>> levels;
};

}  // namespace tac
