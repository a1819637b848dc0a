// Reads a .tacbin. Everything is checked before anything is handed out.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

#include "ir/graph.h"

namespace tac {

// A graph and the bytes that its blobs point into (a read-only mapping of the file, or a copy).
struct LoadedModel {
  std::shared_ptr<const void> storage;
  std::size_t file_bytes = 0;
  Graph graph;
};

// Throws Error with the codes kIo..kInvalidModel.
LoadedModel load_model(const std::filesystem::path& path);
LoadedModel load_model_from_memory(std::span<const std::byte> bytes);

}  // namespace tac
