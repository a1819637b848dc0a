#include "base/thread_pool.h"

#include <algorithm>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace tac {

namespace {

// A child of fork() has none of its parent's workers; pools made before the fork must not use
// theirs.
#if defined(__unix__) || defined(__APPLE__)
std::atomic<unsigned> fork_count{0};
unsigned watch_forks() {
  static const int installed = pthread_atfork(nullptr, nullptr, [] { fork_count.fetch_add(1); });
  static_cast<void>(installed);
  return fork_count.load();
}
unsigned forks_so_far() noexcept {
  return fork_count.load(std::memory_order_relaxed);
}
#else
unsigned watch_forks() {
  return 0;
}
unsigned forks_so_far() noexcept {
  return 0;
}
#endif

void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Between two steps of a run a worker spins (tens of microseconds); between two runs it sleeps.
constexpr int kSpins = 2000;
// Chunks per thread: enough to even out threads that are slowed down by others on the machine.
constexpr std::size_t kChunksPerThread = 4;

}  // namespace

ThreadPool::ThreadPool(std::size_t n_threads) : n_threads_(n_threads), fork_count_(watch_forks()) {
  workers_.reserve(n_threads - 1);
  try {
    for (std::size_t i = 1; i < n_threads; ++i) workers_.emplace_back([this, i] { worker(i); });
  } catch (...) {
    stop_.store(true);
    {
      const std::lock_guard lock(mutex_);
    }
    wake_.notify_all();
    for (std::thread& t : workers_) t.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (forks_so_far() != fork_count_) {
    for (std::thread& t : workers_) t.detach();
    return;
  }
  stop_.store(true);
  {
    const std::lock_guard lock(mutex_);
  }
  wake_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void ThreadPool::take_chunks(std::size_t thread_index) noexcept {
  const std::size_t n = n_items_;
  const std::size_t chunk = chunk_;
  for (;;) {
    const std::size_t begin = next_.fetch_add(chunk, std::memory_order_relaxed);
    if (begin >= n) return;
    call_(fn_, begin, std::min(n, begin + chunk), thread_index);
  }
}

void ThreadPool::run(std::size_t n_items, Call call, const void* fn) noexcept {
  if (busy_.exchange(true, std::memory_order_acquire)) {
    call(fn, 0, n_items, 0);
    return;
  }
  if (forks_so_far() != fork_count_) {
    busy_.store(false, std::memory_order_release);
    call(fn, 0, n_items, 0);
    return;
  }
  n_items_ = n_items;
  chunk_ = std::max<std::size_t>(1, n_items / (n_threads_ * kChunksPerThread));
  call_ = call;
  fn_ = fn;
  next_.store(0, std::memory_order_relaxed);
  const std::uint64_t loop = (state_.load(std::memory_order_relaxed) >> 32) + 1;
  state_.store(
      loop << 32 |
      kOpen);  // sequentially consistent: pairs with a worker that counts itself as a sleeper
  if (sleepers_.load() != 0) {
    {
      const std::lock_guard lock(mutex_);
    }
    wake_.notify_all();
  }
  take_chunks(0);
  state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int spins = 0; (state_.load(std::memory_order_acquire) & kInside) != 0; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
  busy_.store(false, std::memory_order_release);
}

bool ThreadPool::join_loop(std::uint64_t state) noexcept {
  while ((state & kOpen) != 0) {
    if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

void ThreadPool::worker(std::size_t thread_index) noexcept {
  std::uint64_t last_loop = 0;
  const auto news = [&] {
    const std::uint64_t state = state_.load();
    return stop_.load() || ((state & kOpen) != 0 && state >> 32 != last_loop);
  };
  for (;;) {
    for (int spins = 0; spins < kSpins && !news(); ++spins) pause();
    if (!news()) {
      std::unique_lock lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, news);
      sleepers_.fetch_sub(1);
    }
    if (stop_.load()) return;
    const std::uint64_t state = state_.load(std::memory_order_acquire);
    if (!join_loop(state)) continue;
    last_loop =
        state_.load(std::memory_order_relaxed) >> 32;  // cannot change while this worker is inside
    take_chunks(thread_index);
    state_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace tac
