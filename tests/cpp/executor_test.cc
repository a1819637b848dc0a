// Whole graphs through Engine, compared with a naive evaluation.
#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <new>
#include <optional>
#include <random>
#include <thread>

#include "backends_under_test.h"
#include "base/error.h"
#include "float_testing.h"
#include "format/writer.h"
#include "ir/op_names.h"
#include "naive_graph.h"
#include "runtime/codebook_layout.h"
#include "runtime/engine.h"
#include "runtime/layout.h"
#include "runtime/plan.h"
#include "runtime/step.h"
#include "sample_graphs.h"

// Counts the allocations of the whole test program, for RunAllocatesNothing.
namespace {
std::atomic<std::size_t> n_allocations{0};
void* counted(std::size_t bytes, std::size_t alignment) {
  n_allocations.fetch_add(1, std::memory_order_relaxed);
  void* p = nullptr;
  if (posix_memalign(&p, alignment, bytes == 0 ? 1 : bytes) != 0) throw std::bad_alloc();
  return p;
}
}  // namespace
void* operator new(std::size_t bytes) {
  return counted(bytes, alignof(std::max_align_t));
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  n_allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(bytes == 0 ? 1 : bytes);
}
void operator delete(void* p, const std::nothrow_t&) noexcept {
  std::free(p);
}
void operator delete(void* p) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
  std::free(p);
}
void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}

namespace tac {
namespace {

using test::Dims;
using test::NaiveGraph;
using test::Values;

constexpr std::uint32_t kSeed = 7;
constexpr Encoding kNarrow{Encoding::Kind::kLinear, -1, 1, 3};
constexpr Encoding kZeroOne{Encoding::Kind::kLinear, 0, 1, 2};
constexpr Encoding kFourBit{Encoding::Kind::kLinear, 0, 1, 16};
constexpr Encoding kFallingByThree{Encoding::Kind::kLinear, 5, -3, 5};
const std::vector<Encoding> kEncodings{test::kBinary, test::kTwoBit, test::kSignZero, kNarrow,
                                       kZeroOne,      kFourBit,      kFallingByThree};

// How BinaryConv::weights stand for levels.
struct WeightForm {
  std::vector<std::int64_t> coefs{1};
  std::int64_t shift = 0;
};

// A graph that grows op by op, filled at random. Floats are small whole numbers or halves, so that
// float32 sums of any order are exact and results compare exactly.
class Builder {
 public:
  explicit Builder(std::uint32_t seed) : random_(seed) {}

  ModelWriter writer;

  Graph& graph() { return writer.graph; }
  int between(int low, int high) {
    return low + static_cast<int>(random_() % static_cast<unsigned>(high - low + 1));
  }
  bool coin() { return between(0, 1) == 1; }
  const Tensor& tensor(TensorId id) { return graph().tensors[id]; }

  TensorId input(Dims dims) {
    const TensorId id = f32(std::move(dims));
    graph().inputs.push_back({id, {}});
    return id;
  }
  TensorId f32(Dims dims) {
    return test::add_tensor(graph(), next_name(), DType::kF32, std::move(dims));
  }
  TensorId bits(Dims dims, Encoding e) {
    return test::add_tensor(graph(), next_name(), DType::kBits, std::move(dims), e);
  }
  TensorId constant(Dims dims) {
    Tensor t;
    t.name = next_name();
    t.is_constant = true;
    t.data = floats(static_cast<std::size_t>(test::count(dims)), -3, 3).bytes;
    t.dims = std::move(dims);
    graph().tensors.push_back(t);
    return static_cast<TensorId>(graph().tensors.size() - 1);
  }
  template <class Struct>
  TensorId add(Struct op) {
    const TensorId out = op.output;
    graph().ops.push_back({"op" + std::to_string(graph().ops.size()), "test", std::move(op)});
    return out;
  }

  BlobOf<float> floats(std::size_t n, int low, int high) {
    std::vector<float> v(n);
    for (float& x : v) x = static_cast<float>(between(2 * low, 2 * high)) / 2;
    return writer.own_array<float>(v);
  }
  BlobOf<std::uint8_t> flags(std::size_t n) {
    std::vector<std::uint8_t> v(n);
    for (auto& x : v) x = coin() ? 1 : 0;
    return writer.own_array<std::uint8_t>(v);
  }
  template <class T>
  BlobOf<T> thresholds(std::size_t rows, const Encoding& e, int reach) {
    std::vector<T> v;
    for (std::size_t r = 0; r < rows; ++r) {
      std::vector<T> row(e.n_levels - 1);
      for (T& t : row) t = static_cast<T>(between(-reach, reach));
      if (between(0, 9) == 0) row.front() = std::numeric_limits<T>::lowest();
      if (between(0, 9) == 0) row.back() = std::numeric_limits<T>::max();
      std::ranges::sort(row);
      v.insert(v.end(), row.begin(), row.end());
    }
    return writer.own_array<T>(v);
  }
  // Rows of n_bits random bits, padded with 0 to whole words.
  // A bit is 1 with probability 2^-halvings.
  BlobOf<std::uint32_t> bit_rows(std::size_t rows, std::size_t n_bits, int halvings = 1) {
    const std::size_t words = (n_bits + 31) / 32;
    std::vector<std::uint32_t> v(rows * words);
    for (std::size_t i = 0; i < v.size(); ++i) {
      v[i] = random_();
      for (int j = 1; j < halvings; ++j) v[i] &= random_();
      if (i % words == words - 1 && n_bits % 32 != 0) v[i] &= (1U << (n_bits % 32)) - 1;
    }
    return writer.own_array<std::uint32_t>(v);
  }

  Window window(const Dims& in, bool allow_padding = true) {
    Window w;
    for (std::size_t axis = 0; axis < 2; ++axis) {
      const auto size = static_cast<int>(in[axis]);
      w.kernel[axis] = between(1, std::min(3, size));
      w.strides[axis] = between(1, 2);
      const bool fits = (w.kernel[axis] - 1) * 2 + 1 <= size;
      w.dilations[axis] = fits ? between(1, 2) : 1;
      if (!allow_padding) continue;
      // Less than the window, so that pools see a tap.
      const auto reach = static_cast<int>((w.kernel[axis] - 1) * w.dilations[axis]);
      w.pads[axis] = between(0, std::min(reach, 2)) / (w.dilations[axis] == 2 ? 2 : 1);
      w.pads[axis + 2] = between(0, std::min(reach, 2)) / (w.dilations[axis] == 2 ? 2 : 1);
    }
    return w;
  }
  static Dims windowed(const Window& w, const Dims& in, std::int64_t channels) {
    Dims out{0, 0, channels};
    for (std::size_t a = 0; a < 2; ++a) {
      out[a] = (in[a] + w.pads[a] + w.pads[a + 2] - (w.kernel[a] - 1) * w.dilations[a] - 1) /
                   w.strides[a] +
               1;
    }
    return out;
  }

  TensorId quantize(TensorId x, Encoding e) {
    const Dims dims = tensor(x).dims;
    const std::size_t rows = coin() ? 1 : static_cast<std::size_t>(dims.back());
    Quantize op{x, bits(dims, e), thresholds<float>(rows, e, 4), {}};
    if (coin()) op.descending = flags(rows);
    return add(op);
  }
  TensorId dequantize(TensorId x) {
    const Dims dims = tensor(x).dims;
    const std::size_t rows = coin() ? 1 : static_cast<std::size_t>(dims.back());
    return add(Dequantize{x, f32(dims), floats(rows * tensor(x).encoding.n_levels, -4, 4)});
  }

  TensorId binary_conv(TensorId x, Window w, std::int64_t out_channels, std::int64_t groups,
                       const WeightForm& weights = {}, std::optional<Encoding> out = {}) {
    const Dims in = tensor(x).dims;
    const Encoding e = tensor(x).encoding;
    Dims out_dims{out_channels};
    if (in.size() == 3) out_dims = windowed(w, in, out_channels);
    BinaryConv op;
    op.input = x;
    op.window = w;
    op.groups = groups;
    op.w_coefs = weights.coefs;
    op.w_shift = weights.shift;
    op.pad_level = w.pads == Dims{0, 0, 0, 0} || coin() ? 0 : test::lowest_level(e);
    const auto rows = static_cast<std::size_t>(out_channels);
    const auto k = static_cast<std::size_t>(w.kernel[0] * w.kernel[1] * in.back() / groups);
    op.weights = bit_rows(rows * op.w_coefs.size(), k);
    if (out) {
      op.output = bits(out_dims, *out);
      const std::size_t threshold_rows = coin() ? 1 : rows;
      op.thresholds =
          thresholds<std::int32_t>(threshold_rows, *out, static_cast<int>(2 * std::sqrt(k)) + 2);
      if (coin()) op.descending = flags(threshold_rows);
    } else {
      op.output = f32(out_dims);
      op.scale = floats(rows, -2, 2);
      op.bias = floats(rows, -4, 4);
    }
    return add(op);
  }

  TensorId codebook_linear(TensorId x, std::int64_t out_features, std::int64_t code_bits,
                           std::size_t n_values, bool sparse, bool integer = false,
                           int halvings = 1, float finer = 1.0F) {
    Dims dims = tensor(x).dims;
    const auto k = static_cast<std::size_t>(dims.back()),
               o = static_cast<std::size_t>(out_features);
    dims.back() = out_features;
    CodebookLinear op;
    op.input = x;
    op.output = f32(dims);
    op.code_bits = code_bits;
    std::vector<float> book(n_values);
    for (std::size_t i = 0; i < n_values; ++i)
      book[i] = static_cast<float>(i) / 2 - (sparse ? 2.25F : 2.0F);
    op.codebook = writer.own_array<float>(book);
    std::size_t coded = o * k;
    if (sparse) {
      op.bitmap = bit_rows(o, k, halvings);
      coded = 0;
      for (const std::uint32_t word : op.bitmap.view())
        coded += static_cast<std::size_t>(std::popcount(word));
    }
    std::vector<std::uint8_t> codes((coded * static_cast<std::size_t>(code_bits) + 7) / 8);
    for (std::size_t i = 0; i < coded; ++i) {
      const auto code = static_cast<unsigned>(between(0, static_cast<int>(n_values) - 1));
      const std::size_t bit = i * static_cast<std::size_t>(code_bits);
      codes[bit / 8] |= static_cast<std::uint8_t>(code << (bit % 8));
    }
    op.codes = writer.own_array<std::uint8_t>(codes);
    op.bias = floats(o, -4, 4);
    if (integer) {
      std::vector<std::int32_t> levels;
      // Values on the grid of the levels, or beside it.
      op.level_scale = (n_values % 2 == 0 ? 0x1p-10F : 0.003F) / finer;
      for (const float v : book)
        levels.push_back(static_cast<std::int32_t>(std::lround(v / op.level_scale)));
      op.levels = writer.own_array<std::int32_t>(levels);
    }
    return add(op);
  }

  TensorId linear(TensorId x, std::int64_t out_features) {
    Dims dims = tensor(x).dims;
    const auto k = static_cast<std::size_t>(dims.back()),
               o = static_cast<std::size_t>(out_features);
    dims.back() = out_features;
    return add(Linear{x, f32(dims), floats(o * k, -2, 2), floats(o, -4, 4)});
  }

