// Times fully connected codebook layers in both ways beside the dense float layer of the
// same size. One thread. Layers are prepared and run as an engine does it, the rounding of inputs
// to 16 bits included; before a layer is timed its first outputs are checked against plain
// double-precision loops, and a wrong answer ends the run. Weights are warm: as much of them as the
// caches hold is there from the repetition before.
//
//   tac_codebook_bench [--quick] [--json] [--backend NAME] [--filter TEXT]
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

#include "base/cpu_features.h"
#include "base/thread_pool.h"
#include "command.h"
#include "format/writer.h"
#include "kernels/dispatch.h"
#include "reference/float_reference.h"
#include "runtime/step.h"

namespace tac {
namespace {

enum class Inputs { kFloat, kRelu, kSigns };
constexpr std::string_view kInputNames[] = {"float", "relu", "+-1"};

struct Measurement {
  std::string layer, arithmetic, kernel;
  std::size_t inputs, outputs, batch;
  int zeros_percent;
  std::string_view x;
  double nonzeros;                    // weights, of one image
  double median_us, best_us, spread;  // of one image; spread: (90th - 10th percentile) / median
  double param_bytes;
  double dense_us;  // linear_f32 on the same shape and batch
};

// Weights as pruning and clustering leave them: normal, the smallest set to 0, the others rounded
// to 15 values from the smallest to the largest.
struct Weights {
  std::vector<float> values;        // the codebook, 15
  std::vector<std::uint8_t> codes;  // [outputs][inputs], 15 for zero
  std::size_t nonzeros = 0;

  Weights(std::size_t inputs, std::size_t outputs, int zeros_percent) : codes(inputs * outputs) {
    std::mt19937 engine(static_cast<std::uint32_t>(zeros_percent) + 5U);
    std::normal_distribution<float> normal;
    std::vector<float> sample(100000);
    for (float& v : sample) v = std::fabs(normal(engine));
    std::sort(sample.begin(), sample.end());
    const float threshold = sample[sample.size() / 100 * static_cast<std::size_t>(zeros_percent)];
    constexpr float kLargest = 4.5F;
    for (int i = 0; i < 8; ++i) {
      const float v = threshold + (kLargest - threshold) * static_cast<float>(i) / 7.0F;
      values.push_back(v);
      if (i < 7) values.push_back(-v);
    }
    for (std::uint8_t& code : codes) {
      const float v = normal(engine);
      code = 15;
      if (std::fabs(v) < threshold) continue;
      ++nonzeros;
      const float place = (std::fabs(v) - threshold) / (kLargest - threshold) * 7.0F;
      const int i = std::min(v < 0 ? 6 : 7, static_cast<int>(std::lround(place)));
      code = static_cast<std::uint8_t>(2 * i + (v < 0 ? 1 : 0));
    }
  }
  float value(std::size_t i) const { return codes[i] == 15 ? 0.0F : values[codes[i]]; }
};

// One layer of a graph of its own, prepared and ready to run.
class Layer {
 public:
  Layer(std::size_t inputs, std::size_t outputs, const kernels::Selection& selection,
        const std::function<OpVariant(ModelWriter&)>& make) {
    for (const std::size_t size : {inputs, outputs}) {
      Tensor tensor;
      tensor.name = writer_.graph.tensors.empty() ? "x" : "y";
      tensor.dims = {static_cast<std::int64_t>(size)};
      writer_.graph.tensors.push_back(tensor);
    }
    writer_.graph.inputs.push_back({0, {}});
    writer_.graph.outputs.push_back(1);
    writer_.graph.ops.push_back({"layer", "", make(writer_)});
    validate(writer_.graph);
    const PrepareContext ctx{writer_.graph, selection, 1};
    if (const auto* book = std::get_if<CodebookLinear>(&writer_.graph.ops[0].op)) {
      step_ = prepare(*book, ctx);
    } else {
      step_ = prepare(std::get<Linear>(writer_.graph.ops[0].op), ctx);
    }
  }

  const Step& step() const { return *step_; }
  void run(const float* x, float* y, std::size_t batch) {
    if (scratch_.size() < batch * step_->sample_scratch_bytes)
      scratch_ = AlignedBuffer<std::byte>(batch * step_->sample_scratch_bytes);
    if (thread_scratch_.size() < step_->thread_scratch_bytes)
      thread_scratch_ = AlignedBuffer<std::byte>(step_->thread_scratch_bytes);
    step_->make_ready(batch);
    std::byte* tensors[] = {reinterpret_cast<std::byte*>(const_cast<float*>(x)),
                            reinterpret_cast<std::byte*>(y)};
    RunContext ctx;
    ctx.pool = &pool_;
    ctx.tensors = tensors;
    ctx.n_samples = batch;
    ctx.sample_scratch = scratch_.data();
    ctx.thread_scratch = thread_scratch_.data();
    ctx.thread_scratch_stride = thread_scratch_.size();
    step_->run(ctx);
  }

