// Builds a model in memory and writes it as a .tacbin.
#pragma once

#include <cstddef>
#include <deque>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "ir/graph.h"

namespace tac {

// The bytes of a .tacbin for `graph`, which is validated first.
std::vector<std::byte> serialize(const Graph& graph);

// A graph under construction that owns its blobs.
class ModelWriter {
 public:
  Graph graph;

  // Copies `bytes` into memory that lives as long as the writer, 64-byte aligned.
  Blob own(std::span<const std::byte> bytes);

  template <class T>
  BlobOf<T> own_array(std::span<const T> values) {
    return {own(std::as_bytes(values))};
  }

  // Validates, then writes a temporary file beside `path` and renames it; on failure nothing is
  // left behind.
  void save(const std::filesystem::path& path) const;

 private:
  std::deque<AlignedBuffer<std::byte>> blobs_;
};

}  // namespace tac
