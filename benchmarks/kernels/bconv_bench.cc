// Times bconv_b1_i32 per shape and runnable backend. One thread; weights and activations are warm.
// Every answer is compared with the scalar backend's before it is timed; a wrong answer ends the
// run with status 1. GMAC/s counts nominal MACs: those of taps in the padding are counted and not
// computed.
//
//   tac_kernel_bench [--quick] [--json] [--backend NAME] [--filter TEXT]
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "kernels/dispatch.h"

namespace tac::kernels {
namespace {

struct Shape {
  std::string_view name;
  std::size_t in_channels, out_channels, size, kernel, stride, n_in_planes;
};

constexpr Shape kShapes[] = {
    {"3x3 64@56", 64, 64, 56, 3, 1, 1},
    {"3x3 128@28", 128, 128, 28, 3, 1, 1},
    {"3x3 256@14", 256, 256, 14, 3, 1, 1},
    {"3x3 512@7", 512, 512, 7, 3, 1, 1},
    {"3x3 128@32", 128, 128, 32, 3, 1, 1},
    {"3x3 256@16", 256, 256, 16, 3, 1, 1},
    {"3x3 512@8", 512, 512, 8, 3, 1, 1},
    {"1x1 256@14", 256, 256, 14, 1, 1, 1},
    {"1x1 512@7", 512, 512, 7, 1, 1, 1},
    {"3x3 stride 2 128@28", 128, 128, 28, 3, 2, 1},
    {"3x3 128@32, 2 input planes", 128, 128, 32, 3, 1, 2},
    {"fully connected 8192 -> 1024", 8192, 1024, 1, 1, 1, 1},
    {"fully connected 1024 -> 10", 1024, 10, 1, 1, 1, 1},
};

struct Options {
  bool quick = false, json = false;
  std::string_view backend, filter;
};

struct Measurement {
  std::string_view name, backend;
  double median_ms, best_ms, spread;  // spread: (90th - 10th percentile) / median
  double gmac_per_s;
};

class Problem {
 public:
  explicit Problem(const Shape& s)
      : out_size_((s.size + 2 * (s.kernel / 2) - s.kernel) / s.stride + 1),
        n_macs_(static_cast<double>(out_size_ * out_size_ * s.kernel * s.kernel) *
                static_cast<double>(s.in_channels * s.out_channels)) {
    const std::size_t words = s.in_channels / 32;
    const std::size_t n_blocks = (s.out_channels + kBconvBlock - 1) / kBconvBlock;
    input_ = AlignedBuffer<std::uint32_t>(s.n_in_planes * s.size * s.size * words);
    n_channels_ = s.out_channels;
    rows_.resize(s.out_channels * s.kernel * s.kernel * words);
    base_ = AlignedBuffer<std::int32_t>(n_blocks * kBconvBlock);
    out_ = AlignedBuffer<std::int32_t>(out_size_ * out_size_ * n_blocks * kBconvBlock);
    class_.assign(out_size_, 0);
    for (std::size_t i = 0; i < s.n_in_planes; ++i) coef_.push_back(1 << i);
    std::mt19937 random(1);
    for (std::size_t i = 0; i < input_.size(); ++i) input_[i] = random();
    for (std::uint32_t& word : rows_) word = random();
    for (std::size_t i = 0; i < base_.size(); ++i) {
      base_[i] = static_cast<std::int32_t>(random() % 4096);
    }
    params_ = {.in_h = s.size,
               .in_w = s.size,
               .out_w = out_size_,
               .kernel_h = s.kernel,
               .kernel_w = s.kernel,
               .stride_h = s.stride,
               .stride_w = s.stride,
               .dilation_h = 1,
               .dilation_w = 1,
               .pad_top = s.kernel / 2,
               .pad_left = s.kernel / 2,
               .words = words,
               .pixel_words = words,
               .n_blocks = n_blocks,
               .n_in_planes = s.n_in_planes,
               .n_w_planes = 1,
               .in_plane_words = s.size * s.size * words,
               .w_plane_words = 0,
               .weights = nullptr,
               .coef = coef_.data(),
               .base = base_.data(),
               .row_class = class_.data(),
               .col_class = class_.data(),
               .shift = 0};
  }

  // The kernel's weights from here on.
  void pack(const KernelTable& kernels) {
    const std::size_t row_words = rows_.size() / n_channels_;
    weights_ = AlignedBuffer<std::uint32_t>(
        kernels.bconv_b1_pack(nullptr, n_channels_, row_words, nullptr));
    kernels.bconv_b1_pack(rows_.data(), n_channels_, row_words, weights_.data());
    params_.weights = weights_.data();
    params_.w_plane_words = weights_.size();
  }
  // The whole layer, as the executor calls it with one thread: row by row.
  void run(bconv_b1_i32_fn kernel) {
    const std::size_t stride = params_.n_blocks * kBconvBlock;
    for (std::size_t oy = 0; oy < out_size_; ++oy) {
      kernel(params_, input_.data(), oy, 0, params_.n_blocks, out_.data() + oy * out_size_ * stride,
             stride);
    }
  }
  std::vector<std::int32_t> result(const KernelTable& kernels) {
    pack(kernels);
    std::fill_n(out_.data(), out_.size(), -1);
    run(kernels.bconv_b1_i32);
    return {out_.data(), out_.data() + out_.size()};
  }
  double n_macs() const { return n_macs_; }

