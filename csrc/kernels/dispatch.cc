#include "kernels/dispatch.h"

#include <array>
#include <string>

#include "base/error.h"

namespace tac::kernels {

namespace {

// A backend that this architecture cannot compile has no table.
#if defined(__x86_64__)
constexpr const KernelTable* kAmxTable = &amx::table;
constexpr const KernelTable* kAvx512Table = &avx512::table;
constexpr const KernelTable* kAvx512VnniTable = &avx512vnni::table;
constexpr const KernelTable* kAvx512BwTable = &avx512bw::table;
constexpr const KernelTable* kAvx2Table = &avx2::table;
#else
constexpr const KernelTable* kAmxTable = nullptr;
constexpr const KernelTable* kAvx512Table = nullptr;
constexpr const KernelTable* kAvx512VnniTable = nullptr;
constexpr const KernelTable* kAvx512BwTable = nullptr;
constexpr const KernelTable* kAvx2Table = nullptr;
#endif
constexpr const KernelTable* kScalarTable = &scalar::table;

#define TAC_TABLE_amx kAmxTable
#define TAC_TABLE_avx512 kAvx512Table
#define TAC_TABLE_avx512vnni kAvx512VnniTable
#define TAC_TABLE_avx512bw kAvx512BwTable
#define TAC_TABLE_avx2 kAvx2Table
#define TAC_TABLE_scalar kScalarTable
constexpr BackendInfo kBackends[] = {
#define TAC_BACKEND(ns, name, required) {name, required, TAC_TABLE_##ns},
#include "kernels/backends.inc"
#undef TAC_BACKEND
};

}  // namespace

std::span<const BackendInfo> backends() noexcept {
  return kBackends;
}

Selection select_kernels(CpuFeatures features, std::string_view force) {
  std::size_t first = 0;
  const auto runnable = [&](const BackendInfo& b) {
    return b.table != nullptr && (b.required & ~features) == 0;
  };
  if (force.empty()) {
    while (!runnable(kBackends[first])) ++first;  // scalar, the last, requires nothing
  } else {
    std::string known;
    while (first < std::size(kBackends) && kBackends[first].name != force) {
      known += (known.empty() ? "" : ", ") + std::string(kBackends[first].name);
      ++first;
    }
    if (first == std::size(kBackends)) {
      throw Error(ErrorCode::kInvalidArgument,
                  "unknown backend '" + std::string(force) + "'; there are " + known);
    }
    if (!runnable(kBackends[first])) {
      throw Error(ErrorCode::kInvalidArgument,
                  "backend '" + std::string(force) + "' cannot run here: " +
                      (kBackends[first].table == nullptr
                           ? "not compiled for this architecture"
                           : "this CPU or operating system lacks its instructions"));
    }
  }
  Selection selection;
  selection.backend = kBackends[first].name;
#define TAC_KERNEL(kernel)                                                          \
  for (std::size_t i = first; i < std::size(kBackends); ++i) {                      \
    if (!runnable(kBackends[i]) || kBackends[i].table->kernel == nullptr) continue; \
    selection.kernels.kernel = kBackends[i].table->kernel;                          \
    selection.kernel_backend.push_back(kBackends[i].name);                          \
    break;                                                                          \
  }
#include "kernels/kernels.def"
#undef TAC_KERNEL
  return selection;
}

}  // namespace tac::kernels
