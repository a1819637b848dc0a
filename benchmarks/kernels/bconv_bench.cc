// Times bconv_b1_i32, and whole binary layers from bits to bits, per shape and runnable backend.
// One thread; weights and activations are warm. Every answer is compared with the scalar backend's
// before it is timed; a wrong answer ends the run with status 1.
//
// GMAC/s counts nominal MACs: those of taps in the padding are counted and not computed. `limit` is
// what the backend's inner operations reach on registers alone, timed in turns with the kernel, and
// the shares of it are of the nominal MACs and of those inside the map; each plane of activations
// is a MAC there.
//
//   tac_kernel_bench [--quick] [--json] [--backend NAME] [--filter TEXT]
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "command.h"
#include "format/writer.h"
#include "kernels/dispatch.h"
#include "limits/limits.h"
#include "runtime/step.h"

namespace tac::kernels {
namespace {

struct Shape {
  std::string_view name;
  std::size_t in_channels, out_channels, size, kernel, stride, n_in_planes;
};

constexpr Shape kKernelShapes[] = {
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
constexpr Shape kLayerShapes[] = {
    {"layer 3x3 64@56", 64, 64, 56, 3, 1, 1},
    {"layer 3x3 128@28", 128, 128, 28, 3, 1, 1},
    {"layer 3x3 256@14", 256, 256, 14, 3, 1, 1},
    {"layer 3x3 512@7", 512, 512, 7, 3, 1, 1},
    {"layer 3x3 128@32", 128, 128, 32, 3, 1, 1},
    {"layer 3x3 256@16", 256, 256, 16, 3, 1, 1},
    {"layer 3x3 512@8", 512, 512, 8, 3, 1, 1},
    {"layer 1x1 256@14", 256, 256, 14, 1, 1, 1},
    {"layer 1x1 512@7", 512, 512, 7, 1, 1, 1},
    {"layer 3x3 stride 2 128@28", 128, 128, 28, 3, 2, 1},
    {"layer 8192 -> 1024", 8192, 1024, 1, 1, 1, 1},
};

struct Measurement {
  std::string_view name, backend;
  double median_ms, best_ms, spread;  // spread: (90th - 10th percentile) / median
  double gmac_per_s;
  double limit_gmac_per_s, share, share_inside;  // 0 where the backend has no limit
};

struct Macs {
  std::size_t out_size;
  double nominal, inside;
};

Macs macs_of(const Shape& s) {
  const std::size_t pad = s.kernel / 2, out_size = (s.size + 2 * pad - s.kernel) / s.stride + 1;
  std::size_t taps = 0;  // of one axis, inside the map, over all outputs
  for (std::size_t o = 0; o < out_size; ++o) {
    for (std::size_t k = 0; k < s.kernel; ++k) taps += o * s.stride + k - pad < s.size ? 1 : 0;
  }
  const auto channels = static_cast<double>(s.in_channels * s.out_channels);
  const std::size_t all_taps = out_size * s.kernel;
  return {out_size, static_cast<double>(all_taps * all_taps) * channels,
          static_cast<double>(taps * taps) * channels};
}

limits::bconv_b1_fn* limit_of(std::string_view backend) {
#if defined(__x86_64__)
  if (backend == "amx") return limits::amx::bconv_b1;
  if (backend == "avx512") return limits::avx512::bconv_b1;
  if (backend == "avx512vnni" || backend == "avx512bw") return limits::avx512bw::bconv_b1;
  if (backend == "avx2") return limits::avx2::bconv_b1;
#endif
  return backend == "scalar" ? limits::scalar::bconv_b1 : nullptr;
}

class KernelProblem {
 public:
  explicit KernelProblem(const Shape& s)
      : out_h_(macs_of(s).out_size), n_channels_(s.out_channels) {
    // Rows of single pixels are joined, as the executor joins them.
    std::size_t n_joined = 1;
    for (std::size_t n = 2; s.kernel == 1 && s.stride == 1 && n * s.size <= 64; ++n) {
      if (s.size % n == 0) n_joined = n;
    }
    const std::size_t out_w = out_h_ * n_joined;
    out_h_ /= n_joined;
    const std::size_t words = s.in_channels / 32;
    const std::size_t n_blocks = (s.out_channels + kBconvBlock - 1) / kBconvBlock;
    input_ = AlignedBuffer<std::uint32_t>(s.n_in_planes * s.size * s.size * words);
    rows_.resize(s.out_channels * s.kernel * s.kernel * words);
    base_ = AlignedBuffer<std::int32_t>(n_blocks * kBconvBlock);
    out_ = AlignedBuffer<std::int32_t>(out_h_ * out_w * n_blocks * kBconvBlock);
    class_.assign(out_w, 0);
    for (std::size_t i = 0; i < s.n_in_planes; ++i) coef_.push_back(1 << i);
    std::mt19937 random(1);
    for (std::size_t i = 0; i < input_.size(); ++i) input_[i] = random();
    for (std::uint32_t& word : rows_) word = random();
    for (std::size_t i = 0; i < base_.size(); ++i) {
      base_[i] = static_cast<std::int32_t>(random() % 4096);
    }
    params_ = {.in_h = s.size / n_joined,
               .in_w = s.size * n_joined,
               .out_w = out_w,
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

  static bool times(const KernelTable& table) { return table.bconv_b1_i32 != nullptr; }
  void choose(const Selection& selection) {
    const KernelTable& kernels = selection.kernels;
    kernel_ = kernels.bconv_b1_i32;
    chunk_blocks_ = selection.backend == "avx512" ? 4 : 8;  // as runtime/ops/binary_conv.cc
    const std::size_t row_words = rows_.size() / n_channels_;
    weights_ = AlignedBuffer<std::uint32_t>(
        kernels.bconv_b1_pack(nullptr, n_channels_, row_words, nullptr));
    kernels.bconv_b1_pack(rows_.data(), n_channels_, row_words, weights_.data());
    params_.weights = weights_.data();
    params_.w_plane_words = weights_.size();
  }
  // The whole layer, as the executor calls it: few blocks at a time, all rows with the same ones.
  void run() {
    const std::size_t stride = params_.n_blocks * kBconvBlock;
    for (std::size_t block = 0; block < params_.n_blocks; block += chunk_blocks_) {
      const std::size_t end = std::min(block + chunk_blocks_, params_.n_blocks);
      for (std::size_t oy = 0; oy < out_h_; ++oy) {
        kernel_(params_, input_.data(), oy, block, end,
                out_.data() + oy * params_.out_w * stride + block * kBconvBlock, stride);
      }
    }
  }
  std::vector<std::int32_t> result() {
    std::fill_n(out_.data(), out_.size(), -1);
    run();
    return {out_.data(), out_.data() + out_.size()};
  }

 private:
  std::size_t out_h_, n_channels_;
  std::vector<std::uint32_t> rows_;  // of weights, one per output channel
  AlignedBuffer<std::uint32_t> input_, weights_;
  AlignedBuffer<std::int32_t> base_, out_;
  std::vector<std::int32_t> coef_;
  std::vector<std::uint32_t> class_;
  BconvParams params_;
  bconv_b1_i32_fn kernel_ = nullptr;
  std::size_t chunk_blocks_ = 0;
};

// One layer of a model: packed signs to packed signs.
class LayerProblem {
 public:
  explicit LayerProblem(const Shape& s) {
    const std::size_t out_size = macs_of(s).out_size;
    Graph& graph = writer_.graph;
    const auto add = [&](std::size_t size, std::size_t channels) {
      Tensor t;
      t.name = "tensor";
      t.dtype = DType::kBits;
      t.encoding = {Encoding::Kind::kLinear, 1, -2, 2};
      const auto side = static_cast<std::int64_t>(size);
      t.dims = {side, side, static_cast<std::int64_t>(channels)};
      graph.tensors.push_back(t);
      return static_cast<TensorId>(graph.tensors.size() - 1);
    };
    std::mt19937 random(1);
    const auto words = [&](std::size_t count) {
      std::vector<std::uint32_t> v(count);
      for (std::uint32_t& word : v) word = random();
      return v;
    };
    op_.input = add(s.size, s.in_channels);
    op_.output = add(out_size, s.out_channels);
    const auto kernel = static_cast<std::int64_t>(s.kernel), pad = kernel / 2,
               stride = static_cast<std::int64_t>(s.stride);
    op_.window = {{kernel, kernel}, {stride, stride}, {1, 1}, {pad, pad, pad, pad}};
    const std::size_t k = s.kernel * s.kernel * s.in_channels;
    op_.weights = writer_.own_array<std::uint32_t>(words(s.out_channels * ((k + 31) / 32)));
    std::vector<std::int32_t> thresholds(s.out_channels);
    for (std::int32_t& t : thresholds) t = static_cast<std::int32_t>(random() % 65) - 32;
    op_.thresholds = writer_.own_array<std::int32_t>(thresholds);
    op_.descending = writer_.own_array<std::uint8_t>(std::vector<std::uint8_t>(s.out_channels, 0));
    input_ = words(s.size * s.size * s.in_channels / 32);
    output_.resize(out_size * out_size * s.out_channels / 32);
  }

  static bool times(const KernelTable& table) {
    return table.bconv_b1_i32 != nullptr || table.bconv_strip_i32 != nullptr;
  }
  void choose(const Selection& selection) {
    step_ = prepare(op_, {writer_.graph, selection, 1});
    sample_scratch_ = AlignedBuffer<std::byte>(step_->sample_scratch_bytes);
    thread_scratch_ = AlignedBuffer<std::byte>(step_->thread_scratch_bytes);
  }
  void run() {
    std::byte* const tensors[] = {reinterpret_cast<std::byte*>(input_.data()),
                                  reinterpret_cast<std::byte*>(output_.data())};
    step_->run({&pool_, tensors, 1, sample_scratch_.data(), thread_scratch_.data(),
                thread_scratch_.size()});
  }
  std::vector<std::uint32_t> result() {
    std::ranges::fill(output_, 0xAAAAAAAAU);
    run();
    return output_;
  }

 private:
  ModelWriter writer_;
  BinaryConv op_;
  std::vector<std::uint32_t> input_, output_;
  std::unique_ptr<Step> step_;
  AlignedBuffer<std::byte> sample_scratch_, thread_scratch_;
  ThreadPool pool_{1};
};

template <class Fn>
double seconds_of(const Fn& fn, int n_runs) {
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < n_runs; ++i) fn();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / n_runs;
}

template <class Problem>
Measurement measure(const Shape& shape, std::string_view backend, Problem& problem, bool quick) {
  const auto kernel = [&] { problem.run(); };
  limits::bconv_b1_fn* limit = limit_of(backend);
  std::size_t limit_macs = 0;
  const auto limit_round = [&] { limit_macs = limit(10000); };
  // Batches of about a millisecond, long beside the clock's resolution.
  const auto batch = [&](const auto& fn) {
    return quick ? 1 : std::max(1, static_cast<int>(1e-3 / seconds_of(fn, 1)));
  };
  const int n_runs = batch(kernel), n_limit_runs = limit == nullptr ? 0 : batch(limit_round);
  std::vector<double> ms, limit_ms;
  for (int i = 0; i < (quick ? 1 : 101); ++i) {
    ms.push_back(1e3 * seconds_of(kernel, n_runs));
    if (limit != nullptr) limit_ms.push_back(1e3 * seconds_of(limit_round, n_limit_runs));
  }
  std::ranges::sort(ms);
  std::ranges::sort(limit_ms);
  const Macs macs = macs_of(shape);
  const double median = ms[ms.size() / 2];
  Measurement m{shape.name,
                backend,
                median,
                ms.front(),
                (ms[ms.size() * 9 / 10] - ms[ms.size() / 10]) / median,
                macs.nominal / median * 1e-6,
                0.0,
                0.0,
                0.0};
  if (limit != nullptr) {
    m.limit_gmac_per_s = static_cast<double>(limit_macs) / limit_ms[limit_ms.size() / 2] * 1e-6;
    const double planes_per_limit = static_cast<double>(shape.n_in_planes) / m.limit_gmac_per_s;
    m.share = m.gmac_per_s * planes_per_limit;
    m.share_inside = macs.inside / median * 1e-6 * planes_per_limit;
  }
  return m;
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
          "\"gmac_per_s\": %.1f, \"limit_gmac_per_s\": %.1f, \"share_of_limit\": %.3f, "
          "\"share_of_limit_inside\": %.3f}",
          separator, std::string(m.name).c_str(), std::string(m.backend).c_str(), m.median_ms,
          m.best_ms, m.spread, m.gmac_per_s, m.limit_gmac_per_s, m.share, m.share_inside);
      separator = ",\n";
    }
    std::printf("\n]}\n");
    return;
  }
  std::printf("%s, governor %s, 1 thread, compiler %s, commit %s\n", cpu_name().c_str(),
              governor().c_str(), __VERSION__, TAC_COMMIT);
  std::printf("%-30s %-8s %10s %10s %7s %8s %8s %7s %7s\n", "bconv_b1_i32", "backend", "median ms",
              "best ms", "spread", "GMAC/s", "limit", "share", "inside");
  for (const Measurement& m : measurements) {
    std::printf("%-30s %-8s %10.4f %10.4f %6.1f%% %8.1f %8.1f %6.1f%% %6.1f%%\n",
                std::string(m.name).c_str(), std::string(m.backend).c_str(), m.median_ms, m.best_ms,
                100.0 * m.spread, m.gmac_per_s, m.limit_gmac_per_s, 100.0 * m.share,
                100.0 * m.share_inside);
  }
}

// False, and a message, where a backend's answer is wrong.
template <class Problem>
bool measure_all(std::span<const Shape> shapes, const BenchOptions& options,
                 std::vector<Measurement>& measurements) {
  const CpuFeatures features = detect_cpu_features();
  for (const Shape& shape : shapes) {
    if (shape.name.find(options.filter) == std::string_view::npos) continue;
    Problem problem(shape);
    problem.choose(select_kernels(0, "scalar"));
    const auto expected = problem.result();
    for (const BackendInfo& backend : backends()) {
      if (backend.table == nullptr || (backend.required & ~features) != 0) continue;
      if (!Problem::times(*backend.table)) continue;
      if (!options.backend.empty() && backend.name != options.backend) continue;
      problem.choose(select_kernels(features, backend.name));
      if (problem.result() != expected) {
        std::fprintf(stderr, "%s: backend %s differs from scalar\n",
                     std::string(shape.name).c_str(), std::string(backend.name).c_str());
        return false;
      }
      measurements.push_back(measure(shape, backend.name, problem, options.quick));
    }
  }
  return true;
}

int run(const BenchOptions& options) {
  std::vector<Measurement> measurements;
  if (!measure_all<KernelProblem>(kKernelShapes, options, measurements) ||
      !measure_all<LayerProblem>(kLayerShapes, options, measurements)) {
    return 1;
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
  return tac::bench_main(argc, argv, "tac_kernel_bench", tac::kernels::run);
}
