// Times the float kernels on the shapes of real networks. One thread. Every answer is
// checked against the plain double-precision loops before it is timed; a wrong answer ends the run.
// Weights are warm: as much of them as the caches hold is there from the repetition before.
//
//   tac_float_bench [--quick] [--json] [--backend NAME] [--filter TEXT]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/cpu_features.h"
#include "command.h"
#include "kernels/dispatch.h"
#include "reference/float_reference.h"
#include "reference/integer_conv.h"
#include "runtime/conv_items.h"
#include "runtime/layout.h"

namespace tac {
namespace {

struct Measurement {
  std::string name;
  std::string_view backend;
  double macs, bytes;  // of one call
  BenchTimes times;
};

// Floats from a 64-byte boundary on.
class Aligned {
 public:
  explicit Aligned(std::size_t count) : storage_(count + 15), count_(count) {}
  float* data() {
    void* p = storage_.data();
    std::size_t space = storage_.size() * sizeof(float);
    return static_cast<float*>(std::align(64, count_ * sizeof(float), p, space));
  }

 private:
  std::vector<float> storage_;
  std::size_t count_;
};

std::vector<float> random_values(std::size_t n, std::uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<float> v(n);
  for (float& x : v)
    x = static_cast<float>(static_cast<int>(engine() >> 8U) - (1 << 23)) * 0x1p-23F;
  return v;
}

void require_close(const std::string& name, const reference::Sum& expected, float got,
                   std::size_t n_terms) {
  const double bound = static_cast<double>(n_terms) * 0x1p-23 * expected.magnitude;
  if (std::fabs(got - expected.value) <= bound) return;
  std::fprintf(stderr, "%s: wrong answer %g, expected %g +- %g\n", name.c_str(),
               static_cast<double>(got), expected.value, bound);
  std::exit(1);
}

// Taps of all output pixels that lie inside the map: the others are not computed.
double taps_inside(const reference::WindowShape& s) {
  double rows_inside = 0;
  double cols_inside = 0;
  for (std::size_t ky = 0; ky < s.kernel_h; ++ky) {
    for (std::size_t oy = 0; oy < s.out_h(); ++oy)
      rows_inside += oy * s.stride_h + ky * s.dilation_h - s.pad_top < s.in_h;
  }
  for (std::size_t kx = 0; kx < s.kernel_w; ++kx) {
    for (std::size_t ox = 0; ox < s.out_w(); ++ox)
      cols_inside += ox * s.stride_w + kx * s.dilation_w - s.pad_left < s.in_w;
  }
  return rows_inside * cols_inside;
}

class Bench {
 public:
  explicit Bench(BenchOptions options)
      : options_(std::move(options)),
        selection_(kernels::select_kernels(detect_cpu_features(), options_.backend)) {}