  TensorId conv(TensorId x, Window w, std::int64_t out_channels, std::int64_t groups) {
    const Dims in = tensor(x).dims;
    const auto o = static_cast<std::size_t>(out_channels);
    const auto k = static_cast<std::size_t>(w.kernel[0] * w.kernel[1] * in[2] / groups);
    return add(Conv{x, f32(windowed(w, in, out_channels)), w, groups, floats(o * k, -2, 2),
                    floats(o, -4, 4)});
  }

  // Weights of few values, -1, 0 and 1, or of many, and then as many as 32-bit sums allow.
  TensorId integer_conv(TensorId x, Window w, std::int64_t out_channels, std::int64_t groups,
                        int input_limit, float input_unit, bool few, int run_parts = 1,
                        int runs_per_sum = 1000) {
    const Dims in = tensor(x).dims;
    const auto outputs = static_cast<std::size_t>(out_channels);
    const auto row = static_cast<std::size_t>(w.kernel[0] * w.kernel[1] * in[2] / groups);
    const int max_level = static_cast<int>(
        std::min<std::size_t>(32767, 2147483647 / (row * static_cast<std::size_t>(input_limit))));
    CodedWeights weights = coded(outputs, row, few ? 3 : 0, false, !few);
    std::vector<float> values(weights.values.size());
    for (float& v : values) v = static_cast<float>(between(1, few ? 3 : max_level)) * 0.7F;
    if (few) std::iota(values.begin(), values.end(), -1.0F);
    weights.values = writer.own_array<float>(values);
    std::vector<float> level_scale(outputs, few ? 1.0F : 0.7F * 1.001F);
    return add(IntegerConv{x, f32(windowed(w, in, out_channels)), w, groups, weights,
                           floats(outputs, -4, 4), writer.own_array<float>(level_scale), run_parts,
                           runs_per_sum, input_limit, input_unit});
  }

  // n_values 0: a bitmap and the weights themselves.
  CodedWeights coded(std::size_t outputs, std::size_t row, std::size_t n_values, bool per_output,
                     bool sparse) {
    CodedWeights w;
    w.per_output = per_output;
    w.code_bits =
        n_values == 0
            ? 0
            : std::bit_width(std::max<std::uint32_t>(1, static_cast<std::uint32_t>(n_values) - 1));
    std::size_t count = outputs * row;
    if (sparse) {
      w.bitmap = bit_rows(outputs, row);
      count = 0;
      for (const std::uint32_t word : w.bitmap.view())
        count += static_cast<std::size_t>(std::popcount(word));
    }
    std::vector<float> values(n_values == 0 ? count : n_values * (per_output ? outputs : 1));
    for (float& v : values) v = static_cast<float>(2 * between(-8, 7) + 1) / 4;
    w.values = writer.own_array<float>(values);
    std::vector<std::uint8_t> bytes((count * static_cast<std::size_t>(w.code_bits) + 7) / 8);
    for (std::size_t i = 0; i < count && n_values != 0; ++i) {
      const auto code = static_cast<std::size_t>(between(0, static_cast<int>(n_values) - 1));
      for (std::size_t b = 0; b < static_cast<std::size_t>(w.code_bits); ++b) {
        const std::size_t bit = i * static_cast<std::size_t>(w.code_bits) + b;
        bytes[bit / 8] |= static_cast<std::uint8_t>((code >> b & 1) << (bit % 8));
      }
    }
    w.codes = writer.own_array<std::uint8_t>(bytes);
    return w;
  }

  void output(TensorId id) { graph().outputs.push_back(id); }