 private:
  std::size_t out_size_;
  double n_macs_;
  std::size_t n_channels_ = 0;
  std::vector<std::uint32_t> rows_;  // of weights, one per output channel
  AlignedBuffer<std::uint32_t> input_, weights_;
  AlignedBuffer<std::int32_t> base_, out_;
  std::vector<std::int32_t> coef_;
  std::vector<std::uint32_t> class_;
  BconvParams params_;
};

double seconds_of(Problem& problem, bconv_b1_i32_fn kernel, int n_runs) {
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < n_runs; ++i) problem.run(kernel);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / n_runs;
}

Measurement measure(const Shape& shape, const BackendInfo& backend, Problem& problem, bool quick) {
  const bconv_b1_i32_fn kernel = backend.table->bconv_b1_i32;
  // Batches of about a millisecond, long beside the clock's resolution.
  const int n_runs =
      quick ? 1 : std::max(1, static_cast<int>(1e-3 / seconds_of(problem, kernel, 1)));
  std::vector<double> ms;
  for (int i = 0; i < (quick ? 1 : 101); ++i)
    ms.push_back(1e3 * seconds_of(problem, kernel, n_runs));
  std::ranges::sort(ms);
  const double median = ms[ms.size() / 2];
  return {shape.name,
          backend.name,
          median,
          ms.front(),
          (ms[ms.size() * 9 / 10] - ms[ms.size() / 10]) / median,
          problem.n_macs() / median * 1e-6};
}

std::string governor() {
  std::ifstream file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
  std::string name;
  return std::getline(file, name) ? name : "unknown";
}

void report(const std::vector<Measurement>& measurements, bool json) {
  if (json) {
    std::printf(
        "{\"cpu\": \"%s\", \"governor\": \"%s\", \"threads\": 1, \"compiler\": \"%s\", \"commit\": "
        "\"%s\", "
        "\"weights\": \"warm\", \"results\": [",
        cpu_name().c_str(), governor().c_str(), __VERSION__, TAC_COMMIT);
    const char* separator = "\n";
    for (const Measurement& m : measurements) {
      std::printf(
          "%s  {\"name\": \"%s\", \"backend\": \"%s\", \"median_ms\": %.5f, \"best_ms\": %.5f, "
          "\"spread\": %.3f, "
          "\"gmac_per_s\": %.1f}",
          separator, std::string(m.name).c_str(), std::string(m.backend).c_str(), m.median_ms,
          m.best_ms, m.spread, m.gmac_per_s);
      separator = ",\n";
    }
    std::printf("\n]}\n");
    return;
  }
  std::printf("%s, governor %s, 1 thread, compiler %s, commit %s\n", cpu_name().c_str(),
              governor().c_str(), __VERSION__, TAC_COMMIT);
  std::printf("%-30s %-8s %10s %10s %7s %8s\n", "bconv_b1_i32", "backend", "median ms", "best ms",
              "spread", "GMAC/s");
  for (const Measurement& m : measurements) {
    std::printf("%-30s %-8s %10.4f %10.4f %6.1f%% %8.1f\n", std::string(m.name).c_str(),
                std::string(m.backend).c_str(), m.median_ms, m.best_ms, 100.0 * m.spread,
                m.gmac_per_s);
  }
}

int run(const Options& options) {
  const KernelTable oracle = select_kernels(0, "scalar").kernels;
  const CpuFeatures features = detect_cpu_features();
  std::vector<Measurement> measurements;
  for (const Shape& shape : kShapes) {
    if (shape.name.find(options.filter) == std::string_view::npos) continue;
    Problem problem(shape);
    const std::vector<std::int32_t> expected = problem.result(oracle);
    for (const BackendInfo& backend : backends()) {
      if (backend.table == nullptr || (backend.required & ~features) != 0) continue;
      if (backend.table->bconv_b1_i32 == nullptr) continue;
      if (!options.backend.empty() && backend.name != options.backend) continue;
      if (problem.result(*backend.table) != expected) {
        std::fprintf(stderr, "%s: backend %s differs from scalar\n",
                     std::string(shape.name).c_str(), std::string(backend.name).c_str());
        return 1;
      }
      measurements.push_back(measure(shape, backend, problem, options.quick));
    }
  }
  if (measurements.empty()) {
    std::fprintf(stderr, "no case matches: backend '%s', filter '%s'\n",
                 std::string(options.backend).c_str(), std::string(options.filter).c_str());
    return 2;
  }
  report(measurements, options.json);
  return 0;
}

}  // namespace
}  // namespace tac::kernels

int main(int argc, char** argv) {
  tac::kernels::Options options;
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
                   "unknown argument '%s'\nusage: tac_kernel_bench [--quick] [--json] [--backend "
                   "NAME] [--filter "
                   "TEXT]\n",
                   argv[i]);
      return 2;
    }
  }
  return tac::kernels::run(options);
}