  void run() {
    conv("first layer 3x32x32 -> 128, 3x3",
         {.in_h = 32,
          .in_w = 32,
          .channels = 3,
          .kernel_h = 3,
          .kernel_w = 3,
          .pad_top = 1,
          .pad_left = 1,
          .pad_bottom = 1,
          .pad_right = 1},
         128);
    conv("first layer 3x224x224 -> 64, 7x7 stride 2",
         {.in_h = 224,
          .in_w = 224,
          .channels = 3,
          .kernel_h = 7,
          .kernel_w = 7,
          .stride_h = 2,
          .stride_w = 2,
          .pad_top = 3,
          .pad_left = 3,
          .pad_bottom = 3,
          .pad_right = 3},
         64);
    conv("first layer 3x224x224 -> 96, 11x11 stride 4",
         {.in_h = 224,
          .in_w = 224,
          .channels = 3,
          .kernel_h = 11,
          .kernel_w = 11,
          .stride_h = 4,
          .stride_w = 4,
          .pad_top = 2,
          .pad_left = 2,
          .pad_bottom = 2,
          .pad_right = 2},
         96);
    conv("inner layer 128x16x16 -> 128, 3x3",
         {.in_h = 16,
          .in_w = 16,
          .channels = 128,
          .kernel_h = 3,
          .kernel_w = 3,
          .pad_top = 1,
          .pad_left = 1,
          .pad_bottom = 1,
          .pad_right = 1},
         128);
    depthwise("blur 64x56x56, 3x3 stride 2", {.in_h = 56,
                                              .in_w = 56,
                                              .channels = 64,
                                              .kernel_h = 3,
                                              .kernel_w = 3,
                                              .stride_h = 2,
                                              .stride_w = 2,
                                              .pad_top = 1,
                                              .pad_left = 1,
                                              .pad_bottom = 1,
                                              .pad_right = 1});
    conv("inner layer 128x28x28 -> 128, 1x1", {.in_h = 28, .in_w = 28, .channels = 128}, 128);
    conv("inner layer 512x7x7 -> 512, 1x1", {.in_h = 7, .in_w = 7, .channels = 512}, 512);
    conv("shortcut 256x14x14 -> 512, 1x1 stride 2",
         {.in_h = 14, .in_w = 14, .channels = 256, .stride_h = 2, .stride_w = 2}, 512);
    const std::size_t layers[][2] = {{8192, 1024}, {1024, 1024}, {4096, 4096}, {9216, 4096}};
    for (const auto& layer : layers) {
      for (const std::size_t batch : {1, 8, 64}) fully_connected(layer[0], layer[1], batch);
    }
    report();
  }

 private:
  // Work of a call beyond which --quick, which only proves that the benchmark runs, leaves a case
  // out.
  static constexpr double kQuickMacs = 1e7;

  bool skipped(const std::string& name, double macs) const {
    if (options_.quick && macs > kQuickMacs) return true;
    return name.find(options_.filter) == std::string::npos;
  }
  double budget_ms() const { return options_.quick ? 1.0 : 400.0; }