 private:
  std::string next_name() { return "t" + std::to_string(graph().tensors.size()); }
  std::mt19937 random_;
};

// A batch of whole numbers and halves, zeros among them.
std::vector<std::vector<float>> random_batch(const Graph& graph, std::size_t n,
                                             std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::vector<float>> batch;
  for (const ModelInput& input : graph.inputs) {
    std::vector<float> values(
        n * static_cast<std::size_t>(test::count(graph.tensors[input.tensor].dims)));
    for (float& v : values) v = static_cast<float>(static_cast<int>(random() % 17) - 8) / 2;
    batch.push_back(std::move(values));
  }
  return batch;
}

using Outputs = std::vector<std::vector<double>>;

Outputs run_engine(const Engine& engine, const std::vector<std::vector<float>>& batch,
                   std::size_t n) {
  std::vector<InputArray> inputs;
  for (const auto& values : batch) inputs.push_back({values.data(), nullptr});
  std::vector<std::vector<float>> floats;
  std::vector<std::vector<std::int64_t>> ints;
  floats.reserve(engine.outputs().size());
  ints.reserve(engine.outputs().size());
  std::vector<void*> pointers;
  constexpr float kUntouched = 12345.0F;
  for (const TensorSpec& spec : engine.outputs()) {
    const std::size_t size = n * element_count(spec.dims);
    if (spec.dtype == DType::kI64) {
      pointers.push_back(ints.emplace_back(size, -1).data());
      floats.emplace_back();
    } else {
      pointers.push_back(floats.emplace_back(size, kUntouched).data());
      ints.emplace_back();
    }
  }
  engine.run(inputs, pointers, n);
  Outputs outputs;
  for (std::size_t o = 0; o < floats.size(); ++o) {
    outputs.emplace_back(floats[o].begin(), floats[o].end());
    outputs.back().insert(outputs.back().end(), ints[o].begin(), ints[o].end());
  }
  return outputs;
}

Outputs run_naive(const Graph& graph, const std::vector<std::vector<float>>& batch, std::size_t n) {
  NaiveGraph naive(graph);
  Outputs outputs(graph.outputs.size());
  for (std::size_t s = 0; s < n; ++s) {
    std::vector<Values> inputs;
    for (const auto& values : batch) {
      const std::size_t size = values.size() / n;
      inputs.emplace_back(values.begin() + static_cast<std::ptrdiff_t>(s * size),
                          values.begin() + static_cast<std::ptrdiff_t>((s + 1) * size));
    }
    const std::vector<Values> all = naive.run(inputs);
    for (std::size_t o = 0; o < outputs.size(); ++o) {
      const Values& v = all[graph.outputs[o]];
      outputs[o].insert(outputs[o].end(), v.begin(), v.end());
    }
  }
  return outputs;
}

// Runs `graph` on every backend with 1, 2 and 3 threads and batches of 0, 1, 2 and 7. `tolerance`
// is relative to the value, and absolute below 1; 0 demands equality.
void expect_naive(const Graph& graph, double tolerance = 0.0, const std::string& what = "") {
  for (const std::size_t n : {0, 1, 2, 7}) {
    const auto batch = random_batch(graph, n, kSeed + static_cast<std::uint32_t>(n));
    const Outputs expected = run_naive(graph, batch, n);
    for (const auto& backend : test::backends_under_test()) {
      for (const std::size_t threads : {1, 2, 3}) {
        const Engine engine(graph, {threads, std::string(backend.name)});
        const Outputs found = run_engine(engine, batch, n);
        ASSERT_EQ(found.size(), expected.size());
        for (std::size_t o = 0; o < found.size(); ++o) {
          ASSERT_EQ(found[o].size(), expected[o].size());
          for (std::size_t i = 0; i < found[o].size(); ++i) {
            ASSERT_NEAR(found[o][i], expected[o][i],
                        tolerance * std::max(1.0, std::abs(expected[o][i])))
                << what << ", " << backend.name << ", " << threads << " threads, batch " << n
                << ", output " << o << ", element " << i;
          }
        }
      }
    }
  }
}

// --- each op
// ----------------------------------------------------------------------------------------------------------------

TEST(Executor, QuantizeConvolveScale) {
  Builder b(1);
  const TensorId x = b.input({6, 5, 40});
  b.output(
      b.binary_conv(b.quantize(x, test::kBinary), {{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}}, 20, 1));
  expect_naive(b.graph());
}

TEST(Executor, QuantizeAndDequantizeEveryEncoding) {
  for (const Encoding& e : kEncodings) {
    for (const std::int64_t channels : {1, 31, 32, 70}) {
      Builder b(static_cast<std::uint32_t>(channels));
      b.output(b.dequantize(b.quantize(b.input({3, 4, channels}), e)));
      expect_naive(b.graph());
    }
  }
}

TEST(Executor, BinaryConvOfEveryEncoding) {
  for (const Encoding& in : kEncodings) {
    for (const Encoding& out : kEncodings) {
      Builder b(in.n_levels * 100 + out.n_levels);
      const TensorId x = b.quantize(b.input({4, 4, 33}), in);
      b.output(
          b.dequantize(b.binary_conv(x, {{3, 3}, {1, 1}, {1, 1}, {1, 0, 1, 2}}, 35, 1, {}, out)));
      expect_naive(b.graph());
    }
  }
}

// Maps and channels of which backends with strips take several rows at a time: short rows and long
// ones, whole maps, parts of them and parts of their channels; signs, codes and sums.
TEST(Executor, BinaryConvOfLargeMaps) {
  struct Size {
    std::int64_t h, w, channels, out;
  };
  for (const Size size : {Size{7, 7, 70, 35}, Size{8, 8, 66, 36}, Size{5, 13, 64, 33},
                          Size{4, 30, 65, 20}, Size{2, 90, 33, 18}, Size{20, 12, 300, 5}}) {
    for (const std::int64_t stride : {1, 2}) {
      for (const Encoding& in : {test::kBinary, test::kSignZero}) {
        Builder b(static_cast<std::uint32_t>(size.h * 100 + size.w));
        const TensorId x = b.quantize(b.input({size.h, size.w, size.channels}), in);
        const Window w{{3, 3}, {stride, stride}, {1, 1}, {1, 1, 1, 1}};
        const TensorId signs = b.binary_conv(x, w, size.out, 1, {}, test::kBinary);
        b.output(b.dequantize(signs));
        b.output(b.binary_conv(x, w, size.out, 1));
        b.output(b.dequantize(b.binary_conv(x, w, size.out, 1, {}, test::kTwoBit)));
        expect_naive(b.graph());
      }
    }
  }
  // Strips of 2, 2 and 1 rows, whose columns lie apart.
  Builder b(1);
  const TensorId x = b.quantize(b.input({5, 34, 7040}), test::kBinary);
  b.output(b.dequantize(
      b.binary_conv(x, {{1, 1}, {1, 3}, {1, 1}, {0, 0, 0, 0}}, 17, 1, {}, test::kBinary)));
  expect_naive(b.graph());
}

TEST(Executor, BinaryConvOfEveryWeightForm) {
  const std::vector<WeightForm> forms{
      {{1}, 0},          {{1, 2}, 0}, {{1, 1}, 1},         {{2, 4, 6}, 1},
      {{1, 2, 4, 1}, 0}, {{-3}, 0},   {{1, 1, 2, 4, 8}, 1}};
  for (const WeightForm& weights : forms) {
    for (const Encoding& in : kEncodings) {
      Builder b(static_cast<std::uint32_t>(weights.coefs.size()) * 10 + in.n_levels);
      const TensorId x = b.quantize(b.input({3, 5, 20}), in);
      b.output(b.binary_conv(x, {{2, 3}, {1, 2}, {1, 1}, {0, 1, 1, 1}}, 18, 1, weights));
      expect_naive(b.graph());
    }
  }
}

TEST(Executor, BinaryConvOfManyChannels) {
  // More blocks than one item takes, and rows whose length is no multiple of anything.
  for (const std::int64_t out : {1, 16, 17, 64, 65, 150}) {
    Builder b(static_cast<std::uint32_t>(out));
    const TensorId x = b.quantize(b.input({3, 7, 96}), test::kBinary);
    b.output(b.dequantize(
        b.binary_conv(x, {{3, 3}, {2, 1}, {1, 2}, {1, 2, 1, 2}}, out, 1, {}, test::kBinary)));
    expect_naive(b.graph());
  }
}

TEST(Executor, BinaryConvOfGroups) {
  struct Case {
    std::int64_t channels, out, groups;
  };
  // In place, regrouped, whole blocks of outputs, spilling ones, one channel a group.
  for (const auto& [channels, out, groups] : std::vector<Case>{{64, 32, 2},
                                                               {64, 6, 2},
                                                               {40, 32, 2},
                                                               {40, 10, 5},
                                                               {96, 48, 3},
                                                               {24, 24, 24},
                                                               {8, 16, 8}}) {
    for (const Encoding& in : {test::kBinary, test::kSignZero, test::kTwoBit}) {
      Builder b(static_cast<std::uint32_t>(channels + out + groups));
      const TensorId x = b.quantize(b.input({4, 3, channels}), in);
      const Window w{{3, 2}, {1, 1}, {1, 1}, {1, 1, 1, 0}};
      b.output(b.binary_conv(x, w, out, groups));
      b.output(b.dequantize(b.binary_conv(x, w, out, groups, {}, test::kTwoBit)));
      expect_naive(b.graph());
    }
  }
}

TEST(Executor, BinaryFullyConnected) {
  for (const std::int64_t out : {1, 10, 130}) {
    for (const Encoding& in : {test::kBinary, test::kSignZero, kFourBit}) {
      Builder b(static_cast<std::uint32_t>(out));
      const Window one{};
      const TensorId x = b.quantize(b.input({100}), in);
      const TensorId hidden = b.binary_conv(x, one, 40, 1, {}, in);
      b.output(b.binary_conv(hidden, one, out, 1));
      b.output(b.dequantize(hidden));
      expect_naive(b.graph());
    }
  }
}

TEST(Executor, BinaryConvOverTheWholeMap) {
  for (const std::int64_t channels : {20, 64}) {
    for (const Encoding& in : {test::kBinary, test::kSignZero}) {
      Builder b(static_cast<std::uint32_t>(channels));
      const TensorId x = b.quantize(b.input({3, 4, channels}), in);
      b.output(b.binary_conv(x, {{3, 4}, {1, 1}, {1, 1}, {0, 0, 0, 0}}, 33, 1));
      b.output(b.binary_conv(x, {{3, 4}, {2, 2}, {1, 1}, {0, 0, 1, 1}}, 33,
                             1));  // the same size, but padded
      b.output(b.binary_conv(x, {{1, 1}, {1, 1}, {1, 1}, {0, 0, 0, 0}}, 5, 1));
      expect_naive(b.graph());
    }
  }
}

TEST(Executor, BinaryConvOfSinglePixels) {
  // Rows that are joined, to one row or to several; as many are left as threads need.
  for (const auto& [h, w] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {7, 7}, {14, 14}, {6, 10}, {5, 3}, {2, 60}, {1, 9}}) {
    for (const Encoding& in : {test::kBinary, test::kSignZero, test::kTwoBit}) {
      Builder b(static_cast<std::uint32_t>(h * w));
      const TensorId x = b.quantize(b.input({h, w, 64}), in);
      const Window one{{1, 1}, {1, 1}, {1, 1}, {0, 0, 0, 0}};
      b.output(b.binary_conv(x, one, 70, 1));
      b.output(b.binary_conv(b.binary_conv(x, one, 36, 2, {}, test::kBinary), one, 20, 2));
      expect_naive(b.graph());
    }
  }
  // As many pixels out as in, but not the same ones.
  Builder b(4);
  const TensorId x = b.quantize(b.input({2, 2, 40}), test::kBinary);
  b.output(b.binary_conv(x, {{1, 1}, {2, 2}, {1, 1}, {0, 0, 1, 1}}, 10, 1));
  b.output(b.binary_conv(x, {{1, 1}, {2, 2}, {1, 1}, {1, 1, 0, 0}}, 10, 1));
  b.output(b.binary_conv(x, {{1, 1}, {1, 1}, {1, 1}, {1, 1, 1, 1}}, 10, 1));
  expect_naive(b.graph());
}

TEST(Executor, BinaryConvWithTapsFarOutsideTheMap) {
  // Taps that step over the map, windows wholly in the padding, all kinds of overlap.
  for (const Window& w : std::vector<Window>{{{5, 7}, {1, 1}, {1, 1}, {9, 8, 7, 9}},
                                             {{3, 2}, {2, 3}, {4, 9}, {5, 6, 8, 4}},
                                             {{2, 4}, {7, 5}, {3, 2}, {4, 0, 3, 11}}}) {
    for (const Encoding& in : {test::kBinary, test::kSignZero, kFallingByThree}) {
      Builder b(static_cast<std::uint32_t>(w.kernel[0] * 10) + in.n_levels);
      b.output(b.binary_conv(b.quantize(b.input({3, 4, 6}), in), w, 9, 3));
      expect_naive(b.graph());
    }
  }
}

TEST(Executor, BatchBeyondOneTileOfTheFullyConnected) {
  Builder b(3);
  b.output(b.binary_conv(b.quantize(b.input({70}), test::kTwoBit), {}, 40, 1));
  const std::size_t n = 150;
  const auto batch = random_batch(b.graph(), n, kSeed);
  const Outputs expected = run_naive(b.graph(), batch, n);
  for (const auto& backend : test::backends_under_test()) {
    EXPECT_EQ(run_engine(Engine(b.graph(), {2, std::string(backend.name)}), batch, n), expected)
        << backend.name;
  }
}

TEST(Executor, BitPoolOfEveryEncoding) {
  for (const Encoding& e : kEncodings) {
    for (const bool take_min : {false, true}) {
      Builder b(e.n_levels);
      const TensorId x = b.quantize(b.input({7, 6, 37}), e);
      const Window w{{3, 2}, {2, 2}, {1, 1}, {1, 0, 1, 1}};
      BitPool op{x, b.bits(Builder::windowed(w, {7, 6, 37}, 37), e), w, {}};
      if (take_min) op.take_min = b.flags(37);
      b.output(b.dequantize(b.add(op)));
      expect_naive(b.graph());
    }
  }
}

TEST(Executor, CodebookLinear) {
  struct Case {
    std::int64_t code_bits;
    std::size_t n_values;
    bool sparse;
  };
  // The sparse ones: a free table entry for zero; none left, so a mask.
  for (const auto& [code_bits, n_values, sparse] : std::vector<Case>{{4, 16, false},
                                                                     {4, 9, false},
                                                                     {2, 4, false},
                                                                     {1, 2, false},
                                                                     {4, 15, true},
                                                                     {4, 16, true},
                                                                     {2, 3, true},
                                                                     {1, 1, true}}) {
    for (const std::int64_t k : {1, 33, 128, 300}) {
      Builder b(static_cast<std::uint32_t>(n_values) + static_cast<std::uint32_t>(k));
      b.output(b.codebook_linear(b.input({2, k}), 70, code_bits, n_values, sparse));
      expect_naive(b.graph());
    }
  }
}

// Bits are equal on every backend, whatever the batch and the number of threads.
TEST(Executor, CodebookLinearInIntegers) {
  struct Case {
    std::int64_t code_bits;
    std::size_t n_values;
    bool sparse;
  };
  for (const auto& [code_bits, n_values, sparse] : std::vector<Case>{
           {4, 16, false}, {2, 4, false}, {4, 15, true}, {2, 3, true}, {1, 1, true}}) {
    for (const std::int64_t k : {1, 33, 128, 300}) {
      Builder b(static_cast<std::uint32_t>(n_values) + static_cast<std::uint32_t>(k));
      b.output(b.codebook_linear(b.input({2, k}), 70, code_bits, n_values, sparse, true));
      expect_naive(b.graph());
    }
  }
}

// A few large inputs leave the others few bits of 16: what rounding left is multiplied as well.
TEST(Executor, CodebookLinearInIntegersKeepsSmallInputsBesideLargeOnes) {
  for (const std::size_t n : {1, 3, 5, 34}) {
    Builder b(58);
    b.output(b.codebook_linear(b.input({200}), 40, 4, 15, true, true));
    auto batch = random_batch(b.graph(), n, kSeed);
    // Sample 1 stays as it is; fractions make the others inexact.
    for (std::size_t i = 0; i < batch[0].size(); ++i) {
      if (i / 200 != 1) batch[0][i] /= 3.0F;
    }
    batch[0][7] = 90000.0F;
    if (n > 2) batch[0][2 * 200 + 199] = -1e7F;
    const Outputs expected = run_naive(b.graph(), batch, n);
    for (const auto& backend : test::backends_under_test()) {
      for (const std::size_t threads : {1, 2}) {
        const Engine engine(b.graph(), {threads, std::string(backend.name)});
        EXPECT_EQ(run_engine(engine, batch, n), expected) << backend.name << ", batch " << n;
      }
    }
  }
}

// A sample has the same bits alone and in batches, whose layers go over lists where those pay;
// infinity stays in its sample and makes outputs with zero weights NaN.
TEST(Executor, CodebookLayersInBatchesGiveTheBitsOfSingleSamples) {
  constexpr std::size_t kInputs = 300, kOutputs = 530, kLargest = 50;
  struct Case {
    std::size_t n_values;
    bool sparse, integer;
    int halvings;
    // So many samples do not go over lists.
    std::size_t without, without_avx2, without_avx512;
  };
  // Half of the weights, with large levels, are too many for the forms that leave out zeros.
  for (const auto& [n_values, sparse, integer, halvings, without, without_avx2, without_avx512] :
       std::vector<Case>{{15, true, false, 2, 2, 2, 8},
                         {16, true, false, 2, 2, 2, 8},
                         {15, true, false, 1, 8, 8, 18},
                         {16, false, false, 2, 50, 50, 50},
                         {15, true, true, 2, 2, 8, 18},
                         {15, true, true, 1, 8, 8, 8},
                         {16, false, true, 2, 50, 50, 50}}) {
    Builder b(static_cast<std::uint32_t>(n_values));
    const float finer = halvings == 1 ? 20.0F : 1.0F;
    b.output(b.codebook_linear(b.input({kInputs}), kOutputs, 4, n_values, sparse, integer, halvings,
                               finer));
    const Graph graph = b.graph();
    auto all = random_batch(graph, kLargest, kSeed);
    for (const std::size_t n : {3, 40})
      all[0][n * kInputs + 7 * n] = std::numeric_limits<float>::infinity();
    for (const auto& backend : test::backends_under_test()) {
      const Engine one(graph, {1, std::string(backend.name)});
      std::vector<double> expected;
      for (std::size_t n = 0; n < kLargest; ++n) {
        const auto begin = all[0].begin() + static_cast<std::ptrdiff_t>(n * kInputs);
        const Outputs y = run_engine(one, {{begin, begin + kInputs}}, 1);
        expected.insert(expected.end(), y[0].begin(), y[0].end());
      }
      EXPECT_TRUE(std::ranges::any_of(expected, [](double v) { return std::isnan(v); }));
      for (const std::size_t threads : {1, 2}) {
        const Engine engine(graph, {threads, std::string(backend.name)});
        for (const std::size_t n : {2, 8, 18, 32, 38, 50}) {
          auto batch = all;
          batch[0].resize(n * kInputs);
          const std::vector<InputArray> inputs{{batch[0].data(), nullptr}};
          EXPECT_EQ(
              engine.profile(inputs, n, 1)[1].kernel.starts_with("codebook_sparse"),
              n > (backend.name.starts_with("avx512") || backend.name == "amx" ? without_avx512
                   : backend.name == "avx2"                                    ? without_avx2
                                                                               : without))
              << backend.name << ", batch " << n;
          const Outputs y = run_engine(engine, batch, n);
          for (std::size_t i = 0; i < n * kOutputs; ++i) {
            ASSERT_TRUE(
                test::same_bits(static_cast<float>(y[0][i]), static_cast<float>(expected[i])))
                << backend.name << ", batch " << n << ", sample " << i / kOutputs << ", output "
                << i % kOutputs << ": " << y[0][i] << ", alone " << expected[i];
          }
        }
      }
    }
  }
}

TEST(Executor, CodebookLayersWithLevelsHaveAtMost65536Inputs) {
  Builder fits(59);
  fits.output(fits.codebook_linear(fits.input({65536}), 1, 1, 1, true, true));
  EXPECT_NO_THROW(validate(fits.graph()));
  Builder more(59);
  more.output(more.codebook_linear(more.input({65537}), 1, 1, 1, true, true));
  EXPECT_THROW(validate(more.graph()), Error);
}

TEST(Executor, LinearAndConv) {
  for (const std::int64_t out : {1, 16, 70}) {
    Builder b(static_cast<std::uint32_t>(out));
    const TensorId x = b.input({5, 4, 6});
    b.output(b.linear(x, out));
    b.output(b.conv(x, {{3, 3}, {1, 2}, {1, 1}, {1, 1, 1, 1}}, out, 1));
    b.output(b.conv(x, {{2, 1}, {1, 1}, {2, 1}, {0, 0, 1, 0}}, 2 * out, 2));
    b.output(b.conv(x, {{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}}, 6, 6));
    expect_naive(b.graph());
  }
}

// Items of several rows, the last of them shorter, each finished by what follows.
TEST(Executor, ConvOfManyPixels) {
  for (const std::int64_t out : {16, 70}) {
    Builder b(static_cast<std::uint32_t>(out));
    const Dims in = {23, 9, 6};
    const TensorId x = b.input(in);
    for (const Window& w : {Window{{1, 1}, {1, 1}, {1, 1}, {0, 0, 0, 0}},
                            Window{{1, 1}, {1, 2}, {1, 1}, {0, 0, 0, 0}},
                            Window{{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}}}) {
      const std::size_t n = static_cast<std::size_t>(out);
      b.output(b.add(Affine{b.conv(x, w, out, 1), b.f32(Builder::windowed(w, in, out)),
                            b.floats(n, -1, 1), b.floats(n, -1, 1)}));
      b.output(b.conv(x, w, 2 * out, 2));
    }
    expect_naive(b.graph());
  }
}

TEST(Executor, IntegerConv) {
  for (const std::int64_t out : {1, 16, 70}) {
    for (const bool few : {false, true}) {
      for (const float unit : {0.0F, 0.25F}) {
        Builder b(static_cast<std::uint32_t>(out));
        const TensorId x = b.input({5, 4, 6});
        b.output(
            b.integer_conv(x, {{3, 3}, {1, 2}, {1, 1}, {1, 1, 1, 1}}, out, 1, 4095, unit, few));
        b.output(b.integer_conv(x, {{1, 1}, {2, 1}, {1, 1}, {0, 0, 0, 0}}, out, 1, 127, unit, few));
        b.output(
            b.integer_conv(x, {{2, 1}, {1, 1}, {2, 1}, {0, 0, 1, 0}}, 2 * out, 2, 3, unit, few));
        b.output(
            b.integer_conv(x, {{3, 3}, {1, 1}, {1, 2}, {1, 9, 1, 3}}, 3 * out, 3, 255, unit, few));
        b.output(b.integer_conv(x, {{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}}, 6, 6, 999, unit, few));
        for (const int parts : {1, 2, 3, 5}) {
          for (const int runs : {1, 2}) {
            b.output(b.integer_conv(x, {{3, 2}, {1, 1}, {1, 1}, {1, 1, 1, 1}}, 20, 1, 4095, unit,
                                    few, parts, runs));
            b.output(b.integer_conv(x, {{2, 2}, {1, 1}, {1, 2}, {1, 1, 1, 1}}, 20, 1, 4095, unit,
                                    few, parts, runs));
          }
        }
        expect_naive(b.graph());
      }
    }
  }
}

// Items of several rows, finished by what follows, and samples of several parts.
TEST(Executor, IntegerConvOfManyPixels) {
  for (const std::int64_t out : {16, 70}) {
    Builder b(static_cast<std::uint32_t>(out));
    const Dims in = {60, 50, 5};
    const TensorId x = b.input(in);
    for (const Window& w : {Window{{1, 1}, {1, 1}, {1, 1}, {0, 0, 0, 0}},
                            Window{{3, 3}, {4, 2}, {1, 1}, {1, 1, 1, 1}}}) {
      const std::size_t n = static_cast<std::size_t>(out);
      b.output(b.add(Affine{b.integer_conv(x, w, out, 1, 4095, 0.0F, false),
                            b.f32(Builder::windowed(w, in, out)), b.floats(n, -1, 1),
                            b.floats(n, -1, 1)}));
      b.output(b.integer_conv(x, w, 2 * out, 1, 4095, 0.0F, false));
    }
    expect_naive(b.graph());
  }
}

// Rows that are cut into items.
TEST(Executor, IntegerConvOfLongRows) {
  Builder b(5);
  const TensorId x = b.input({2, 1100, 3});
  const Window w{{2, 3}, {1, 2}, {1, 1}, {1, 1, 0, 1}},
      grouped{{1, 2}, {1, 1}, {1, 2}, {0, 2, 0, 0}};
  b.output(b.integer_conv(x, w, 70, 1, 4095, 0.0F, false));
  b.output(b.integer_conv(x, grouped, 6, 3, 4095, 0.0F, false));
  expect_naive(b.graph());
}

TEST(Executor, IntegerConvOfWhatIsNotFinite) {
  Builder b(7);
  const TensorId x = b.input({3, 3, 2});
  b.output(b.integer_conv(b.add(Unary{x, b.f32({3, 3, 2}), UnaryKind::kExp}),
                          {{2, 2}, {1, 1}, {1, 1}, {1, 1, 0, 0}}, 3, 1, 4095, 0.0F, false));
  std::vector<float> in(2 * 18, 0.5F);
  in[7] = 1000.0F;
  for (const auto& backend : test::backends_under_test()) {
    const Outputs out = run_engine(Engine(b.graph(), {2, std::string(backend.name)}), {in}, 2);
    for (std::size_t i = 0; i < 27; ++i) {
      EXPECT_TRUE(std::isnan(out[0][i])) << backend.name << i;
      EXPECT_TRUE(std::isfinite(out[0][27 + i])) << backend.name << i;
    }
  }
}

TEST(Executor, IntegerConvRefusesSumsOfMoreThan32Bits) {
  const auto with_scale = [](float scale) {
    Builder b(3);
    const TensorId x = b.input({3, 3, 2});
    b.output(b.integer_conv(x, {}, 3, 1, 32767, 0.0F, false));
    std::get<IntegerConv>(b.graph().ops[0].op).level_scale =
        b.writer.own_array<float>(std::vector<float>(3, scale));
    return Engine(b.graph());
  };
  EXPECT_NO_THROW(with_scale(0.7F));
  EXPECT_THROW(with_scale(0.02F), Error);   // sums
  EXPECT_THROW(with_scale(1e-30F), Error);  // levels
}

TEST(Executor, MatMul) {
  struct Case {
    Dims leading;
    std::int64_t rows, depth, columns;
  };
  for (const auto& [leading, rows, depth, columns] :
       std::vector<Case>{{{}, 1, 1, 1},
                         {{}, 5, 7, 16},
                         {{3}, 7, 5, 17},
                         {{2, 3}, 1, 33, 70},
                         {{4}, 13, 300, 64},
                         {{2}, 2, 3, 200},
                         {{2, 1, 2, 1, 2, 1}, 3, 4, 5}}) {
    Builder b(31);
    const auto of = [&](std::int64_t m, std::int64_t n) {
      Dims dims = leading;
      dims.insert(dims.end(), {m, n});
      return dims;
    };
    const TensorId x = b.input(of(rows, depth)), y = b.input(of(depth, columns));
    b.output(b.add(MatMul{x, y, b.f32(of(rows, columns))}));
    b.output(b.add(MatMul{b.constant(of(rows, depth)), y, b.f32(of(rows, columns))}));
    b.output(b.add(MatMul{x, b.constant(of(depth, columns)), b.f32(of(rows, columns))}));
    expect_naive(b.graph());
  }
}

TEST(Executor, CodedWeights) {
  for (const std::size_t n_values : {0, 1, 2, 3, 5, 17, 33, 100, 256}) {
    for (const bool per_output : {false, true}) {
      for (const bool sparse : {false, true}) {
        if (n_values == 0 && (per_output || !sparse)) continue;
        Builder b(static_cast<std::uint32_t>(n_values));
        const TensorId x = b.input({5, 4, 6});
        const Window w{{3, 2}, {1, 2}, {1, 1}, {1, 1, 1, 1}};
        const Dims out = Builder::windowed(w, {5, 4, 6}, 6);
        for (const std::int64_t groups : {1, 2, 6}) {
          const auto row = static_cast<std::size_t>(36 / groups);
          b.output(
              b.add(CodedConv{x, b.f32(out), w, groups,
                              b.coded(6, row, n_values, per_output, sparse), b.floats(6, -4, 4)}));
        }
        b.output(
            b.add(CodedLinear{x, b.f32({5, 4, 19}), b.coded(19, 6, n_values, per_output, sparse),
                              b.floats(19, -4, 4)}));
        expect_naive(b.graph());
      }
    }
  }
}

TEST(Executor, Pool) {
  for (const bool count_include_pad : {false, true}) {
    for (const PoolKind kind : {PoolKind::kMax, PoolKind::kAverage}) {
      Builder b(9);
      const TensorId x = b.input({5, 6, 19});
      const Window w{{3, 2}, {2, 2}, {1, 1}, {1, 1, 1, 0}};
      b.output(
          b.add(Pool{x, b.f32(Builder::windowed(w, {5, 6, 19}, 19)), kind, w, count_include_pad}));
      const Window ceil{
          {2, 2}, {2, 2}, {1, 1}, {0, 0, 0, 0}};  // ceil mode: the last row hangs over
      b.output(b.add(Pool{x, b.f32({3, 3, 19}), kind, ceil, count_include_pad}));
      expect_naive(b.graph());
    }
  }
}

TEST(Executor, Affine) {
  for (const Dims& dims : std::vector<Dims>{{7}, {5, 5, 3}, {4, 6, 1}, {3, 200}, {9, 9, 64}}) {
    Builder b(11);
    const TensorId x = b.input(dims);
    const auto c = static_cast<std::size_t>(dims.back());
    const TensorId y = b.add(Affine{x, b.f32(dims), b.floats(c, -2, 2), b.floats(1, -4, 4)});
    b.output(b.add(Affine{y, b.f32(dims), b.floats(1, -2, 2), b.floats(c, -4, 4)}));
    expect_naive(b.graph());
  }
}

TEST(Executor, UnaryThatRoundsOnce) {
  for (const UnaryKind kind :
       {UnaryKind::kRelu, UnaryKind::kClip, UnaryKind::kLeakyRelu, UnaryKind::kHardSigmoid,
        UnaryKind::kAbs, UnaryKind::kNeg, UnaryKind::kSign, UnaryKind::kFloor, UnaryKind::kCeil,
        UnaryKind::kRound, UnaryKind::kSoftsign, UnaryKind::kThresholdedRelu, UnaryKind::kTrunc}) {
    Builder b(13);
    const TensorId x = b.input({23});
    b.output(b.add(Unary{x, b.f32({23}), kind, 0.25F, 0.5F}));
    expect_naive(b.graph(), 0.0,
                 std::string(EnumNames<UnaryKind>::kNames[static_cast<std::size_t>(kind)]));
  }
}

TEST(Executor, UnaryThatIsTranscendental) {
  for (const UnaryKind kind :
       {UnaryKind::kSigmoid, UnaryKind::kTanh, UnaryKind::kExp, UnaryKind::kHardSwish,
        UnaryKind::kElu, UnaryKind::kSelu, UnaryKind::kCelu, UnaryKind::kSoftplus, UnaryKind::kErf,
        UnaryKind::kGelu, UnaryKind::kGeluTanh, UnaryKind::kMish}) {
    Builder b(17);
    const TensorId x = b.input({5000});  // several items
    b.output(b.add(Unary{x, b.f32({5000}), kind, 0.5F, 2.0F}));
    // 4 units in the last place (elementwise.h); hard swish rounds three times.
    expect_naive(b.graph(), 5e-7,
                 std::string(EnumNames<UnaryKind>::kNames[static_cast<std::size_t>(kind)]));
  }
}

TEST(Executor, BinaryBroadcasts) {
  struct Case {
    Dims a, b;
  };
  const std::vector<Case> cases{{{7, 9}, {7, 9}},
                                {{6, 5, 4}, {4}},
                                {{6, 5, 4}, {1}},
                                {{6, 5, 4}, {}},
                                {{3, 1, 4}, {1, 5, 1}},
                                {{2, 3, 4, 5}, {3, 1, 1}},
                                {{5}, {3, 1}},
                                {{1, 1}, {4, 3}},
                                {{2, 1, 3, 1, 2}, {1, 4, 1, 5, 1}},
                                {{1, 2, 1, 2, 1, 2, 1, 2}, {2, 1, 2, 1, 2, 1, 2, 1}},
                                {{90, 70}, {90, 70}},
                                {{}, {3}},
                                {{}, {}}};
  for (const auto& [a, c] : cases) {
    for (const BinaryKind kind :
         {BinaryKind::kAdd, BinaryKind::kSub, BinaryKind::kMul, BinaryKind::kMin, BinaryKind::kMax,
          BinaryKind::kPRelu, BinaryKind::kLess, BinaryKind::kLessOrEqual, BinaryKind::kEqual}) {
      const auto out = [&] {
        Dims dims(std::max(a.size(), c.size()), 1);
        for (std::size_t i = 0; i < dims.size(); ++i) {
          if (i < a.size())
            dims[dims.size() - 1 - i] = std::max(dims[dims.size() - 1 - i], a[a.size() - 1 - i]);
          if (i < c.size())
            dims[dims.size() - 1 - i] = std::max(dims[dims.size() - 1 - i], c[c.size() - 1 - i]);
        }
        return dims;
      }();
      Builder b(19);
      const TensorId x = b.input(a), y = b.input(c);
      b.output(b.add(Binary{x, y, b.f32(out), kind}));
      b.output(b.add(Binary{y, x, b.f32(out), kind}));
      b.output(b.add(Binary{x, b.constant(c), b.f32(out), kind}));
      b.output(b.add(Binary{b.constant(a), y, b.f32(out), kind}));
      expect_naive(b.graph());
    }
  }
}

TEST(Executor, WhereBroadcasts) {
  struct Case {
    Dims condition, a, b, out;
  };
  for (const auto& [condition, a, c, out] :
       std::vector<Case>{{{6, 5, 4}, {6, 5, 4}, {6, 5, 4}, {6, 5, 4}},
                         {{6, 5, 1}, {4}, {6, 1, 4}, {6, 5, 4}},
                         {{1}, {3, 1, 2}, {5, 1}, {3, 5, 2}},
                         {{}, {}, {}, {}},
                         {{2, 1, 2, 1, 2, 1, 2, 1},
                          {1, 3, 1, 1, 1, 3, 1, 3},
                          {1, 1, 1, 3, 1, 1, 1, 1},
                          {2, 3, 2, 3, 2, 3, 2, 3}}}) {
    Builder b(19);
    const TensorId x = b.input(condition), y = b.input(a), z = b.input(c);
    b.output(b.add(Where{x, y, z, b.f32(out)}));
    b.output(b.add(Where{b.constant(condition), y, z, b.f32(out)}));
    b.output(b.add(Where{x, b.constant(a), b.constant(c), b.f32(out)}));
    expect_naive(b.graph());
  }
}

TEST(Executor, NormalisesChannels) {
  for (const std::int64_t size : {1, 2, 3, 5, 40}) {
    for (const float beta : {0.75F, 0.5F}) {
      Builder b(20);
      const TensorId x = b.input({7, 6, 33});
      b.output(b.add(Lrn{x, b.f32({7, 6, 33}), size, 0.5F, beta, 2.0F}));
      const TensorId flat = b.input({5000});
      b.output(b.add(Lrn{flat, b.f32({5000}), size, 1e-4F, beta, 1.0F}));
      expect_naive(b.graph(), 1e-6);
    }
  }
}

TEST(Executor, BinaryDivisionAndPower) {
  Builder b(23);
  const TensorId x = b.input({50});
  const TensorId positive = b.add(Unary{x, b.f32({50}), UnaryKind::kClip, 0.5F, 4.0F});
  b.output(b.add(Binary{x, positive, b.f32({50}), BinaryKind::kDiv}));
  b.output(b.add(Unary{positive, b.f32({50}), UnaryKind::kSqrt, 0.0F, 0.0F}));
  expect_naive(b.graph());
  Builder p(23);
  const TensorId y = p.input({50});
  const TensorId base = p.add(Unary{y, p.f32({50}), UnaryKind::kClip, 0.5F, 4.0F});
  p.output(p.add(Binary{base, y, p.f32({50}), BinaryKind::kPow}));
  expect_naive(p.graph(), 1e-6);
}

// Reductions to all dims of which `axes` are gone, or of size 1.
TEST(Executor, ReducesAnyAxes) {
  struct Case {
    Dims dims, axes;
  };
  const std::vector<Case> cases{{{5}, {0}},
                                {{1}, {0}},
                                {{4, 3, 33}, {2}},
                                {{4, 3, 33}, {0, 1}},
                                {{4, 3, 300}, {0}},
                                {{4, 3, 33}, {1}},
                                {{4, 3, 33}, {0, 2}},
                                {{4, 3, 33}, {0, 1, 2}},
                                {{2, 1, 3, 1, 2, 70}, {1, 2, 3}},
                                {{2, 3, 2, 3, 2, 3}, {0, 2, 4}},
                                {{2, 3, 2, 3, 2, 3}, {1, 3, 5}},
                                {{20000}, {0}}};
  for (const auto& [dims, axes] : cases) {
    for (std::size_t kind = 0; kind < EnumNames<ReduceKind>::kNames.size(); ++kind) {
      Builder b(29);
      const TensorId x = b.input(dims);
      Dims kept = dims, removed;
      for (const std::int64_t axis : axes) kept[static_cast<std::size_t>(axis)] = 1;
      for (std::size_t i = 0; i < dims.size(); ++i) {
        if (std::ranges::find(axes, static_cast<std::int64_t>(i)) == axes.end())
          removed.push_back(dims[i]);
      }
      b.output(b.add(Reduce{x, b.f32(kept), static_cast<ReduceKind>(kind), axes}));
      b.output(b.add(Reduce{x, b.f32(removed), static_cast<ReduceKind>(kind), axes}));
      // One rounding for each run of axes, and one that the naive evaluation has.
      expect_naive(b.graph(), 4 * 0x1p-24, std::string(EnumNames<ReduceKind>::kNames[kind]));
    }
  }
}

TEST(Executor, SelectsAlongEveryAxis) {
  for (const std::vector<std::int32_t>& indices : std::vector<std::vector<std::int32_t>>{
           {0}, {2, 1, 0}, {0, 1, 2}, {1, 1, 0, 2, 0, 1, 2}, {1, 2}}) {
    for (const std::int64_t axis : {0, 1, 2}) {
      Builder b(29);
      const TensorId x = b.input({3, 3, 3});
      Dims dims{3, 3, 3};
      dims[static_cast<std::size_t>(axis)] = static_cast<std::int64_t>(indices.size());
      b.output(b.add(Select{x, b.f32(dims), axis, b.writer.own_array<std::int32_t>(indices)}));
      expect_naive(b.graph());
    }
  }
  Builder b(30);  // several items, each of several rows
  const TensorId x = b.input({200, 70});
  std::vector<std::int32_t> order;
  for (std::int32_t i = 0; i < 100; ++i) order.push_back(i * 33 % 70);
  b.output(b.add(Select{x, b.f32({200, 100}), 1, b.writer.own_array<std::int32_t>(order)}));
  expect_naive(b.graph());
}

TEST(Executor, ConcatOnEveryAxis) {
  for (const std::int64_t axis : {0, 1, 2}) {
    Builder b(29);
    Dims one{3, 4, 5}, two{3, 4, 5}, both{3, 4, 5};
    two[static_cast<std::size_t>(axis)] = 2;
    both[static_cast<std::size_t>(axis)] += 2 + both[static_cast<std::size_t>(axis)];
    const TensorId x = b.input(one), y = b.input(two);
    b.output(b.add(Concat{{{x, y, x}}, b.f32(both), axis}));
    b.output(b.add(Concat{{{b.constant(one), y, x}}, b.f32(both), axis}));
    expect_naive(b.graph());
  }
}

TEST(Executor, TransposeEveryPermutation) {
  for (const Dims& dims : std::vector<Dims>{{3, 4, 5, 2}, {1, 4, 1, 3}, {17, 1, 33, 2}}) {
    Dims perm{0, 1, 2, 3};
    do {
      Builder b(31);
      const TensorId x = b.input(dims);
      Dims out;
      for (const std::int64_t p : perm) out.push_back(dims[static_cast<std::size_t>(p)]);
      b.output(b.add(Transpose{x, b.f32(out), perm}));
      expect_naive(b.graph());
    } while (std::ranges::next_permutation(perm).found);
  }
  Builder b(31);
  const TensorId x = b.input({});
  b.output(b.add(Transpose{x, b.f32({}), {}}));
  expect_naive(b.graph());
}

TEST(Executor, PadAndCrop) {
  struct Case {
    Dims begin, end;
  };
  for (const auto& [begin, end] : std::vector<Case>{
           {{1, 2, 3}, {0, 1, 2}}, {{-1, 0, -2}, {-1, 3, -1}}, {{0, -3, 6}, {2, 4, -5}}}) {
    Builder b(37);
    const TensorId x = b.input({3, 4, 5});
    Dims out{3, 4, 5};
    for (std::size_t i = 0; i < 3; ++i) out[i] += begin[i] + end[i];
    b.output(b.add(Pad{x, b.f32(out), begin, end, 1.5F}));
    expect_naive(b.graph());
  }
}

TEST(Executor, SoftmaxAndArgMaxOnEveryAxis) {
  for (const std::int64_t axis : {0, 1, 2}) {
    for (const bool flag : {false, true}) {
      Builder b(41);
      const TensorId x = b.input({3, 20, 18});
      b.output(b.add(Softmax{x, b.f32({3, 20, 18}), axis, flag}));
      expect_naive(b.graph(), 1e-6);
      Builder m(41);
      const TensorId y = m.input({3, 20, 18});
      Dims kept{3, 20, 18}, removed;
      kept[static_cast<std::size_t>(axis)] = 1;
      for (std::int64_t i = 0; i < 3; ++i) {
        if (i != axis) removed.push_back(Dims{3, 20, 18}[static_cast<std::size_t>(i)]);
      }
      m.output(
          m.add(ArgMax{y, test::add_tensor(m.graph(), "kept", DType::kI64, kept), axis, flag}));
      m.output(m.add(
          ArgMax{y, test::add_tensor(m.graph(), "removed", DType::kI64, removed), axis, flag}));
      expect_naive(m.graph());
    }
  }
}

// --- graphs
// -----------------------------------------------------------------------------------------------------------------

TEST(Executor, EveryOpInOneModel) {
  ModelWriter w;
  test::build_every_op(w);
  expect_naive(w.graph, 1e-6);
}

TEST(Executor, ReshapeSharesMemory) {
  Builder b(43);
  const TensorId x = b.input({4, 6});
  const TensorId flat = b.add(Reshape{x, b.f32({24})});  // an alias of the input, and an output
  const TensorId cube = b.add(Reshape{flat, b.f32({2, 3, 4})});
  const TensorId y = b.linear(cube, 5);
  const TensorId y1 =
      b.add(Reshape{y, b.f32({30})});  // two outputs of one memory, the first read on
  const TensorId y2 = b.add(Reshape{y, b.f32({5, 6})});
  const TensorId z = b.linear(y1, 3);
  for (const TensorId id : {flat, y1, y2, z}) b.output(id);
  expect_naive(b.graph());
}

TEST(Executor, ReshapeKeepsWhatItAliasesAlive) {
  Builder b(44);
  const TensorId x = b.input({8, 8, 32});
  const TensorId first = b.quantize(x, test::kTwoBit);
  const TensorId flat = b.add(Reshape{first, b.bits({8 * 8 * 32}, test::kTwoBit)});
  // Steps in between that would take the memory of `first` if it counted as dead.
  TensorId other = b.quantize(x, test::kBinary);
  for (int i = 0; i < 4; ++i)
    other = b.binary_conv(other, {{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}}, 32, 1, {}, test::kBinary);
  b.output(b.dequantize(other));
  b.output(b.binary_conv(flat, {}, 20, 1));
  expect_naive(b.graph());
}

TEST(Executor, UnreadTensorsDoNoHarm) {
  Builder b(45);
  const TensorId x = b.input({30});
  b.input({3});  // never read
  b.linear(x, 50);
  b.quantize(x, test::kTwoBit);
  b.output(b.linear(x, 4));
  expect_naive(b.graph());
}

TEST(Executor, RandomGraphs) {
  for (std::uint32_t seed = 0; seed < 150; ++seed) {
    Builder b(kSeed * 1000 + seed);
    std::vector<TensorId> maps{b.input({b.between(3, 7), b.between(3, 7), b.between(1, 70)})};
    for (int i = b.between(2, 9); i > 0; --i) {
      const TensorId x =
          maps[static_cast<std::size_t>(b.between(0, static_cast<int>(maps.size()) - 1))];
      const Dims dims = b.tensor(x).dims;
      const Encoding e = kEncodings[static_cast<std::size_t>(b.between(0, 6))];
      if (b.tensor(x).dtype == DType::kBits) {
        const std::int64_t groups = dims[2] % 2 == 0 && b.between(0, 3) == 0 ? 2 : 1;
        const Window w = b.window(dims);
        switch (b.between(0, 3)) {
          case 0: maps.push_back(b.dequantize(x)); break;
          case 1: {
            BitPool op{x, b.bits(Builder::windowed(w, dims, dims[2]), b.tensor(x).encoding), w, {}};
            if (b.coin()) op.take_min = b.flags(static_cast<std::size_t>(dims[2]));
            maps.push_back(b.add(op));
            break;
          }
          default:
            maps.push_back(b.binary_conv(x, w, groups * b.between(1, 40), groups, {}, e));
            break;
        }
      } else {
        switch (b.between(0, 4)) {
          case 0:
            maps.push_back(b.add(Unary{x, b.f32(dims), UnaryKind::kClip, -3.0F, 3.0F}));
            break;
          case 1:
            maps.push_back(b.add(Binary{x, b.constant({dims[2]}), b.f32(dims), BinaryKind::kMin}));
            break;
          default: maps.push_back(b.quantize(x, e)); break;
        }
      }
    }
    const TensorId last = maps.back();
    b.output(b.tensor(last).dtype == DType::kBits
                 ? b.dequantize(last)
                 : b.add(Unary{last, b.f32(b.tensor(last).dims), UnaryKind::kNeg, 0, 0}));
    expect_naive(b.graph(), 0.0, "seed " + std::to_string(seed));
    if (HasFatalFailure()) return;
  }
}

// Elementwise ops on what other ops have just made, read once, twice, through a reshape or as an
// output: whatever the plan keeps in registers or writes over, the result is the same.
TEST(Executor, RandomGraphsOfElementwiseOps) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    Builder b(kSeed * 2000 + seed);
    const Dims dims{b.between(1, 5), b.between(1, 9), b.between(1, 100)};
    const auto channels = static_cast<std::size_t>(dims[2]);
    std::vector<TensorId> maps{b.input(dims)};
    const auto any = [&] {
      // The newest ones mostly, so that chains grow long.
      const int newest = static_cast<int>(maps.size()) - 1;
      return maps[static_cast<std::size_t>(b.coin() ? newest : b.between(0, newest))];
    };
    const auto output_newest = [&] {
      const auto& outputs = b.graph().outputs;
      if (maps.size() > 1 && std::ranges::find(outputs, maps.back()) == outputs.end()) {
        b.output(maps.back());
      }
    };
    for (int i = b.between(3, 14); i > 0; --i) {
      const TensorId x = any();
      switch (b.between(0, 11)) {
        case 0:
        case 1: {
          const TensorId bits =
              b.quantize(x, kEncodings[static_cast<std::size_t>(b.between(0, 6))]);
          maps.push_back(b.binary_conv(bits, {{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}}, dims[2], 1));
          break;
        }
        case 2: maps.push_back(b.conv(x, {}, dims[2], 1)); break;
        case 3:
          maps.push_back(b.add(
              Pool{x, b.f32(dims), PoolKind::kMax, {{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}}, false}));
          break;
        case 4:
          maps.push_back(b.add(Affine{x, b.f32(dims), b.floats(channels, -1, 1),
                                      b.floats(b.coin() ? 1 : channels, -2, 2)}));
          break;
        case 5: {
          const UnaryKind kinds[] = {UnaryKind::kRelu, UnaryKind::kClip, UnaryKind::kNeg,
                                     UnaryKind::kLeakyRelu};
          maps.push_back(b.add(Unary{x, b.f32(dims), kinds[b.between(0, 3)], -4.0F, 4.0F}));
          break;
        }
        case 6: {
          const Dims shapes[] = {
              {dims[2]}, {1, 1, dims[2]}, {dims[0], dims[1], 1}, {1, dims[1], dims[2]}, {1}};
          const BinaryKind kinds[] = {BinaryKind::kAdd, BinaryKind::kSub, BinaryKind::kMin,
                                      BinaryKind::kMax, BinaryKind::kPRelu};
          const TensorId c = b.constant(shapes[b.between(0, 4)]);
          const bool first = b.between(0, 3) == 0;
          maps.push_back(
              b.add(Binary{first ? c : x, first ? x : c, b.f32(dims), kinds[b.between(0, 4)]}));
          break;
        }
        case 7: {
          const Dims shapes[] = {{dims[0] * dims[1], dims[2]}, {dims[0] * dims[1] * dims[2]}};
          const TensorId flat = b.add(Reshape{x, b.f32(shapes[b.between(0, 1)])});
          const TensorId clipped =
              b.add(Unary{flat, b.f32(b.tensor(flat).dims), UnaryKind::kClip, -6.0F, 6.0F});
          maps.push_back(b.add(Reshape{clipped, b.f32(dims)}));
          break;
        }
        case 8: b.output(b.dequantize(b.quantize(x, test::kTwoBit))); break;
        default: {
          const BinaryKind kinds[] = {BinaryKind::kAdd, BinaryKind::kSub, BinaryKind::kMax};
          maps.push_back(b.add(Binary{x, any(), b.f32(dims), kinds[b.between(0, 2)]}));
          break;
        }
      }
      // Values must not outgrow what sums exactly.
      if (i % 3 == 0) {
        maps.push_back(b.add(Unary{maps.back(), b.f32(dims), UnaryKind::kClip, -50.0F, 50.0F}));
      }
      if (b.between(0, 5) == 0) output_newest();
    }
    output_newest();
    if (b.graph().outputs.empty()) continue;
    expect_naive(b.graph(), 0.0, "seed " + std::to_string(seed));
    if (HasFatalFailure()) return;
  }
}

