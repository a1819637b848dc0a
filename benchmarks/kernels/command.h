// What the kernel benchmarks share: their command line and how they time.
#pragma once

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tac {

struct BenchOptions {
  bool quick = false;  // proves only that the benchmark runs
  bool json = false;
  std::string backend, filter;
};

// The main() of a benchmark: `run(options)` gives the exit status.
template <class Run>
int bench_main(int argc, char** argv, const char* program, const Run& run) {
  BenchOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg == "--quick") {
      options.quick = true;
    } else if (arg == "--json") {
      options.json = true;
    } else if (arg == "--backend" && i + 1 < argc) {
      options.backend = argv[++i];
    } else if (arg == "--filter" && i + 1 < argc) {
      options.filter = argv[++i];
    } else {
      std::fprintf(stderr,
                   "unknown argument '%s'\nusage: %s [--quick] [--json] [--backend NAME] "
                   "[--filter TEXT]\n",
                   argv[i], program);
      return 2;
    }
  }
  try {
    return run(options);
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 2;
  }
}

// Processor time of this thread, so that a busy machine does not count as a slow kernel.
inline double thread_ms() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) * 1e-6;
}

struct BenchTimes {
  double median_ms, best_ms, spread;  // spread: (90th - 10th percentile) / median
};

// Repetitions of at least 0.2 ms each, for about budget_ms in all.
inline BenchTimes time_calls(double budget_ms, const std::function<void()>& call) {
  const double start = thread_ms();
  call();
  const int calls = std::max(1, static_cast<int>(0.2 / std::max(thread_ms() - start, 1e-6)));
  std::vector<double> times;
  const double begin = thread_ms();
  do {
    const double t = thread_ms();
    for (int i = 0; i < calls; ++i) call();
    times.push_back((thread_ms() - t) / calls);
  } while (thread_ms() - begin < budget_ms || times.size() < 3);
  std::sort(times.begin(), times.end());
  const auto at = [&](double q) {
    return times[static_cast<std::size_t>(q * static_cast<double>(times.size() - 1))];
  };
  return {at(0.5), times[0], (at(0.9) - at(0.1)) / at(0.5)};
}

}  // namespace tac