  // The backend that serves a kernel, by its place in kernels.def.
  std::string_view backend_of(std::string_view kernel) const {
    std::size_t i = 0;
#define TAC_KERNEL(name)                                    \
  if (kernel == #name) return selection_.kernel_backend[i]; \
  ++i;
#include "kernels/kernels.def"
#undef TAC_KERNEL
    return {};
  }

  void conv(const std::string& label, const reference::WindowShape& s, std::size_t outputs) {
    float_conv(label, s, outputs);
    integer_conv(label, s, outputs);
  }

  void float_conv(const std::string& label, const reference::WindowShape& s, std::size_t outputs) {
    const std::string name = "conv_f32 " + label;
    const std::size_t run = s.kernel_h * s.kernel_w * s.channels;
    if (skipped(name, static_cast<double>(s.out_h() * s.out_w() * outputs * run))) return;
    const std::size_t n_blocks = (outputs + 15) / 16;
    const std::vector<float> w = random_values(outputs * run, 1);
    const std::vector<float> x = random_values(s.in_h * s.in_w * s.channels, 2);
    std::vector<float> bias = random_values(outputs, 3);
    const std::vector<reference::Sum> expected = reference::conv(s, outputs, w, bias, x);
    bias.resize(n_blocks * 16);
    Aligned packed(n_blocks * run * 16);
    for (std::size_t o = 0; o < outputs; ++o) {
      for (std::size_t i = 0; i < run; ++i)
        packed.data()[(o / 16 * run + i) * 16 + o % 16] = w[o * run + i];
    }
    const kernels::ConvParams params{.in_h = s.in_h,
                                     .in_w = s.in_w,
                                     .out_w = s.out_w(),
                                     .kernel_h = s.kernel_h,
                                     .kernel_w = s.kernel_w,
                                     .stride_h = s.stride_h,
                                     .stride_w = s.stride_w,
                                     .dilation_h = s.dilation_h,
                                     .dilation_w = s.dilation_w,
                                     .pad_top = s.pad_top,
                                     .pad_left = s.pad_left,
                                     .in_channels = s.channels,
                                     .out_channels = outputs,
                                     .pixel_stride = s.channels,
                                     .weights = packed.data(),
                                     .bias = bias.data()};
    std::vector<float> y(s.out_h() * s.out_w() * outputs);
    const std::size_t n_rows = conv_rows_per_item(s.out_h(), s.out_w());
    const auto call = [&] {
      for (std::size_t block = 0; block < n_blocks; block += kConvBlocksPerItem) {
        for (std::size_t oy = 0; oy < s.out_h(); oy += n_rows) {
          selection_.kernels.conv_f32(params, x.data(), oy, std::min(oy + n_rows, s.out_h()), block,
                                      std::min(block + kConvBlocksPerItem, n_blocks),
                                      y.data() + oy * s.out_w() * outputs, outputs);
        }
      }
    };
    call();
    for (std::size_t i = 0; i < y.size(); ++i) require_close(name, expected[i], y[i], run);
    const double macs = taps_inside(s) * static_cast<double>(s.channels * outputs);
    measurements_.push_back({name, backend_of("conv_f32"), macs,
                             static_cast<double>(4 * outputs * run),
                             time_calls(budget_ms(), call)});
  }

  // The same layer on integers whose sums fit 32 bits; the map has its padding in memory.
  void integer_conv(const std::string& label, const reference::WindowShape& s,
                    std::size_t outputs) {
    const std::string name = "conv_i16 " + label;
    const std::size_t piece = s.kernel_w * s.channels, row = s.kernel_h * piece;
    const double macs = taps_inside(s) * static_cast<double>(s.channels * outputs);
    if (skipped(name, macs)) return;
    const std::size_t padded_h = s.in_h + s.pad_top + s.pad_bottom;
    const std::size_t padded_row = (s.in_w + s.pad_left + s.pad_right) * s.channels;
    reference::IntegerConv ref;
    ref.in_h = s.in_h;
    ref.in_w = s.in_w;
    ref.out_h = s.out_h();
    ref.out_w = s.out_w();
    ref.in_channels = s.channels;
    ref.out_channels = outputs;
    ref.kernel_h = s.kernel_h;
    ref.kernel_w = s.kernel_w;
    ref.stride_h = s.stride_h;
    ref.stride_w = s.stride_w;
    ref.pad_top = s.pad_top;
    ref.pad_left = s.pad_left;
    std::mt19937 engine(1);
    const auto value = [&] { return static_cast<std::int64_t>(engine() % 1001) - 500; };
    for (std::size_t i = 0; i < s.in_h * s.in_w * s.channels; ++i) ref.input.push_back(value());
    for (std::size_t i = 0; i < outputs * row; ++i) ref.weights.push_back(value());
    const std::size_t pairs = ceil_div(piece, 2), n_blocks = ceil_div(outputs, 16);
    AlignedBuffer<std::int16_t> map(padded_h * padded_row + 1);
    for (std::size_t i = 0; i < ref.input.size(); ++i) {
      const std::size_t y = i / (s.in_w * s.channels) + s.pad_top;
      map[y * padded_row + s.pad_left * s.channels + i % (s.in_w * s.channels)] =
          static_cast<std::int16_t>(ref.input[i]);
    }
    AlignedBuffer<std::int16_t> weights(n_blocks * s.kernel_h * pairs * 32);
    for (std::size_t o = 0; o < outputs; ++o) {
      for (std::size_t k = 0; k < row; ++k) {
        const std::size_t pair = (o / 16 * s.kernel_h + k / piece) * pairs + k % piece / 2;
        weights[(pair * 16 + o % 16) * 2 + k % piece % 2] =
            static_cast<std::int16_t>(ref.weights[o * row + k]);
      }
    }
    std::vector<std::size_t> offsets;
    for (std::size_t ky = 0; ky < s.kernel_h; ++ky) offsets.push_back(ky * padded_row);
    const kernels::IconvParams params{.out_w = s.out_w(),
                                      .pixel_step = s.stride_w * s.channels,
                                      .line_step = s.stride_h * padded_row,
                                      .n_runs = s.kernel_h,
                                      .run_pairs = pairs,
                                      .runs_per_sum = s.kernel_h,
                                      .run_offsets = offsets.data(),
                                      .weights = weights.data()};
    const std::size_t y_stride = n_blocks * 16;
    std::vector<float> y(s.out_h() * s.out_w() * y_stride);
    const std::size_t n_rows = conv_rows_per_item(s.out_h(), s.out_w());
    const auto call = [&] {
      for (std::size_t block = 0; block < n_blocks; block += kConvBlocksPerItem) {
        for (std::size_t oy = 0; oy < s.out_h(); oy += n_rows) {
          selection_.kernels.conv_i16(params, map.data(), oy, std::min(oy + n_rows, s.out_h()),
                                      block, std::min(block + kConvBlocksPerItem, n_blocks),
                                      y.data() + oy * s.out_w() * y_stride + block * 16, y_stride);
        }
      }
    };
    call();
    const std::vector<std::int64_t> expected = reference::integer_conv(ref);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const float got = y[i / outputs * y_stride + i % outputs];
      if (got == static_cast<float>(expected[i])) continue;
      std::fprintf(stderr, "%s: wrong answer %g, expected %lld\n", name.c_str(),
                   static_cast<double>(got), static_cast<long long>(expected[i]));
      std::exit(1);
    }
    measurements_.push_back({name, backend_of("conv_i16"), macs,
                             static_cast<double>(2 * outputs * row),
                             time_calls(budget_ms(), call)});
  }