TEST(Executor, AResidualBlockTakesTheMemoryOfItsShortcut) {
  Builder b(57);
  const Dims dims{8, 8, 64};
  TensorId x = b.add(Unary{b.input(dims), b.f32(dims), UnaryKind::kNeg, 0, 0});
  for (int block = 0; block < 3; ++block) {
    const TensorId conv =
        b.binary_conv(b.quantize(x, test::kBinary), {{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}}, 64, 1);
    const TensorId norm =
        b.add(Affine{conv, b.f32(dims), b.floats(64, -1, 1), b.floats(64, -1, 1)});
    x = b.add(Binary{norm, x, b.f32(dims), BinaryKind::kAdd});
  }
  b.output(b.linear(b.add(Reshape{x, b.f32({8 * 8 * 64})}), 3));
  const Engine engine(b.graph());
  const std::size_t map_bytes = 8 * 8 * 64 * sizeof(float);
  // One float map, and the bits of two.
  EXPECT_EQ(engine.peak_bytes(1) - engine.peak_bytes(0), map_bytes + 2 * map_bytes / 32);
  expect_naive(b.graph());
}

// --- promises of the runtime
// ------------------------------------------------------------------------------------------------

// Fractions, so that another order of summation would show.
Builder fractional_model() {
  Builder b(47);
  const auto fractions = [&](std::size_t n) {
    std::vector<float> v(n);
    for (float& x : v) x = static_cast<float>(b.between(-1000, 1000)) / 777.0F;
    return b.writer.own_array<float>(v);
  };
  const TensorId x = b.input({9, 9, 6});
  const TensorId c = b.add(Conv{x,
                                b.f32({9, 9, 72}),
                                {{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}},
                                1,
                                fractions(72 * 54),
                                fractions(72)});
  const TensorId p = b.add(Pool{
      c, b.f32({3, 3, 72}), PoolKind::kAverage, {{3, 3}, {3, 3}, {1, 1}, {0, 0, 0, 0}}, false});
  const TensorId flat = b.add(Reshape{p, b.f32({648})});
  const TensorId l = b.add(Linear{flat, b.f32({150}), fractions(150 * 648), fractions(150)});
  const TensorId s = b.add(Unary{l, b.f32({150}), UnaryKind::kTanh, 0.0F, 0.0F});
  b.output(b.add(Softmax{b.codebook_linear(s, 100, 4, 16, true), b.f32({100}), 0, false}));
  return b;
}

