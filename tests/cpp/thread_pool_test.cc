#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>
#include <vector>

namespace tac {
namespace {

class ThreadPoolOf : public testing::TestWithParam<std::size_t> {};

TEST_P(ThreadPoolOf, CoversEveryItemOnce) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.size(), GetParam());
  for (const std::size_t n : {0, 1, 2, 3, 7, 64, 1000}) {
    std::vector<std::atomic<int>> hits(n);
    pool.parallel_for(n, [&](std::size_t begin, std::size_t end, std::size_t thread) {
      EXPECT_LT(begin, end);
      EXPECT_LT(thread, pool.size());
      for (std::size_t i = begin; i < end; ++i) hits[i].fetch_add(1);
    });
    for (std::size_t i = 0; i < n; ++i) EXPECT_EQ(hits[i].load(), 1) << i << " of " << n;
  }
}

TEST_P(ThreadPoolOf, ReturnsOnlyWhenAllIsDone) {
  ThreadPool pool(GetParam());
  // Plain ints: a call that outlived its loop would race with the sum, or add to it late.
  std::vector<int> values(97);
  for (int round = 0; round < 3000; ++round) {
    pool.parallel_for(values.size(), [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t i = begin; i < end; ++i) values[i] = round;
    });
    ASSERT_EQ(std::accumulate(values.begin(), values.end(), 0), round * 97);
  }
}

TEST_P(ThreadPoolOf, ConcurrentCallsUseDistinctThreadIndices) {
  ThreadPool pool(GetParam());
  std::vector<std::atomic<bool>> inside(pool.size());
  pool.parallel_for(200, [&](std::size_t, std::size_t, std::size_t thread) {
    EXPECT_FALSE(inside[thread].exchange(true));
    std::this_thread::yield();
    inside[thread].store(false);
  });
}

TEST_P(ThreadPoolOf, WorkersWakeFromSleep) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // longer than they spin
    std::atomic<std::size_t> sum{0};
    pool.parallel_for(50,
                      [&](std::size_t begin, std::size_t end, std::size_t) { sum += end - begin; });
    EXPECT_EQ(sum.load(), 50U);
  }
}

TEST_P(ThreadPoolOf, ServesManyCallersAtOnce) {
  ThreadPool pool(GetParam());
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int c = 0; c < 6; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 300; ++round) {
        std::atomic<std::size_t> sum{0};
        pool.parallel_for(31, [&](std::size_t begin, std::size_t end, std::size_t) {
          for (std::size_t i = begin; i < end; ++i) sum += i;
        });
        if (sum.load() != 31 * 30 / 2) ++wrong;
      }
    });
  }
  for (std::thread& t : callers) t.join();
  EXPECT_EQ(wrong.load(), 0);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolOf, testing::Values(1, 2, 3, 8));

TEST(ThreadPool, AllThreadsTakePart) {
  ThreadPool pool(3);
  // Each call waits until all three threads are inside a call, so one thread alone could not finish
  // the loop.
  std::atomic<std::size_t> inside{0};
  pool.parallel_for(3, [&](std::size_t, std::size_t, std::size_t) {
    inside.fetch_add(1);
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (inside.load() < 3 && std::chrono::steady_clock::now() < give_up)
      std::this_thread::yield();
    EXPECT_EQ(inside.load(), 3U);
  });
}

TEST(ThreadPool, ChildOfForkWorksAlone) {
  ThreadPool pool(4);
  std::atomic<std::size_t> sum{0};
  const auto add = [&](std::size_t begin, std::size_t end, std::size_t) { sum += end - begin; };
  pool.parallel_for(100, add);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(20);  // a hang ends the child by a signal
    sum = 0;
    pool.parallel_for(100, add);
    _exit(sum.load() == 100 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(sum.load(), 100U);
}

}  // namespace
}  // namespace tac