  void depthwise(const std::string& label, const reference::WindowShape& s) {
    const std::string name = "depthwise_f32 " + label;
    const double macs = taps_inside(s) * static_cast<double>(s.channels);
    if (skipped(name, macs)) return;
    const std::size_t taps = s.kernel_h * s.kernel_w, n_pixels = s.in_h * s.in_w;
    const std::vector<float> weights = random_values(taps * s.channels, 1);
    const std::vector<float> bias = random_values(s.channels, 2);
    const std::vector<float> x = random_values(n_pixels * s.channels, 3);
    const kernels::DepthwiseParams params{.in_h = s.in_h,
                                          .in_w = s.in_w,
                                          .out_w = s.out_w(),
                                          .channels = s.channels,
                                          .kernel_h = s.kernel_h,
                                          .kernel_w = s.kernel_w,
                                          .stride_h = s.stride_h,
                                          .stride_w = s.stride_w,
                                          .dilation_h = s.dilation_h,
                                          .dilation_w = s.dilation_w,
                                          .pad_top = s.pad_top,
                                          .pad_left = s.pad_left,
                                          .weights = weights.data(),
                                          .bias = bias.data()};
    const std::size_t row_size = s.out_w() * s.channels;
    std::vector<float> y(s.out_h() * row_size);
    const auto call = [&] {
      for (std::size_t oy = 0; oy < s.out_h(); ++oy)
        selection_.kernels.depthwise_f32(params, x.data(), oy, y.data() + oy * row_size);
    };
    call();
    reference::WindowShape one = s;  // channel
    one.channels = 1;
    for (std::size_t c = 0; c < s.channels; ++c) {
      std::vector<float> w_c(taps), x_c(n_pixels);
      for (std::size_t i = 0; i < taps; ++i) w_c[i] = weights[i * s.channels + c];
      for (std::size_t i = 0; i < n_pixels; ++i) x_c[i] = x[i * s.channels + c];
      const std::vector<reference::Sum> expected = reference::conv(one, 1, w_c, {bias[c]}, x_c);
      for (std::size_t i = 0; i < expected.size(); ++i)
        require_close(name, expected[i], y[i * s.channels + c], taps);
    }
    measurements_.push_back({name, backend_of("depthwise_f32"), macs,
                             static_cast<double>(4 * taps * s.channels),
                             time_calls(budget_ms(), call)});
  }