TEST(Executor, ResultsDoNotDependOnTheNumberOfThreads) {
  Builder b = fractional_model();
  for (const std::size_t n : {1, 5, 40}) {
    auto batch = random_batch(b.graph(), n, kSeed);
    for (float& v : batch[0]) v /= 3.0F;
    for (const auto& backend : test::backends_under_test()) {
      const std::string name(backend.name);
      const Outputs one = run_engine(Engine(b.graph(), {1, name}), batch, n);
      for (const std::size_t threads : {2, 3, 7}) {
        EXPECT_EQ(run_engine(Engine(b.graph(), {threads, name}), batch, n), one)
            << name << ", " << threads;
      }
    }
  }
}

TEST(Executor, OneEngineServesManyThreads) {
  ModelWriter w;
  test::build_every_op(w);
  for (const std::size_t threads : {1, 3}) {
    const Engine engine(w.graph, {threads, ""});
    std::vector<std::vector<std::vector<float>>> batches;
    std::vector<Outputs> expected;
    for (std::uint32_t i = 0; i < 8; ++i) {
      const std::size_t n = 1 + i % 4;
      batches.push_back(random_batch(w.graph, n, i));
      expected.push_back(run_engine(engine, batches.back(), n));
    }
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (std::uint32_t i = 0; i < 8; ++i) {
      callers.emplace_back([&, i] {
        for (int round = 0; round < 50; ++round) {
          if (run_engine(engine, batches[i], 1 + i % 4) != expected[i]) ++wrong;
        }
      });
    }
    for (std::thread& t : callers) t.join();
    EXPECT_EQ(wrong.load(), 0) << threads << " threads";
  }
}