 private:
  ModelWriter writer_;
  std::unique_ptr<Step> step_;
  ThreadPool pool_{1};
  AlignedBuffer<std::byte> scratch_, thread_scratch_;
};

OpVariant dense_op(ModelWriter& writer, const Weights& weights, const std::vector<float>& bias) {
  std::vector<float> values(weights.codes.size());
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = weights.value(i);
  return Linear{0, 1, writer.own_array<float>(values), writer.own_array<float>(bias)};
}

// Of the scales that give the largest value 14 bits or less the one with the smallest error, as the
// converter chooses it.
float best_scale(const Weights& weights) {
  std::vector<double> counts(16);
  for (const std::uint8_t code : weights.codes) counts[code] += 1.0;
  float largest = 0.0F;
  for (const float v : weights.values) largest = std::max(largest, std::fabs(v));
  float best = 0.0F;
  double smallest_error = INFINITY;
  for (int level = 1; level <= 16383; ++level) {
    const float scale = largest / static_cast<float>(level);
    double error = 0.0;
    for (std::size_t i = 0; i < weights.values.size(); ++i) {
      const double v = weights.values[i];
      const double miss = std::nearbyint(v / scale) * scale - v;
      error += counts[i] * miss * miss;
    }
    if (error >= smallest_error) continue;
    smallest_error = error;
    best = scale;
  }
  return best;
}

OpVariant codebook_op(ModelWriter& writer, const Weights& weights, const std::vector<float>& bias,
                      bool integer) {
  const std::size_t outputs = bias.size();
  const std::size_t inputs = weights.codes.size() / outputs;
  const std::size_t words = (inputs + 31) / 32;
  std::vector<std::uint32_t> bitmap(outputs * words);
  std::vector<std::uint8_t> codes;
  bool half = false;
  for (std::size_t i = 0; i < weights.codes.size(); ++i) {
    const std::uint8_t code = weights.codes[i];
    if (code == 15) continue;
    bitmap[i / inputs * words + i % inputs / 32] |= 1U << (i % inputs % 32);
    if (half) {
      codes.back() = static_cast<std::uint8_t>(codes.back() | code << 4U);
    } else {
      codes.push_back(code);
    }
    half = !half;
  }
  CodebookLinear op;
  op.input = 0;
  op.output = 1;
  op.codebook = writer.own_array<float>(weights.values);
  op.bitmap = writer.own_array<std::uint32_t>(bitmap);
  op.codes = writer.own_array<std::uint8_t>(codes);
  op.bias = writer.own_array<float>(bias);
  if (integer) {
    op.level_scale = best_scale(weights);
    std::vector<std::int32_t> levels;
    for (const float v : weights.values)
      levels.push_back(static_cast<std::int32_t>(std::lround(v / op.level_scale)));
    op.levels = writer.own_array<std::int32_t>(levels);
  }
  return op;
}

class Bench {
 public:
  explicit Bench(BenchOptions options)
      : options_(std::move(options)),
        selection_(kernels::select_kernels(detect_cpu_features(), options_.backend)) {}

  void run() {
    const std::size_t layers[][2] = {{1024, 1024}, {8192, 1024}, {4096, 4096}, {9216, 4096}};
    for (const auto& layer : layers) {
      for (const int zeros : {60, 75, 90}) run_layer(layer[0], layer[1], zeros);
    }
    report();
  }

 private:
  // Weights beyond which --quick, which only proves that the benchmark runs, leaves a layer out.
  static constexpr std::size_t kQuickWeights = 1 << 20;
  static constexpr std::size_t kMaxBatch = 64;
  static constexpr std::size_t kCheckedOutputs = 64;

  double budget_ms() const { return options_.quick ? 1.0 : 150.0; }

  void run_layer(std::size_t inputs, std::size_t outputs, int zeros) {
    const std::string name = std::to_string(inputs) + " -> " + std::to_string(outputs) + ", " +
                             std::to_string(zeros) + " % zeros";
    if (options_.quick && inputs * outputs > kQuickWeights) return;
    if (name.find(options_.filter) == std::string::npos) return;
    const Weights weights(inputs, outputs, zeros);
    std::mt19937 engine(7);
    std::normal_distribution<float> normal;
    std::vector<float> bias(outputs);
    for (float& b : bias) b = normal(engine);
    Layer dense(inputs, outputs, selection_,
                [&](ModelWriter& w) { return dense_op(w, weights, bias); });
    Layer floats(inputs, outputs, selection_,
                 [&](ModelWriter& w) { return codebook_op(w, weights, bias, false); });
    Layer integers(inputs, outputs, selection_,
                   [&](ModelWriter& w) { return codebook_op(w, weights, bias, true); });
    std::vector<float> checked_weights(kCheckedOutputs * inputs);
    for (std::size_t i = 0; i < checked_weights.size(); ++i) checked_weights[i] = weights.value(i);

    std::vector<float> x(kMaxBatch * inputs);
    std::vector<float> y(kMaxBatch * outputs);
    std::vector<double> dense_us(kMaxBatch + 1);
    for (const Inputs kind : {Inputs::kFloat, Inputs::kRelu, Inputs::kSigns}) {
      for (float& v : x) {
        v = normal(engine);
        if (kind == Inputs::kRelu) v = std::max(v, 0.0F);
        if (kind == Inputs::kSigns) v = std::copysign(1.0F, v);
      }
      for (const std::size_t batch : {1, 8, 16, 32, 64}) {
        const std::vector<reference::Sum> expected = reference::linear(
            batch, inputs, kCheckedOutputs, checked_weights, bias,
            std::vector<float>(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(batch * inputs)));
        const auto add = [&](Layer& layer, const char* arithmetic, bool integer) {
          std::fill(y.begin(), y.end(), NAN);
          layer.run(x.data(), y.data(), batch);
          check(name, expected, y, batch, inputs, outputs, integer);
          const BenchTimes t =
              time_calls(budget_ms(), [&] { layer.run(x.data(), y.data(), batch); });
          const double us_per_image = 1e3 / static_cast<double>(batch);
          if (&layer == &dense) dense_us[batch] = t.median_ms * us_per_image;
          measurements_.push_back(
              {name, arithmetic, layer.step().kernel_for(batch), inputs, outputs, batch, zeros,
               kInputNames[static_cast<std::size_t>(kind)], static_cast<double>(weights.nonzeros),
               t.median_ms * us_per_image, t.best_ms * us_per_image, t.spread,
               static_cast<double>(layer.step().param_bytes_for(batch)), dense_us[batch]});
        };
        if (kind == Inputs::kFloat) add(dense, "dense", false);
        add(floats, "f32", false);
        add(integers, "i16", true);
      }
    }
  }

