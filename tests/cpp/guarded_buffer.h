// A buffer that ends right before an unreadable page, so that a read or write of one element too
// far faults.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>

namespace tac::test {

// `offset` elements are left free between the last element and the guard page, which moves the
// start of the data off its alignment; a canary fills them and the space in front, and intact()
// says whether it still stands.
template <class T>
class GuardedBuffer {
 public:
  explicit GuardedBuffer(std::size_t count, std::size_t offset = 0)
      : count_(count), offset_(offset) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t bytes = (count + offset) * sizeof(T);
    data_bytes_ = (bytes + page - 1) / page * page + page;  // at least one page in front
    mapped_bytes_ = data_bytes_ + page;
    void* base =
        mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::runtime_error("mmap failed");
    base_ = static_cast<std::byte*>(base);
    std::memset(base_, kCanary, data_bytes_);
    if (mprotect(base_ + data_bytes_, page, PROT_NONE) != 0)
      throw std::runtime_error("mprotect failed");
  }
  ~GuardedBuffer() { munmap(base_, mapped_bytes_); }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  T* data() noexcept { return reinterpret_cast<T*>(base_ + data_bytes_) - offset_ - count_; }
  std::span<T> span() noexcept { return {data(), count_}; }
  std::size_t size() const noexcept { return count_; }
  T& operator[](std::size_t i) noexcept { return data()[i]; }

  bool intact() noexcept {
    const std::byte* begin = reinterpret_cast<std::byte*>(data());
    const std::byte* end = begin + count_ * sizeof(T);
    for (const std::byte* p = base_; p < begin; ++p) {
      if (*p != std::byte{kCanary}) return false;
    }
    for (const std::byte* p = end; p < base_ + data_bytes_; ++p) {
      if (*p != std::byte{kCanary}) return false;
    }
    return true;
  }

 private:
  static constexpr unsigned char kCanary = 0xA5;
  std::size_t count_, offset_, data_bytes_ = 0, mapped_bytes_ = 0;
  std::byte* base_ = nullptr;
};

}  // namespace tac::test