TEST(Executor, RunAllocatesNothing) {
  ModelWriter w;
  test::build_every_op(w);
  for (const std::size_t threads : {1, 2}) {
    const Engine engine(w.graph, {threads, ""});
    std::vector<float> x(9 * 48, 0.5F), probabilities(9 * 4);
    std::vector<std::uint8_t> images(9 * 48, 3);
    std::vector<std::int64_t> best(9);
    void* const outputs[] = {probabilities.data(), best.data()};
    const InputArray floats[] = {{x.data(), nullptr}};
    const InputArray pictures[] = {{nullptr, images.data()}};
    for (const std::size_t n : {1, 9, 4}) engine.run(floats, outputs, n);
    const std::size_t before = n_allocations.load();
    for (const std::size_t n : {9, 1, 4, 0, 9}) {
      engine.run(floats, outputs, n);
      engine.run(pictures, outputs, n);
    }
    EXPECT_EQ(n_allocations.load(), before) << threads << " threads";
    engine.run(floats, outputs, 9);
    EXPECT_NE(std::make_unique<int>(), nullptr);
    EXPECT_GT(n_allocations.load(), before) << "the counter does not count";
  }
}

TEST(Executor, SizesAreKnownBeforeTheFirstRun) {
  Builder b(51);
  const TensorId x = b.input({4, 4, 32});
  const TensorId first = b.quantize(x, test::kBinary);  // 64 bytes a sample
  const TensorId second = b.binary_conv(first, {{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}}, 64, 1, {},
                                        test::kBinary);  // 128
  b.output(b.binary_conv(second, {{4, 4}, {1, 1}, {1, 1}, {0, 0, 0, 0}}, 10, 1));
  const Engine engine(b.graph());
  EXPECT_EQ(engine.peak_bytes(1) - engine.peak_bytes(0), 192U);
  EXPECT_EQ(engine.peak_bytes(7) - engine.peak_bytes(0), 7 * 192U);
  EXPECT_GT(engine.peak_bytes(0), 64 * 9 * 4U);  // the weights
  EXPECT_EQ(engine.file_bytes(), 0U);
  const std::vector<std::byte> file = serialize(b.graph());
  EXPECT_EQ(Engine(std::span<const std::byte>(file)).file_bytes(), file.size());
}

