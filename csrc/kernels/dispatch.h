// Which backend serves an Engine.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/cpu_features.h"
#include "kernels/kernel_table.h"

namespace tac::kernels {

struct BackendInfo {
  std::string_view name;
  CpuFeatures required;
  const KernelTable* table;  // nullptr where not compiled for this architecture
};

// Best first; scalar is the last and always compiled.
std::span<const BackendInfo> backends() noexcept;

struct Selection {
  std::string_view backend;  // the best backend used
  KernelTable kernels;       // every slot filled, by the next backend down where a backend has none
  // Which backend fills the slot of kernel `i` in kernels.def order.
  std::vector<std::string_view> kernel_backend;
};

// Walks backends() best first, skipping what `features` lack. `force` (may be empty) names the
// backend to start from. Throws Error(kInvalidArgument) for a name that is unknown or not runnable
// with these features.
Selection select_kernels(CpuFeatures features, std::string_view force);

}  // namespace tac::kernels
