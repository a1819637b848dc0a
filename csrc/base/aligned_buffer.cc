#include "base/aligned_buffer.h"

#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace tac {

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::align_val_t alignment_of(std::size_t bytes) noexcept {
  return std::align_val_t{bytes >= kHugePage ? kHugePage : kCacheLine};
}

}  // namespace

void* allocate_zeroed(std::size_t bytes) {
  void* data = ::operator new(bytes, alignment_of(bytes));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // A hint: without huge pages the memory is the same.
  if (bytes >= kHugePage) madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  std::memset(data, 0, bytes);
  return data;
}

void free_aligned(void* data, std::size_t bytes) noexcept {
  ::operator delete(data, alignment_of(bytes));
}

}  // namespace tac