TEST(Executor, LargeBatchesRunInTiles) {
  // About 400 kB of working memory a sample: tiles of a few samples, the last one smaller.
  Builder b(52);
  const TensorId x = b.input({1, 100, 32});
  const TensorId wide = b.conv(x, {}, 1024, 1);
  const TensorId wider = b.add(Unary{wide, b.f32({1, 100, 1024}), UnaryKind::kNeg, 0, 0});
  const TensorId flat = b.add(Reshape{x, b.f32({3200})});
  b.output(b.linear(wider, 3));
  b.output(flat);
  b.output(
      b.add(ArgMax{wider, test::add_tensor(b.graph(), "best", DType::kI64, {1, 100}), 2, false}));
  const std::size_t n = 21;
  const auto batch = random_batch(b.graph(), n, kSeed);
  const Outputs expected = run_naive(b.graph(), batch, n);
  for (const std::size_t threads : {1, 2}) {
    const Engine engine(b.graph(), {threads, ""});
    EXPECT_LT(engine.peak_bytes(n),
              engine.peak_bytes(2) + 10 * (engine.peak_bytes(2) - engine.peak_bytes(1)));
    EXPECT_EQ(engine.peak_bytes(n), engine.peak_bytes(10 * n));
    EXPECT_EQ(run_engine(engine, batch, n), expected) << threads << " threads";
  }
  auto bad = batch;
  bad[0].back() = std::numeric_limits<float>::quiet_NaN();  // in the last tile
  EXPECT_THROW(run_engine(Engine(b.graph()), bad, n), Error);
}

TEST(Executor, ImagesGoThroughTheTable) {
  for (const bool channels_first : {true, false}) {
    Builder b(53);
    const Dims dims = channels_first ? Dims{3, 4, 5} : Dims{4, 5, 3};
    const TensorId x = b.input(dims);
    std::vector<float> lut(3 * 256);
    for (std::size_t i = 0; i < lut.size(); ++i) lut[i] = static_cast<float>(i) / 4;
    b.graph().inputs[0].preprocess = {b.writer.own_array<float>(lut), channels_first};
    const TensorId flat = b.add(Reshape{x, b.f32({60})});
    b.output(flat);
    b.output(b.add(Unary{x, b.f32(dims), UnaryKind::kNeg, 0, 0}));
    const Engine engine(b.graph(), {2, ""});
    ASSERT_TRUE(engine.inputs()[0].takes_images);
    EXPECT_EQ(engine.inputs()[0].image_dims, (Dims{4, 5, 3}));
    std::vector<std::uint8_t> images(2 * 60);
    for (std::size_t i = 0; i < images.size(); ++i) images[i] = static_cast<std::uint8_t>(i * 7);
    std::vector<float> same(120), negated(120);
    void* const outputs[] = {same.data(), negated.data()};
    const InputArray inputs[] = {{nullptr, images.data()}};
    engine.run(inputs, outputs, 2);
    for (std::size_t s = 0; s < 2; ++s) {
      for (std::size_t p = 0; p < 20; ++p) {
        for (std::size_t c = 0; c < 3; ++c) {
          const float expected = lut[c * 256 + images[s * 60 + p * 3 + c]];
          const std::size_t at = s * 60 + (channels_first ? c * 20 + p : p * 3 + c);
          EXPECT_EQ(same[at], expected);
          EXPECT_EQ(negated[at], -expected);
        }
      }
    }
  }
}

// Planes that the kernel was called with, for the next test.
std::atomic<int> calls_with_one_plane{0}, calls_with_two_planes{0};
void counting_bconv(const kernels::BconvParams& params, const std::uint32_t* input, std::size_t oy,
                    std::size_t block_begin, std::size_t block_end, std::int32_t* out,
                    std::size_t out_stride) {
  ++(params.n_in_planes == 1 ? calls_with_one_plane : calls_with_two_planes);
  kernels::scalar::table.bconv_b1_i32(params, input, oy, block_begin, block_end, out, out_stride);
}

TEST(Executor, SignsWithoutZeroTakeOnePlane) {
  kernels::Selection selection = choose_kernels("scalar");
  selection.kernels.bconv_b1_i32 = counting_bconv;
  for (const bool fully_connected : {false, true}) {
    Builder b(57);
    const Dims in = fully_connected ? Dims{50} : Dims{3, 3, 50},
               out = fully_connected ? Dims{8} : Dims{3, 3, 8};
    const TensorId x = b.bits(in, test::kSignZero);
    const Window w = fully_connected ? Window{} : Window{{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}};
    b.binary_conv(x, w, 8, 1);
    const auto& op = std::get<BinaryConv>(b.graph().ops[0].op);
    const auto step = prepare(op, {b.graph(), selection, 1});

    const std::size_t plane = sample_bytes(b.tensor(x)) / 8;  // words of one plane
    const auto n_out = static_cast<std::size_t>(test::count(out));
    AlignedBuffer<std::uint32_t> bits(2 * 2 * plane);
    AlignedBuffer<std::byte> sample_scratch(2 * 64),
        thread_scratch(round_up(step->thread_scratch_bytes, 64));
    for (std::size_t i = 0; i < plane; ++i)
      bits[i] = bits[plane + i] = i % 2 == 1 ? 0x00012345U : 0x9ABCDEF0U;
    ThreadPool pool(1);
    const auto run = [&] {
      std::vector<float> y(n_out);
      std::vector<std::byte*> tensors(b.graph().tensors.size());
      tensors[op.input] = reinterpret_cast<std::byte*>(bits.data());
      tensors[op.output] = reinterpret_cast<std::byte*>(y.data());
      calls_with_one_plane = calls_with_two_planes = 0;
      step->run({&pool, tensors.data(), 1, sample_scratch.data(), thread_scratch.data(),
                 thread_scratch.size()});
      return y;
    };
    const auto expected = [&] {
      Values levels;
      const auto channels = static_cast<std::size_t>(in.back());
      for (std::size_t i = 0; i < static_cast<std::size_t>(test::count(in)); ++i) {
        const std::size_t word = i / channels * ((channels + 31) / 32) + i % channels / 32,
                          bit = i % channels % 32;
        levels.push_back(1.0 - static_cast<double>(bits[word] >> bit & 1) -
                         static_cast<double>(bits[plane + word] >> bit & 1));
      }
      Graph graph = b.graph();
      graph.inputs = {{x, {}}};
      const Values y = NaiveGraph(graph).run({levels})[op.output];
      return std::vector<float>(y.begin(), y.end());
    };
    EXPECT_EQ(run(), expected());
    EXPECT_GT(calls_with_one_plane.load(), 0);
    EXPECT_EQ(calls_with_two_planes.load(), 0);

    bits[plane] |= 2;  // plane 1 is level <= 0: now one channel is 0
    ASSERT_NE(bits[0], bits[plane]);
    EXPECT_EQ(run(), expected());
    EXPECT_EQ(calls_with_one_plane.load(), 0);
    EXPECT_GT(calls_with_two_planes.load(), 0);
  }
}

