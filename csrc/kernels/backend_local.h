// Helpers shared by kernel files. Everything here has internal linkage: a shared inline function compiled with -mavx512*
// could otherwise be the copy that the linker keeps for baseline code.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef NDEBUG
#define TAC_DCHECK(condition)           \
  do {                                  \
    if (!(condition)) __builtin_trap(); \
  } while (false)
#else
#define TAC_DCHECK(condition) \
  do {                        \
  } while (false)
#endif

namespace tac::kernels {
namespace {

[[maybe_unused]] static inline std::size_t local_min(std::size_t a, std::size_t b) { return a < b ? a : b; }
[[maybe_unused]] static inline std::size_t local_max(std::size_t a, std::size_t b) { return a > b ? a : b; }
[[maybe_unused]] static inline std::size_t local_ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

}  // namespace
}  // namespace tac::kernels