  // A float sum by its length, the integer layer by 1e-4 of the largest output.
  static void check(const std::string& name, const std::vector<reference::Sum>& expected,
                    const std::vector<float>& y, std::size_t batch, std::size_t inputs,
                    std::size_t outputs, bool integer) {
    double largest = 0.0;
    for (const reference::Sum& sum : expected) largest = std::max(largest, std::fabs(sum.value));
    for (std::size_t n = 0; n < batch; ++n) {
      for (std::size_t o = 0; o < kCheckedOutputs; ++o) {
        const reference::Sum& sum = expected[n * kCheckedOutputs + o];
        const double bound =
            integer ? 1e-4 * largest : static_cast<double>(inputs) * 0x1p-23 * sum.magnitude;
        const float got = y[n * outputs + o];
        if (std::fabs(got - sum.value) <= bound) continue;
        std::fprintf(stderr, "%s: wrong answer %g, expected %g +- %g\n", name.c_str(),
                     static_cast<double>(got), sum.value, bound);
        std::exit(1);
      }
    }
  }

  void report() const {
    if (options_.json) {
      std::printf(
          "{\"cpu\": \"%s\", \"threads\": 1, \"clock\": \"thread cpu time\", \"commit\": \"%s\", "
          "\"compiler\": \"%s\", \"weights\": \"warm\", \"results\": [",
          cpu_name().c_str(), TAC_COMMIT, __VERSION__);
      const char* separator = "\n";
      for (const Measurement& m : measurements_) {
        std::printf(
            "%s  {\"layer\": \"%s\", \"inputs\": %zu, \"outputs\": %zu, \"zeros_percent\": %d, "
            "\"arithmetic\": \"%s\", \"kernel\": \"%s\", \"x\": \"%.*s\", \"batch\": %zu, "
            "\"median_us_per_image\": %.3f, \"best_us_per_image\": %.3f, \"spread\": %.3f, "
            "\"gnnz_per_s\": %.3f, \"dense_ratio\": %.3f, \"param_bytes\": %.0f}",
            separator, m.layer.c_str(), m.inputs, m.outputs, m.zeros_percent, m.arithmetic.c_str(),
            m.kernel.c_str(), static_cast<int>(m.x.size()), m.x.data(), m.batch, m.median_us,
            m.best_us, m.spread, m.nonzeros / m.median_us * 1e-3, m.dense_us / m.median_us,
            m.param_bytes);
        separator = ",\n";
      }
      std::printf("\n]}\n");
      return;
    }
    std::printf("%s, 1 thread, %s; us per image\n", cpu_name().c_str(), __VERSION__);
    std::printf("%-28s %-6s %5s %-6s %9s %9s %7s %8s %8s  %s\n", "layer", "x", "batch", "sums",
                "median us", "best us", "spread", "Gnnz/s", "x dense", "kernel");
    for (const Measurement& m : measurements_) {
      std::printf("%-28s %-6.*s %5zu %-6s %9.2f %9.2f %6.1f%% %8.2f %8.2f  %s\n", m.layer.c_str(),
                  static_cast<int>(m.x.size()), m.x.data(), m.batch, m.arithmetic.c_str(),
                  m.median_us, m.best_us, 100.0 * m.spread, m.nonzeros / m.median_us * 1e-3,
                  m.dense_us / m.median_us, m.kernel.c_str());
    }
  }

  BenchOptions options_;
  kernels::Selection selection_;
  std::vector<Measurement> measurements_;
};

}  // namespace
}  // namespace tac

int main(int argc, char** argv) {
  return tac::bench_main(argc, argv, "tac_codebook_bench", [](tac::BenchOptions& options) {
    tac::Bench(std::move(options)).run();
    return 0;
  });
}