  void fully_connected(std::size_t inputs, std::size_t outputs, std::size_t batch) {
    const double macs = static_cast<double>(batch * inputs * outputs);
    const std::string shape = std::to_string(inputs) + " -> " + std::to_string(outputs) +
                              " batch " + std::to_string(batch);
    const std::string name = "linear_f32 " + shape;
    if (skipped(name, macs)) return;
    const std::size_t n_blocks = (outputs + 15) / 16;
    const std::vector<float> w = random_values(outputs * inputs, 4);
    Aligned packed(n_blocks * inputs * 16);
    for (std::size_t o = 0; o < outputs; ++o) {
      for (std::size_t k = 0; k < inputs; ++k)
        packed.data()[(o / 16 * inputs + k) * 16 + o % 16] = w[o * inputs + k];
    }
    const std::size_t n_checked = std::min<std::size_t>(outputs, 64);
    const std::vector<float> bias = random_values(n_blocks * 16, 6);
    const std::vector<float> x = random_values(batch * inputs, 7);
    const std::vector<reference::Sum> expected =
        reference::linear(batch, inputs, n_checked, w, bias, x);
    std::vector<float> y(batch * outputs);
    const kernels::LinearParams params{.in_features = inputs,
                                       .out_features = outputs,
                                       .weights = packed.data(),
                                       .bias = bias.data()};
    const auto call = [&] {
      selection_.kernels.linear_f32(params, x.data(), batch, inputs, 0, n_blocks, y.data(),
                                    outputs);
    };
    call();
    for (std::size_t n = 0; n < batch; ++n) {
      for (std::size_t o = 0; o < n_checked; ++o)
        require_close(name, expected[n * n_checked + o], y[n * outputs + o], inputs);
    }
    measurements_.push_back({name, backend_of("linear_f32"), macs,
                             4.0 * static_cast<double>(inputs * outputs),
                             time_calls(budget_ms(), call)});
  }

  void report() const {
    if (options_.json) {
      std::printf(
          "{\"cpu\": \"%s\", \"threads\": 1, \"clock\": \"thread cpu time\", \"commit\": \"%s\", "
          "\"compiler\": \"%s\", "
          "\"weights\": \"warm\", "
          "\"results\": [",
          cpu_name().c_str(), TAC_COMMIT, __VERSION__);
      const char* separator = "\n";
      for (const Measurement& m : measurements_) {
        std::printf(
            "%s  {\"name\": \"%s\", \"backend\": \"%.*s\", \"median_ms\": %.5f, \"best_ms\": %.5f, "
            "\"spread\": %.3f, "
            "\"gmac_per_s\": %.3f, \"weight_gb_per_s\": %.3f}",
            separator, m.name.c_str(), static_cast<int>(m.backend.size()), m.backend.data(),
            m.times.median_ms, m.times.best_ms, m.times.spread, m.macs / m.times.median_ms * 1e-6,
            m.bytes / m.times.median_ms * 1e-6);
        separator = ",\n";
      }
      std::printf("\n]}\n");
      return;
    }
    std::printf("%s, 1 thread, %s\n", cpu_name().c_str(), __VERSION__);
    std::printf("%-58s %-8s %10s %10s %7s %9s %8s\n", "kernel", "backend", "median ms", "best ms",
                "spread", "GMAC/s", "GB/s w");
    for (const Measurement& m : measurements_) {
      std::printf("%-58s %-8.*s %10.4f %10.4f %6.1f%% %9.2f %8.2f\n", m.name.c_str(),
                  static_cast<int>(m.backend.size()), m.backend.data(), m.times.median_ms,
                  m.times.best_ms, 100.0 * m.times.spread, m.macs / m.times.median_ms * 1e-6,
                  m.bytes / m.times.median_ms * 1e-6);
    }
  }

  BenchOptions options_;
  kernels::Selection selection_;
  std::vector<Measurement> measurements_;
};

}  // namespace
}  // namespace tac

int main(int argc, char** argv) {
  return tac::bench_main(argc, argv, "tac_float_bench", [](tac::BenchOptions& options) {
    tac::Bench(std::move(options)).run();
    return 0;
  });
}
