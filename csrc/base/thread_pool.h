// The threads of one Engine. A loop is cut into chunks that the caller and the workers take from a
// shared counter.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace tac {

class ThreadPool {
 public:
  // n_threads >= 1 counts the caller: n_threads - 1 workers are started.
  explicit ThreadPool(std::size_t n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t size() const noexcept { return n_threads_; }

  // Calls fn(begin, end, thread_index) until [0, n_items) is covered once; returns when all calls
  // have returned. thread_index < size() tells concurrent calls of one loop apart; the caller is 0.
  // While the workers serve another caller, or after a fork() in the child, the caller does it all.
  // fn must not throw. Allocates nothing.
  template <class Fn>
  void parallel_for(std::size_t n_items, const Fn& fn) noexcept {
    static_assert(std::is_invocable_v<const Fn&, std::size_t, std::size_t, std::size_t>);
    if (n_items == 0) return;
    if (n_items == 1 || n_threads_ == 1) {
      fn(std::size_t{0}, n_items, std::size_t{0});
      return;
    }
    run(n_items, &call<Fn>, &fn);
  }

 private:
  using Call = void (*)(const void* fn, std::size_t begin, std::size_t end,
                        std::size_t thread_index);
  template <class Fn>
  static void call(const void* fn, std::size_t begin, std::size_t end, std::size_t thread_index) {
    (*static_cast<const Fn*>(fn))(begin, end, thread_index);
  }

  void run(std::size_t n_items, Call call, const void* fn) noexcept;
  void take_chunks(std::size_t thread_index) noexcept;
  void worker(std::size_t thread_index) noexcept;
  bool join_loop(std::uint64_t state) noexcept;

  // state_: loop number << 32 | kOpen while workers may join | workers inside. A worker that wakes
  // too late finds the loop closed, so nobody ever waits for a sleeping thread.
  static constexpr std::uint64_t kOpen = std::uint64_t{1} << 31;
  static constexpr std::uint64_t kInside = kOpen - 1;

  std::size_t n_threads_;
  unsigned fork_count_;
  std::atomic<bool> busy_{false};
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<std::uint64_t> state_{0};
  alignas(64) std::atomic<std::size_t> next_{0};
  alignas(64) std::size_t n_items_ = 0;
  std::size_t chunk_ = 0;
  Call call_ = nullptr;
  const void* fn_ = nullptr;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<std::size_t> sleepers_{0};
  std::vector<std::thread> workers_;
};

}  // namespace tac