TEST(Executor, SamplesWithAndWithoutZeroShareABatch) {
  for (const bool fully_connected : {false, true}) {
    Builder b(58);
    const Dims in = fully_connected ? Dims{36} : Dims{3, 3, 4};
    const TensorId x = b.input(in);
    const TensorId sign = b.bits(in, test::kSignZero);
    const float tiny = std::numeric_limits<float>::denorm_min();
    b.add(Quantize{x, sign, b.writer.own_array<float>(std::vector<float>{0.0F, tiny}), {}});
    const Window w = fully_connected ? Window{} : Window{{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}};
    b.output(b.binary_conv(sign, w, 20, 1));
    for (const std::size_t n : {7, 150}) {
      auto batch = random_batch(b.graph(), n, kSeed);
      for (float& v : batch[0]) v = v == 0.0F ? 1.0F : v;
      // Zeros in some samples; of 150 fully connected ones, the second tile of 64 has none.
      for (const std::size_t sample : {std::size_t{1}, std::size_t{4}, n - 1})
        batch[0][sample * 36 + sample % 36] = 0.0F;
      const Outputs expected = run_naive(b.graph(), batch, n);
      for (const auto& backend : test::backends_under_test()) {
        const Engine engine(b.graph(), {2, std::string(backend.name)});
        EXPECT_EQ(run_engine(engine, batch, n), expected) << backend.name << ", " << n;
      }
    }
  }
}

TEST(Executor, ProfileNamesTheKernelsThatABatchTakes) {
  for (const bool integer : {false, true}) {
    Builder b(63);
    b.output(b.codebook_linear(b.input({300}), 530, 4, 15, true, integer, 2));
    const Engine engine(b.graph(), {1, "scalar"});
    const std::string sum = integer ? "i16/scalar" : "f32/scalar";
    const std::string single = "codebook_linear_" + sum, lists = "codebook_sparse_" + sum;
    const std::vector<float> x(35 * 300, 1.0F);
    const InputArray inputs[] = {{x.data(), nullptr}};
    const std::vector<std::pair<std::size_t, std::string>> expected = {
        {5, single}, {6, single}, {8, lists}, {32, lists}, {35, lists + ", " + single}};
    for (const auto& [n, kernels] : expected)
      EXPECT_EQ(engine.profile(inputs, n, 1)[1].kernel, kernels) << n << " samples";
  }
}

// Layers of which a quarter, all and a 64th of the weights are not zero.
TEST(Executor, IntegerCodebookLayersTakeTheFormForTheirWeightsAndBackend) {
  const auto kernel_of = [](const std::string& backend, int halvings, bool sparse, std::size_t n) {
    Builder b(63);
    b.output(b.codebook_linear(b.input({1000}), 530, 4, sparse ? 15 : 16, sparse, true, halvings));
    const std::vector<float> x(n * 1000, 1.0F);
    const InputArray inputs[] = {{x.data(), nullptr}};
    return Engine(b.graph(), {1, backend}).profile(inputs, n, 1)[1].kernel;
  };
  for (const auto& backend : test::backends_under_test()) {
    const std::string name(backend.name);
    const std::string form = name == "scalar"     ? "codebook_linear_i16/scalar"
                             : name == "avx2"     ? "codebook_linear_i16_bytes/avx2"
                             : name == "avx512bw" ? "codebook_linear_i16_sliced/avx512bw"
                                                  : "codebook_linear_i16_sliced/avx512vnni";
    EXPECT_EQ(kernel_of(name, 2, true, 1), form);
    EXPECT_EQ(kernel_of(name, 0, false, 1), name == "scalar" ? form : "codebook_linear_i16/avx2");
    if (name != "avx2") continue;
    EXPECT_EQ(kernel_of(name, 2, true, 8), form);
    EXPECT_EQ(kernel_of(name, 2, true, 14), "codebook_sparse_i16/avx2");
    EXPECT_EQ(kernel_of(name, 6, true, 6), form);
    EXPECT_EQ(kernel_of(name, 6, true, 12), "codebook_sparse_i16/avx2");
  }
}

TEST(Executor, ListsAreMadeForTheFirstBatchWhicheverThreadBringsIt) {
  for (const bool integer : {false, true}) {
    Builder b(63);
    b.output(b.codebook_linear(b.input({300}), 530, 4, 15, true, integer, 2));
    const auto batch = random_batch(b.graph(), 8, kSeed);
    const Engine engine(b.graph(), {1, "scalar"});
    const Outputs expected = run_engine(Engine(b.graph(), {1, "scalar"}), batch, 8);
    const auto single_bytes = engine.peak_bytes(1);
    std::vector<Outputs> found(4);
    {
      std::vector<std::jthread> threads;
      for (Outputs& outputs : found)
        threads.emplace_back([&] { outputs = run_engine(engine, batch, 8); });
    }
    for (const Outputs& outputs : found) EXPECT_EQ(outputs, expected);
    EXPECT_EQ(engine.peak_bytes(1), single_bytes);
    // The plan knew their size about, to cut batches by it.
    const auto bytes = [&](std::size_t n) { return static_cast<double>(engine.peak_bytes(n)); };
    const double lists = bytes(8) - bytes(5) - 3 * (bytes(5) - bytes(4));
    const Plan plan(b.graph(), choose_kernels("scalar"), 1);
    EXPECT_GT(lists, static_cast<double>(single_bytes) / 8);
    EXPECT_NEAR(static_cast<double>(plan.batch_bytes) / lists, 0.8, 0.2);
  }
}

TEST(Executor, ProfileNamesEveryStep) {
  ModelWriter w;
  test::build_every_op(w);
  const Engine engine(w.graph, {1, "scalar"});
  const std::vector<float> x(2 * 48, 1.0F);
  const InputArray inputs[] = {{x.data(), nullptr}};
  const std::vector<StepProfile> rows = engine.profile(inputs, 2, 3);
  // One for the input; none for the reshapes, and none for the steps that run with the one before.
  ASSERT_EQ(rows.size(), w.graph.ops.size() - 4 + 1 - 3);
  EXPECT_EQ(rows[0].kind, "input");
  std::map<std::string, StepProfile> by_name;
  for (const StepProfile& row : rows) {
    EXPECT_GE(row.seconds, 0.0);
    by_name[row.name] = row;
  }
  EXPECT_EQ(by_name["binary_conv"].kernel, "bconv_b1_i32/scalar");
  EXPECT_EQ(by_name["coded_conv"].kernel, "conv_f32/scalar + affine + quantize");
  EXPECT_EQ(by_name["unary"].kernel, "unary_f32/scalar + binary");
  EXPECT_EQ(by_name["binary_conv"].macs, 2U * 16 * 33 * 9 * 5);
  EXPECT_EQ(by_name["linear"].macs, 2U * 9 * 4);
  EXPECT_EQ(by_name["pad"].bytes, 2U * 4 * (16 + 18));
  EXPECT_EQ(by_name["transpose"].kernel, "copy");
}

// --- refusals
// ---------------------------------------------------------------------------------------------------------------

void expect_error(ErrorCode code, const std::string& part, const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << "no error; expected one with '" << part << "'";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
  }
}

TEST(Executor, RefusesBadArrays) {
  Builder b(59);
  const TensorId x = b.input({2, 3});
  b.output(b.linear(x, 4));
  const Engine engine(b.graph());
  std::vector<float> in(12, 1.0F), out(16);
  const auto run = [&](std::vector<InputArray> inputs, std::vector<void*> outputs, std::size_t n) {
    return [&engine, inputs, outputs, n] { engine.run(inputs, outputs, n); };
  };
  using enum ErrorCode;
  expect_error(kInvalidInput, "0 input arrays, the model has 1", run({}, {out.data()}, 1));
  expect_error(kInvalidInput, "2 output arrays",
               run({{in.data(), nullptr}}, {out.data(), out.data()}, 1));
  expect_error(kInvalidInput, "either", run({{nullptr, nullptr}}, {out.data()}, 1));
  const std::uint8_t pixel = 0;
  expect_error(kInvalidInput, "no preprocessing", run({{nullptr, &pixel}}, {out.data()}, 1));
  expect_error(kInvalidInput, "null", run({{in.data(), nullptr}}, {nullptr}, 1));
  expect_error(kInvalidInput, "overlaps the array of input 't0'",
               run({{in.data(), nullptr}}, {in.data() + 5}, 1));
  in[10] = std::numeric_limits<float>::quiet_NaN();
  expect_error(kInvalidInput, "NaN at index [1, 1, 1]",
               run({{in.data(), nullptr}}, {out.data()}, 2));
  in[10] = std::bit_cast<float>(0xFF800001U);  // negative, signalling
  expect_error(kInvalidInput, "NaN at index [1, 1, 1]",
               run({{in.data(), nullptr}}, {out.data()}, 2));
  in[10] = -std::numeric_limits<float>::infinity();
  EXPECT_NO_THROW(run({{in.data(), nullptr}}, {out.data()}, 2)());
  expect_error(kLimit, "address space",
               run({{in.data(), nullptr}}, {out.data()}, std::size_t{1} << 61));
  expect_error(kInvalidInput, "runs is 0",
               [&] { engine.profile(std::vector<InputArray>{{in.data(), nullptr}}, 1, 0); });
}

TEST(Executor, RefusesBadOptions) {
  Builder b(61);
  b.output(b.linear(b.input({3}), 4));
  using enum ErrorCode;
  expect_error(kInvalidArgument, "threads is 0", [&] { Engine(b.graph(), {0, ""}); });
  expect_error(kInvalidArgument, "threads is 1025", [&] { Engine(b.graph(), {1025, ""}); });
  expect_error(kInvalidArgument, "unknown backend 'sse9'", [&] { Engine(b.graph(), {1, "sse9"}); });
  ASSERT_EQ(setenv("TAC_BACKEND", "sse9", 1), 0);
  expect_error(kInvalidArgument, "TAC_BACKEND", [&] { Engine{b.graph()}; });
  EXPECT_EQ(Engine(b.graph(), {1, "scalar"}).backend(), "scalar");
  setenv("TAC_BACKEND", "scalar", 1);
  EXPECT_EQ(Engine(b.graph()).backend(), "scalar");
  unsetenv("TAC_BACKEND");
  EXPECT_EQ(Engine(b.graph()).backend(), test::backends_under_test().front().name);
}

TEST(Executor, RefusesAnInvalidGraph) {
  Builder b(63);
  const TensorId x = b.input({3});
  b.add(Unary{x, b.f32({4}), UnaryKind::kNeg, 0, 0});
  b.output(1);
  expect_error(ErrorCode::kInvalidModel, "", [&] { Engine{b.graph()}; });
}

}  // namespace
}  // namespace tac
