// Memory aligned to a cache line (and to the widest vector register), for packed weights and
// arenas.
#pragma once

#include <cstddef>
#include <new>
#include <span>
#include <utility>

namespace tac {

inline constexpr std::size_t kCacheLine = 64;

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) noexcept {
  return (value + multiple - 1) / multiple * multiple;
}

// Zero-filled memory on a cache line, large blocks on huge pages where the system gives them:
// reading weights of tens of megabytes once per run is bound by the look-ups of 4 kB pages
// otherwise. Throws std::bad_alloc. free_aligned() wants the size that was asked for.
void* allocate_zeroed(std::size_t bytes);
void free_aligned(void* data, std::size_t bytes) noexcept;

// A fixed number of trivially copyable T, starting on a cache line, zero-filled. Move-only. Throws
// std::bad_alloc.
template <class T>
class AlignedBuffer {
 public:
  AlignedBuffer() noexcept = default;
  explicit AlignedBuffer(std::size_t count) : count_(count) {
    if (count == 0) return;
    if (count > static_cast<std::size_t>(-1) / 2 / sizeof(T)) throw std::bad_alloc();
    data_ = static_cast<T*>(allocate_zeroed(count * sizeof(T)));
  }
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() {
    if (data_ != nullptr) free_aligned(data_, bytes());
  }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return count_; }
  std::size_t bytes() const noexcept { return count_ * sizeof(T); }
  T& operator[](std::size_t i) noexcept { return data_[i]; }
  const T& operator[](std::size_t i) const noexcept { return data_[i]; }
  std::span<const T> view() const noexcept { return {data_, count_}; }

 private:
  T* data_ = nullptr;
  std::size_t count_ = 0;
};

}  // namespace tac
