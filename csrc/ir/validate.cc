#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <unordered_set>

#include "base/aligned_buffer.h"
#include "base/code_at.h"
#include "base/count_bits.h"
#include "base/error.h"
#include "ir/coded_weights.h"
#include "ir/graph.h"
#include "ir/integer_runs.h"
#include "ir/op_names.h"
#include "ir/text.h"

namespace tac {

namespace {

using Dims = std::vector<std::int64_t>;

constexpr std::int64_t kMaxElements = std::int64_t{1} << 31;
constexpr std::int64_t kMaxTensorBytes = std::int64_t{1} << 33;  // per sample
constexpr std::size_t kMaxRank = 8;
constexpr std::int64_t kMaxWindow = 1 << 16;
constexpr std::int64_t kMaxAccumulator = std::int64_t{1} << 30;
constexpr std::int64_t kMaxLevel = 1 << 15;
constexpr std::int64_t kMaxLevelFeatures = 1 << 16;
constexpr std::int32_t kMaxInt16 = 32767;

std::string text(const Dims& dims) {
  std::string out = "[";
  for (std::size_t i = 0; i < dims.size(); ++i)
    out += (i == 0 ? "" : ", ") + std::to_string(dims[i]);
  return out + "]";
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "f32";
    case DType::kBits: return "bits";
    case DType::kI64: return "i64";
  }
  return "?";
}

std::int64_t elements(const Dims& dims) {
  return std::accumulate(dims.begin(), dims.end(), std::int64_t{1}, std::multiplies<>());
}

// Levels of an encoding in ascending order are lo, lo + |step|, ...; the extremes bound every sum.
std::pair<std::int64_t, std::int64_t> level_range(const Encoding& e) {
  if (e.kind == Encoding::Kind::kSignZero) return {-1, 1};
  const std::int64_t first = e.lo;
  const std::int64_t last = first + std::int64_t{e.step} * (std::int64_t{e.n_levels} - 1);
  return {std::min(first, last), std::max(first, last)};
}

// The loops over whole blobs below carry no branch but their own, so that the compiler vectorizes
// them: a model of tens of megabytes is checked each time it is loaded. Where a fault stands is
// looked up afterwards.

bool has_nan(std::span<const float> values) {
  std::uint32_t found = 0;
  for (const float v : values) found |= static_cast<std::uint32_t>(v != v);
  return found != 0;
}

// Whether every code of `code_bits` in `bytes` is below `limit`; so are codes that the end cuts
// off.
bool codes_below(std::span<const std::uint8_t> bytes, unsigned code_bits, unsigned limit) {
  if (8 % code_bits != 0) {
    const std::size_t n_codes = bytes.size() * 8 / code_bits;
    unsigned largest = 0;
    for (std::size_t i = 0; i < n_codes; ++i)
      largest = std::max(largest, code_at(bytes, i, code_bits));
    return largest < limit;
  }
  const auto mask = static_cast<std::uint8_t>((1U << code_bits) - 1),
             bound = static_cast<std::uint8_t>(limit);
  std::uint8_t above = 0;
  for (unsigned shift = 0; shift < 8; shift += code_bits) {
    for (const std::uint8_t byte : bytes)
      above |= static_cast<std::uint8_t>((byte >> shift & mask) >= bound);
  }
  return above == 0;
}

class Validator {
 public:
  explicit Validator(const Graph& graph) : graph_(graph), written_(graph.tensors.size(), false) {}

  void run() {
    for (const Tensor& t : graph_.tensors) check_tensor(t);
    check_inputs();
    for (const Op& op : graph_.ops) {
      check_text(op.name, kNameRule, "the name of op #" + std::to_string(&op - graph_.ops.data()));
      op_ = &op;
      check_text(op.origin, kOriginRule, "its origin");
      bool known = false;
      OpVariant copy = op.op;
      visit_op(copy, [&](auto& held) {
        known = true;
        check(held);
      });
      if (!known) fail("it holds no op");
    }
    op_ = nullptr;
    for (std::size_t id = 0; id < graph_.tensors.size(); ++id) {
      const Tensor& t = graph_.tensors[id];
      require(t.is_constant || written_[id], "no op writes it", t.name);
    }
    check_outputs();
    check_text(graph_.metadata, kMetadataRule, "the metadata");
  }

 private:
  [[noreturn]] void fail(const std::string& detail, const std::string& tensor = {}) const {
    std::string op;
    if (op_ != nullptr)
      op = op_->name.empty() ? "#" + std::to_string(op_ - graph_.ops.data()) : op_->name;
    throw Error(ErrorCode::kInvalidModel, std::move(op), tensor, detail);
  }
  void require(bool ok, const std::string& detail, const std::string& tensor = {}) const {
    if (!ok) fail(detail, tensor);
  }
  void check_text(const std::string& value, const TextRule& rule, const std::string& what) const {
    const std::string problem = text_problem(value, rule);
    require(problem.empty(), what + " " + problem);
  }

  // Tensors
  // -----------------------------------------------------------------------------------------------------------

  void check_tensor(const Tensor& t) const {
    check_text(t.name, kNameRule,
               "the name of tensor #" + std::to_string(&t - graph_.tensors.data()));
    require(!t.name.empty(),
            "tensor #" + std::to_string(&t - graph_.tensors.data()) + " has no name");
    require(t.dims.size() <= kMaxRank, "rank " + std::to_string(t.dims.size()) + " exceeds 8",
            t.name);
    std::int64_t total = 1;
    for (const std::int64_t dim : t.dims) {
      require(dim >= 1 && dim <= kMaxElements, "dims " + text(t.dims) + ": each must be 1 .. 2^31",
              t.name);
      total *= dim;  // at most 2^62
      require(total <= kMaxElements, "dims " + text(t.dims) + " have more than 2^31 elements",
              t.name);
    }
    if (t.is_constant) {
      require(t.dtype == DType::kF32, "a constant must be f32", t.name);
      require(t.data.size() == static_cast<std::size_t>(total) * sizeof(float),
              "data of " + std::to_string(t.data.size()) + " bytes, expected " +
                  std::to_string(total * 4),
              t.name);
      check_no_nan({t.data}, "data", t.name);
    } else {
      require(t.data.empty(), "data on a tensor that is no constant", t.name);
    }
    const Encoding& e = t.encoding;
    if (t.dtype != DType::kBits) {
      require(e == Encoding{}, "an encoding on a tensor that is not bits", t.name);
      require_bytes(t, total * (t.dtype == DType::kI64 ? 8 : 4));
      return;
    }
    require(!t.dims.empty(), "bits need at least a channel axis", t.name);
    if (e.kind == Encoding::Kind::kSignZero) {
      require(e.n_levels == 3 && e.lo == -1 && e.step == 1,
              "a sign_zero encoding has lo -1, step 1 and 3 levels", t.name);
      require_bits_bytes(t, total);
      return;
    }
    require(e.kind == Encoding::Kind::kLinear, "bits without an encoding", t.name);
    require(e.n_levels >= 2 && e.n_levels <= 16,
            std::to_string(e.n_levels) + " levels, expected 2 .. 16", t.name);
    require(e.step != 0, "an encoding with step 0", t.name);
    const auto [low, high] = level_range(e);
    require(low >= -kMaxLevel && high <= kMaxLevel,
            "levels beyond +-2^15: " + std::to_string(low) + " .. " + std::to_string(high), t.name);
    require_bits_bytes(t, total);
  }
  void require_bytes(const Tensor& t, std::int64_t bytes) const {
    require(bytes <= kMaxTensorBytes,
            "dims " + text(t.dims) + " take " + std::to_string(bytes) + " bytes, limit 2^33",
            t.name);
  }
  void require_bits_bytes(const Tensor& t, std::int64_t total) const {
    const std::int64_t channels = t.dims.back();
    require_bytes(t, total / channels * ((channels + 31) / 32) * 4 * t.encoding.n_planes());
  }

  const Tensor& tensor(TensorId id) const {
    require(id < graph_.tensors.size(), "tensor id " + std::to_string(id) + ", there are " +
                                            std::to_string(graph_.tensors.size()));
    return graph_.tensors[id];
  }

  void check_inputs() {
    require(!graph_.inputs.empty(), "the model has no input");
    std::unordered_set<std::string> names;
    for (const ModelInput& input : graph_.inputs) {
      const Tensor& t = tensor(input.tensor);
      require(t.dtype == DType::kF32 && !t.is_constant, "an input must be f32 and no constant",
              t.name);
      require(!written_[input.tensor], "it is an input twice", t.name);
      require(names.insert(t.name).second, "two inputs have this name", t.name);
      written_[input.tensor] = true;
      const std::size_t lut = input.preprocess.lut.size();
      if (lut == 0) continue;
      require(t.dims.size() == 3,
              "a preprocessing needs an image [C, H, W] or [H, W, C], found " + text(t.dims),
              t.name);
      const std::int64_t channels = input.preprocess.channels_first ? t.dims[0] : t.dims[2];
      require(lut == static_cast<std::size_t>(channels) * 256,
              "a preprocessing table of " + std::to_string(lut) + " values, expected " +
                  std::to_string(channels * 256),
              t.name);
      check_no_nan(input.preprocess.lut, "preprocessing table");
    }
  }

  void check_outputs() const {
    require(!graph_.outputs.empty(), "the model has no output");
    std::unordered_set<std::string> names;
    for (const TensorId id : graph_.outputs) {
      const Tensor& t = tensor(id);
      require(t.dtype != DType::kBits && !t.is_constant,
              "an output must be f32 or i64 and no constant", t.name);
      require(written_[id], "no op writes this output", t.name);
      require(std::none_of(graph_.inputs.begin(), graph_.inputs.end(),
                           [&](const auto& in) { return in.tensor == id; }),
              "a model input cannot be an output", t.name);
      require(names.insert(t.name).second, "two outputs have this name", t.name);
    }
  }

  // Operands
  // ----------------------------------------------------------------------------------------------------------

  const Tensor& read(TensorId id, DType dtype, bool constant_allowed = false) const {
    const Tensor& t = tensor(id);
    require(t.dtype == dtype,
            "it is " + std::string(dtype_name(t.dtype)) + ", expected " +
                std::string(dtype_name(dtype)),
            t.name);
    require(constant_allowed || !t.is_constant, "a constant cannot be read here", t.name);
    require(t.is_constant || written_[id], "it is read before it is written", t.name);
    return t;
  }
  const Tensor& write(TensorId id) {
    const Tensor& t = tensor(id);
    require(!t.is_constant, "a constant cannot be written", t.name);
    require(!written_[id], "it is written twice", t.name);
    written_[id] = true;
    return t;
  }
  const Tensor& write(TensorId id, DType dtype, const Dims& dims, const Encoding& encoding = {}) {
    const Tensor& t = write(id);
    require(t.dtype == dtype,
            "it is " + std::string(dtype_name(t.dtype)) + ", expected " +
                std::string(dtype_name(dtype)),
            t.name);
    require(t.dims == dims, "its dims are " + text(t.dims) + ", expected " + text(dims), t.name);
    require(t.encoding == encoding, "its encoding differs from its input's", t.name);
    return t;
  }
  void require_rank(const Tensor& t, std::size_t rank) const {
    require(t.dims.size() == rank,
            "its dims are " + text(t.dims) + ", expected rank " + std::to_string(rank), t.name);
  }
  template <class T>
  void require_size(const BlobOf<T>& blob, std::int64_t size, const char* what) const {
    require(blob.size() == static_cast<std::size_t>(size),
            std::string(what) + " has " + std::to_string(blob.size()) + " values, expected " +
                std::to_string(size));
  }
  void check_no_nan(const BlobOf<float>& blob, const char* what,
                    const std::string& tensor = {}) const {
    const auto values = blob.view();
    if (!has_nan(values)) return;
    const auto found =
        std::find_if(values.begin(), values.end(), [](float v) { return std::isnan(v); });
    fail(std::string(what) + " has a NaN at " + std::to_string(found - values.begin()), tensor);
  }
  void check_flags(const BlobOf<std::uint8_t>& blob, const char* what) const {
    for (const std::uint8_t flag : blob.view()) {
      if (flag > 1)
        fail(std::string(what) + " holds a value of " + std::to_string(flag) + ", expected 0 or 1");
    }
  }
  // Rows of `row_bits` bits in whole words: what lies behind the bits is 0.
  void check_row_tails(std::span<const std::uint32_t> words, std::int64_t row_bits,
                       const char* what) const {
    if (row_bits % 32 == 0) return;
    const std::size_t row_words = static_cast<std::size_t>(row_bits + 31) / 32;
    const std::uint32_t tail = ~std::uint32_t{0} << (row_bits % 32);
    for (std::size_t last = row_words - 1; last < words.size(); last += row_words) {
      if ((words[last] & tail) != 0) {
        fail(std::string(what) + " row " + std::to_string(last / row_words) +
             " has bits behind its end");
      }
    }
  }

  // Output size of a window, floor mode; each field is bounded first so that nothing overflows.
  void check_window(const Window& w) const {
    require(w.kernel.size() == 2 && w.strides.size() == 2 && w.dilations.size() == 2 &&
                w.pads.size() == 4,
            "kernel, strides and dilations take 2 values, pads 4");
    const auto bounded = [&](const Dims& values, std::int64_t low, const char* what) {
      for (const std::int64_t v : values) {
        require(v >= low && v <= kMaxWindow,
                std::string(what) + " " + text(values) + " out of range");
      }
    };
    bounded(w.kernel, 1, "kernel");
    bounded(w.strides, 1, "strides");
    bounded(w.dilations, 1, "dilations");
    bounded(w.pads, 0, "pads");
  }
  std::int64_t window_output(const Window& w, std::size_t axis, std::int64_t in) const {
    const std::int64_t reach = (w.kernel[axis] - 1) * w.dilations[axis] + 1;
    const std::int64_t room = in + w.pads[axis] + w.pads[axis + 2] - reach;
    require(room >= 0, "the window of " + std::to_string(reach) + " is larger than the padded map");
    return room / w.strides[axis] + 1;
  }

  // Ops
  // ---------------------------------------------------------------------------------------------------------------

  template <class T>
  void check_thresholds(const BlobOf<T>& thresholds, const BlobOf<std::uint8_t>& descending,
                        const Tensor& out) const {
    const std::int64_t steps = out.encoding.n_levels - 1;
    const std::int64_t channels = out.dims.back();
    const auto size = static_cast<std::int64_t>(thresholds.size());
    require(size == steps || size == steps * channels,
            "thresholds have " + std::to_string(size) + " values, expected " +
                std::to_string(steps) + " or " + std::to_string(steps * channels));
    const std::int64_t rows = size / steps;
    require(descending.size() == 0 || descending.size() == static_cast<std::size_t>(rows),
            "descending has " + std::to_string(descending.size()) + " values, expected none or " +
                std::to_string(rows));
    check_flags(descending, "descending");
    if constexpr (std::same_as<T, float>) check_no_nan(thresholds, "thresholds");
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto* begin = thresholds.data() + row * steps;
      if (!std::is_sorted(begin, begin + steps))
        fail("thresholds of row " + std::to_string(row) + " do not ascend");
    }
  }

  void check(BinaryConv& op) {
    const Tensor& in = read(op.input, DType::kBits);
    const Tensor& out = write(op.output);
    require(in.dims.size() == 1 || in.dims.size() == 3,
            "its dims are " + text(in.dims) + ", expected rank 1 or 3", in.name);
    require(out.dims.size() == in.dims.size(), "its rank differs from the input's", out.name);
    check_window(op.window);
    const bool is_map = in.dims.size() == 3;
    const std::int64_t channels = in.dims.back(), out_channels = out.dims.back();
    if (is_map) {
      for (std::size_t axis = 0; axis < 2; ++axis) {
        const std::int64_t expected = window_output(op.window, axis, in.dims[axis]);
        require(out.dims[axis] == expected,
                "its dims are " + text(out.dims) + ", expected " + std::to_string(expected) +
                    " on axis " + std::to_string(axis),
                out.name);
      }
    } else {
      const Dims ones{1, 1}, zeros{0, 0, 0, 0};
      require(op.window.kernel == ones && op.window.pads == zeros && op.window.strides == ones,
              "an input of rank 1 takes a 1x1 window without strides and padding");
    }
    require(op.groups >= 1 && channels % op.groups == 0 && out_channels % op.groups == 0,
            std::to_string(op.groups) + " groups do not divide " + std::to_string(channels) +
                " input and " + std::to_string(out_channels) + " output channels");
    const auto n_planes = static_cast<std::int64_t>(op.w_coefs.size());
    require(n_planes >= 1 && n_planes <= 5,
            std::to_string(n_planes) + " weight planes, expected 1 .. 5");
    std::int64_t weight_top = 0;
    for (const std::int64_t coef : op.w_coefs) {
      require(coef >= -64 && coef <= 64 && coef != 0,
              "a weight coefficient of " + std::to_string(coef) + ", expected +-1 .. +-64");
      weight_top += std::abs(coef);
    }
    require(op.w_shift >= 0 && op.w_shift <= 4,
            "w_shift " + std::to_string(op.w_shift) + ", expected 0 .. 4");
    const std::int64_t taps = op.window.kernel[0] * op.window.kernel[1];
    require(taps <= kMaxElements / channels, "a row of more than 2^31 weights");
    const std::int64_t row_bits = taps * (channels / op.groups);
    const std::int64_t row_words = (row_bits + 31) / 32;
    require(row_words <= kMaxElements / out_channels, "more than 2^31 weight words");
    require_size(op.weights, n_planes * out_channels * row_words, "weights");
    check_row_tails(op.weights.view(), row_bits, "weight");
    check_weight_levels(op, row_bits);
    const auto [low, high] = level_range(in.encoding);
    const std::int64_t top = std::max(std::abs(low), std::abs(high));
    // The kernel adds 2 * acc * 2^w_shift and 2 * coefficient * popcount over the planes of the
    // code in 32 bits.
    const std::int64_t planes_top =
        std::abs(std::int64_t{in.encoding.step}) * ((1 << in.encoding.n_planes()) - 1);
    const std::int64_t sum_top = row_bits * weight_top * (top + planes_top);
    require(sum_top < kMaxAccumulator, "sums of up to " + std::to_string(sum_top) + ", limit 2^30");
    require(op.pad_level >= std::min<std::int64_t>(low, 0) &&
                op.pad_level <= std::max<std::int64_t>(high, 0),
            "pad_level " + std::to_string(op.pad_level) + " is outside the input's levels");
    const bool pads = std::any_of(op.window.pads.begin(), op.window.pads.end(),
                                  [](std::int64_t pad) { return pad != 0; });
    require(pads || op.pad_level == 0,
            "pad_level " + std::to_string(op.pad_level) + " without padding, expected 0");
    if (out.dtype == DType::kBits) {
      require(op.scale.size() == 0 && op.bias.size() == 0, "scale and bias on an output of bits");
      check_thresholds(op.thresholds, op.descending, out);
    } else {
      require(out.dtype == DType::kF32, "its output must be bits or f32", out.name);
      require(op.thresholds.size() == 0 && op.descending.size() == 0,
              "thresholds on a float output");
      require_size(op.scale, out_channels, "scale");
      require_size(op.bias, out_channels, "bias");
      check_no_nan(op.scale, "scale");
      check_no_nan(op.bias, "bias");
    }
  }

  // With a shift, every weight level must be an integer: the sum of the signed coefficients divides
  // by 2^w_shift.
  void check_weight_levels(const BinaryConv& op, std::int64_t row_bits) const {
    const std::size_t n_planes = op.w_coefs.size();
    const std::span<const std::uint32_t> words = op.weights.view();
    const std::size_t plane_words = words.size() / n_planes,
                      row_words = static_cast<std::size_t>(row_bits + 31) / 32;
    for (std::size_t pattern = 0; pattern < std::size_t{1} << n_planes; ++pattern) {
      std::int64_t sum = 0;
      for (std::size_t p = 0; p < n_planes; ++p)
        sum += (pattern >> p & 1U) != 0 ? -op.w_coefs[p] : op.w_coefs[p];
      if (sum % (std::int64_t{1} << op.w_shift) == 0) continue;
      for (std::size_t i = 0; i < plane_words; ++i) {
        std::uint32_t matching = ~std::uint32_t{0};
        for (std::size_t p = 0; p < n_planes; ++p) {
          const std::uint32_t word = words[p * plane_words + i];
          matching &= (pattern >> p & 1U) != 0 ? word : ~word;
        }
        const bool is_last = i % row_words == row_words - 1;
        if (is_last && row_bits % 32 != 0) matching &= ~(~std::uint32_t{0} << (row_bits % 32));
        if (matching != 0) {
          fail("a weight in row " + std::to_string(i / row_words) + " is " + std::to_string(sum) +
               " / 2^" + std::to_string(op.w_shift) + ", which is no integer level");
        }
      }
    }
  }

  void check(Quantize& op) {
    const Tensor& in = read(op.input, DType::kF32);
    const Tensor& out = write(op.output);
    require(out.dtype == DType::kBits, "its output must be bits", out.name);
    require(out.dims == in.dims, "its dims are " + text(out.dims) + ", expected " + text(in.dims),
            out.name);
    check_thresholds(op.thresholds, op.descending, out);
  }

  void check(Dequantize& op) {
    const Tensor& in = read(op.input, DType::kBits);
    write(op.output, DType::kF32, in.dims);
    const std::int64_t levels = in.encoding.n_levels;
    const auto size = static_cast<std::int64_t>(op.values.size());
    require(size == levels || size == levels * in.dims.back(),
            "values has " + std::to_string(size) + " entries, expected " + std::to_string(levels) +
                " or " + std::to_string(levels * in.dims.back()));
    check_no_nan(op.values, "values");
  }

  void check(BitPool& op) {
    const Tensor& in = read(op.input, DType::kBits);
    require_rank(in, 3);
    check_window(op.window);
    Dims dims{window_output(op.window, 0, in.dims[0]), window_output(op.window, 1, in.dims[1]),
              in.dims[2]};
    write(op.output, DType::kBits, dims, in.encoding);
    require_taps(op.window, in.dims, dims);
    require(op.take_min.size() == 0 || op.take_min.size() == static_cast<std::size_t>(in.dims[2]),
            "take_min has " + std::to_string(op.take_min.size()) + " values, expected none or " +
                std::to_string(in.dims[2]));
    check_flags(op.take_min, "take_min");
  }

  // Every output of a pool sees at least one tap inside the map. Only the outputs that begin in the
  // padding before the map can miss it by stepping over it; of the others the last begins farthest
  // to the end.
  void require_taps(const Window& w, const Dims& in, const Dims& out) const {
    for (std::size_t axis = 0; axis < 2; ++axis) {
      const auto begin_of = [&](std::int64_t o) { return o * w.strides[axis] - w.pads[axis]; };
      const auto check_output = [&](std::int64_t o) {
        const std::int64_t begin = begin_of(o), step = w.dilations[axis];
        const std::int64_t first =
            begin >= 0 ? 0 : (-begin + step - 1) / step;  // first tap not before the map
        if (first >= w.kernel[axis] || begin + first * step >= in[axis]) {
          fail("output " + std::to_string(o) + " of axis " + std::to_string(axis) +
               " sees padding only");
        }
      };
      for (std::int64_t o = 0; o < out[axis] && begin_of(o) < 0; ++o) check_output(o);
      check_output(out[axis] - 1);
    }
  }

  // The number of weights [outputs][features] that have a code: all, or those of the bitmap.
  std::int64_t check_bitmap(const BlobOf<std::uint32_t>& bitmap, const BlobOf<float>& values,
                            std::int64_t outputs, std::int64_t features, const char* what) const {
    if (bitmap.size() == 0) return outputs * features;
    require_size(bitmap, outputs * ((features + 31) / 32), "bitmap");
    check_row_tails(bitmap.view(), features, "bitmap");
    for (const float v : values.view()) {
      if (v == 0.0F) fail(std::string("a ") + what + " behind a bitmap holds a 0");
    }
    return count_bits(bitmap.view());
  }

  void check_codes(const BlobOf<std::uint8_t>& codes, std::int64_t count, std::int64_t code_bits,
                   std::size_t values) const {
    require_size(codes, (count * code_bits + 7) / 8, "codes");
    const auto bits = static_cast<unsigned>(code_bits), limit = static_cast<unsigned>(values);
    // A full codebook has a value for every code. Bits behind the last code are 0, which is a code,
    // too.
    if (limit < 1U << bits && !codes_below(codes.view(), bits, limit)) {
      std::size_t at = 0;
      while (code_at(codes.view(), at, bits) < limit) ++at;
      fail("code " + std::to_string(code_at(codes.view(), at, bits)) + " at " + std::to_string(at) +
           ", the codebook has " + std::to_string(values) + " values");
    }
    const std::int64_t used = count * code_bits % 8;
    require(used == 0 || codes.data()[codes.size() - 1] >> used == 0,
            "codes have bits behind their end");
  }

  void check(CodebookLinear& op) {
    const Tensor& in = read(op.input, DType::kF32);
    const Tensor& out = write(op.output);
    check_linear(in, out);
    const std::int64_t features = in.dims.back(), outputs = out.dims.back();
    require(op.code_bits == 1 || op.code_bits == 2 || op.code_bits == 4,
            "code_bits " + std::to_string(op.code_bits) + ", expected 1, 2 or 4");
    require(op.codebook.size() >= 1 && op.codebook.size() <= std::size_t{1} << op.code_bits,
            "a codebook of " + std::to_string(op.codebook.size()) + " values with codes of " +
                std::to_string(op.code_bits) + " bits");
    check_no_nan(op.codebook, "codebook");
    require_size(op.bias, outputs, "bias");
    check_no_nan(op.bias, "bias");
    require(features <= kMaxElements / outputs, "more than 2^31 weights");
    const std::int64_t coded = check_bitmap(op.bitmap, op.codebook, outputs, features, "codebook");
    check_codes(op.codes, coded, op.code_bits, op.codebook.size());
    check_levels(op, features);
  }

  void check_levels(const CodebookLinear& op, std::int64_t features) const {
    if (op.levels.size() == 0) {
      require(op.level_scale == 0.0F, "a level_scale without levels");
      return;
    }
    require_size(op.levels, static_cast<std::int64_t>(op.codebook.size()), "levels");
    require(std::isfinite(op.level_scale) && op.level_scale > 0.0F,
            "level_scale must be positive and finite");
    require(features <= kMaxLevelFeatures,
            std::to_string(features) + " inputs, layers with levels have at most 65536");
    require(op.bitmap.size() == 0 || op.codebook.size() < 16,
            "levels of 16 values behind a bitmap leave no code for zero");
    for (std::size_t i = 0; i < op.levels.size(); ++i) {
      const std::int32_t level = op.levels.data()[i];
      require(level >= -kMaxInt16 && level <= kMaxInt16,
              "level " + std::to_string(level) + " exceeds 32767");
      // The half, and what rounding the scale to float32 may add.
      const double scale = op.level_scale;
      require(std::fabs(op.codebook.data()[i] - level * scale) <= 0.51 * scale,
              "level " + std::to_string(level) + " is not that of its codebook value");
    }
  }

  void check_linear(const Tensor& in, const Tensor& out) const {
    require(out.dtype == DType::kF32, "its output must be f32", out.name);
    require(!in.dims.empty() && in.dims.size() == out.dims.size() &&
                std::equal(in.dims.begin(), in.dims.end() - 1, out.dims.begin()),
            "its dims are " + text(out.dims) + ", the input's " + text(in.dims) +
                ": only the last may differ",
            out.name);
  }

  void check(Linear& op) {
    const Tensor& in = read(op.input, DType::kF32);
    const Tensor& out = write(op.output);
    check_linear(in, out);
    require(in.dims.back() <= kMaxElements / out.dims.back(), "more than 2^31 weights");
    require_size(op.weights, in.dims.back() * out.dims.back(), "weights");
    require_size(op.bias, out.dims.back(), "bias");
    check_no_nan(op.weights, "weights");
    check_no_nan(op.bias, "bias");
  }

  // Returns the number of weights of one output.
  template <class ConvOp>
  std::int64_t check_conv(const ConvOp& op) {
    const Tensor& in = read(op.input, DType::kF32);
    require_rank(in, 3);
    const Tensor& out = tensor(op.output);
    require_rank(out, 3);
    check_window(op.window);
    const std::int64_t channels = in.dims[2], out_channels = out.dims[2];
    write(op.output, DType::kF32,
          {window_output(op.window, 0, in.dims[0]), window_output(op.window, 1, in.dims[1]),
           out_channels});
    require(op.groups >= 1 && channels % op.groups == 0 && out_channels % op.groups == 0,
            std::to_string(op.groups) + " groups do not divide " + std::to_string(channels) +
                " input and " + std::to_string(out_channels) + " output channels");
    const std::int64_t per_output = op.window.kernel[0] * op.window.kernel[1];
    require(per_output <= kMaxElements / channels &&
                per_output * channels <= kMaxElements / out_channels,
            "more than 2^31 weights");
    require_size(op.bias, out_channels, "bias");
    check_no_nan(op.bias, "bias");
    return per_output * (channels / op.groups);
  }

  void check(Conv& op) {
    const std::int64_t row = check_conv(op);
    require_size(op.weights, tensor(op.output).dims[2] * row, "weights");
    check_no_nan(op.weights, "weights");
  }

  void check(CodedConv& op) {
    const std::int64_t row = check_conv(op);
    check_weights(op.weights, tensor(op.output).dims[2], row);
  }

  void check(IntegerConv& op) {
    const std::int64_t row = check_conv(op), outputs = tensor(op.output).dims[2];
    check_weights(op.weights, outputs, row);
    require_size(op.level_scale, outputs, "level_scale");
    for (const float scale : op.level_scale.view()) {
      require(std::isfinite(scale) && scale > 0.0F, "level_scale must be positive and finite");
    }
    require(op.run_parts >= 1 && op.run_parts <= row,
            "run_parts " + std::to_string(op.run_parts) + ", expected 1 .. " + std::to_string(row));
    require(op.runs_per_sum >= 1, "runs_per_sum " + std::to_string(op.runs_per_sum));
    require(op.input_limit >= 1 && op.input_limit <= kMaxInt16,
            "input_limit " + std::to_string(op.input_limit) + ", expected 1 .. 32767");
    require(std::isfinite(op.input_unit) && op.input_unit >= 0.0F &&
                std::isfinite(1.0F / (op.input_unit == 0.0F ? 1.0F : op.input_unit)),
            "input_unit must be 0 or positive, it and its inverse finite");
    const Tensor& in = tensor(op.input);
    const std::int64_t height = in.dims[0] + op.window.pads[0] + op.window.pads[2];
    const std::int64_t width = in.dims[1] + op.window.pads[1] + op.window.pads[3];
    require(height <= kMaxElements / width && height * width <= kMaxElements / in.dims[2],
            "more than 2^31 values in the padded map");
    check_levels(op, static_cast<std::size_t>(outputs), static_cast<std::size_t>(row));
  }

  void check_levels(const IntegerConv& op, std::size_t outputs, std::size_t row) const {
    const AlignedBuffer<float> weights = decode(op.weights, outputs, row);
    const IntegerRuns runs(op, static_cast<std::size_t>(tensor(op.input).dims[2]));
    const std::int64_t most = std::numeric_limits<std::int32_t>::max() / op.input_limit;
    // Where a sum of 32 bits begins.
    std::vector<std::size_t> begins;
    for (std::size_t k = 0, last = 0; k < row; ++k) {
      const std::size_t index = runs.of(k) / static_cast<std::size_t>(op.runs_per_sum);
      if (k == 0 || index != last) begins.push_back(k);
      last = index;
    }
    begins.push_back(row);
    for (std::size_t o = 0; o < outputs; ++o) {
      const float* w = weights.data() + o * row;
      const double scale = op.level_scale.data()[o];
      for (std::size_t i = 0; i + 1 < begins.size(); ++i) {
        double sum = 0.0, largest = 0.0;  // of |levels|, exact
        for (std::size_t k = begins[i]; k < begins[i + 1]; ++k) {
          const double level = std::fabs(level_of(w[k], scale));
          largest = std::max(largest, level);
          sum += level;
        }
        if (!(largest <= kMaxInt16)) {
          fail("a weight of output " + std::to_string(o) +
               " is more than 32767 times its level_scale");
        }
        if (sum > static_cast<double>(most)) {
          fail("the sums of output " + std::to_string(o) + " exceed 32 bits");
        }
      }
    }
  }

  void check(CodedLinear& op) {
    const Tensor& in = read(op.input, DType::kF32);
    const Tensor& out = write(op.output);
    check_linear(in, out);
    require(in.dims.back() <= kMaxElements / out.dims.back(), "more than 2^31 weights");
    check_weights(op.weights, out.dims.back(), in.dims.back());
    require_size(op.bias, out.dims.back(), "bias");
    check_no_nan(op.bias, "bias");
  }

  void check_weights(const CodedWeights& w, std::int64_t outputs, std::int64_t row) const {
    require(w.code_bits >= 0 && w.code_bits <= 8,
            "code_bits " + std::to_string(w.code_bits) + ", expected 0 .. 8");
    check_no_nan(w.values, "values");
    const std::int64_t coded = check_bitmap(w.bitmap, w.values, outputs, row, "value");
    if (w.code_bits == 0) {
      require(w.bitmap.size() != 0, "weights without codes and without a bitmap");
      require(!w.per_output, "a codebook for each output without codes");
      require_size(w.values, coded, "values");
      require_size(w.codes, 0, "codes");
      return;
    }
    const std::size_t books = w.per_output ? static_cast<std::size_t>(outputs) : 1;
    const std::size_t values = w.values.size() / books;
    require(w.values.size() % books == 0 && values >= 1 && values <= std::size_t{1} << w.code_bits,
            std::to_string(w.values.size()) + " values for " + std::to_string(books) +
                " codebooks with codes of " + std::to_string(w.code_bits) + " bits");
    check_codes(w.codes, coded, w.code_bits, values);
  }

  void check(Pool& op) {
    const Tensor& in = read(op.input, DType::kF32);
    require_rank(in, 3);
    check_window(op.window);
    const Tensor& out = write(op.output);
    require(out.dtype == DType::kF32, "its output must be f32", out.name);
    require_rank(out, 3);
    require(out.dims[2] == in.dims[2], "its channels differ from the input's", out.name);
    for (std::size_t axis = 0; axis < 2; ++axis) {
      const std::int64_t reach = (op.window.kernel[axis] - 1) * op.window.dilations[axis] + 1;
      const std::int64_t room =
          in.dims[axis] + op.window.pads[axis] + op.window.pads[axis + 2] - reach;
      const std::int64_t stride = op.window.strides[axis];
      const std::int64_t floor_size = room < 0 ? 0 : room / stride + 1;
      const std::int64_t ceil_size = room < 0 ? 1 : (room + stride - 1) / stride + 1;
      require(out.dims[axis] >= 1 && (out.dims[axis] == floor_size || out.dims[axis] == ceil_size),
              "its dims are " + text(out.dims) + ", expected " + std::to_string(floor_size) +
                  " or, in ceil mode, " + std::to_string(ceil_size) + " on axis " +
                  std::to_string(axis),
              out.name);
    }
    require_taps(op.window, in.dims, out.dims);
  }

  void check(Affine& op) {
    const Tensor& in = read(op.input, DType::kF32);
    require(!in.dims.empty(), "it needs a channel axis", in.name);
    write(op.output, DType::kF32, in.dims);
    const std::int64_t channels = in.dims.back();
    for (const auto* blob : {&op.scale, &op.shift}) {
      require(blob->size() == 1 || blob->size() == static_cast<std::size_t>(channels),
              "scale and shift take 1 or " + std::to_string(channels) + " values, found " +
                  std::to_string(blob->size()));
      check_no_nan(*blob, blob == &op.scale ? "scale" : "shift");
    }
  }

  void check(Unary& op) {
    const Tensor& in = read(op.input, DType::kF32);
    write(op.output, DType::kF32, in.dims);
    require(!std::isnan(op.alpha) && !std::isnan(op.beta), "alpha or beta is NaN");
  }

  void check(Binary& op) {
    const Tensor& a = read(op.a, DType::kF32, true);
    const Tensor& b = read(op.b, DType::kF32, true);
    require(!a.is_constant || !b.is_constant, "both inputs are constants");
    write(op.output, DType::kF32, broadcast(a.dims, b.dims));
  }

  void check(Where& op) {
    const Tensor& condition = read(op.condition, DType::kF32, true);
    const Tensor& a = read(op.a, DType::kF32, true);
    const Tensor& b = read(op.b, DType::kF32, true);
    require(!condition.is_constant || !a.is_constant || !b.is_constant, "all inputs are constants");
    write(op.output, DType::kF32, broadcast(condition.dims, broadcast(a.dims, b.dims)));
  }

  Dims broadcast(const Dims& a, const Dims& b) const {
    const std::size_t rank = std::max(a.size(), b.size());
    Dims dims(rank, 1);
    for (std::size_t i = 0; i < rank; ++i) {
      const std::int64_t da = i < a.size() ? a[a.size() - 1 - i] : 1;
      const std::int64_t db = i < b.size() ? b[b.size() - 1 - i] : 1;
      require(da == db || da == 1 || db == 1, text(a) + " and " + text(b) + " do not broadcast");
      dims[rank - 1 - i] = std::max(da, db);
    }
    return dims;
  }

  void check(Lrn& op) {
    const Tensor& in = read(op.input, DType::kF32);
    require(!in.dims.empty(), "it needs a channel axis", in.name);
    write(op.output, DType::kF32, in.dims);
    require(op.size >= 1 && op.size <= kMaxWindow,
            "size " + std::to_string(op.size) + ", expected 1 .. 2^16");
    require(std::isfinite(op.alpha) && std::isfinite(op.beta) && std::isfinite(op.bias),
            "alpha, beta and bias must be finite");
  }

  void check(MatMul& op) {
    const Tensor& a = read(op.a, DType::kF32, true);
    const Tensor& b = read(op.b, DType::kF32, true);
    require(!a.is_constant || !b.is_constant, "both inputs are constants");
    const std::size_t rank = a.dims.size();
    require(rank >= 2 && b.dims.size() == rank &&
                std::equal(a.dims.begin(), a.dims.end() - 2, b.dims.begin()) &&
                a.dims[rank - 1] == b.dims[rank - 2],
            text(a.dims) + " and " + text(b.dims) + " are no matrices to multiply");
    Dims dims = a.dims;
    dims.back() = b.dims.back();
    write(op.output, DType::kF32, dims);
  }

  std::size_t check_axis(std::int64_t axis, const Tensor& t) const {
    require(axis >= 0 && axis < static_cast<std::int64_t>(t.dims.size()),
            "axis " + std::to_string(axis) + " of dims " + text(t.dims), t.name);
    return static_cast<std::size_t>(axis);
  }

  void check(Concat& op) {
    require(!op.inputs.ids.empty(), "it joins nothing");
    Dims dims;
    std::size_t axis = 0;
    bool constant = true;
    for (const TensorId id : op.inputs.ids) {
      const Tensor& in = read(id, DType::kF32, true);
      constant = constant && in.is_constant;
      if (dims.empty()) {
        axis = check_axis(op.axis, in);
        dims = in.dims;
        continue;
      }
      bool fits = in.dims.size() == dims.size();
      for (std::size_t i = 0; fits && i < dims.size(); ++i)
        fits = i == axis || in.dims[i] == dims[i];
      require(fits,
              "its dims are " + text(in.dims) + ", they do not fit " + text(dims) + " along axis " +
                  std::to_string(axis),
              in.name);
      dims[axis] += in.dims[axis];
    }
    require(!constant, "all inputs are constants");
    write(op.output, DType::kF32, dims);
  }

  void check(Reshape& op) {
    const DType dtype = tensor(op.input).dtype;
    const Tensor& in = read(op.input, dtype);
    require(dtype != DType::kI64, "i64 cannot be reshaped", in.name);
    const Tensor& out = write(op.output);
    require(out.dtype == dtype && out.encoding == in.encoding,
            "its dtype or encoding differs from its input's", out.name);
    require(elements(in.dims) == elements(out.dims),
            "its dims are " + text(out.dims) + ", the input's " + text(in.dims), out.name);
    if (dtype != DType::kBits) return;
    const bool same_channels = in.dims.back() == out.dims.back();
    const bool whole_words = in.dims.back() % 32 == 0 && out.dims.back() % 32 == 0;
    require(same_channels || whole_words,
            "packed channels " + text(in.dims) + " cannot become " + text(out.dims), out.name);
  }

  void check(Transpose& op) {
    const Tensor& in = read(op.input, DType::kF32);
    Dims order = op.perm;
    std::sort(order.begin(), order.end());
    bool permutation = order.size() == in.dims.size();
    for (std::size_t i = 0; permutation && i < order.size(); ++i)
      permutation = order[i] == static_cast<std::int64_t>(i);
    require(permutation,
            "perm " + text(op.perm) + " is no permutation of the axes of " + text(in.dims));
    Dims dims;
    for (const std::int64_t axis : op.perm) dims.push_back(in.dims[static_cast<std::size_t>(axis)]);
    write(op.output, DType::kF32, dims);
  }

  void check(Pad& op) {
    const Tensor& in = read(op.input, DType::kF32);
    require(op.begin.size() == in.dims.size() && op.end.size() == in.dims.size(),
            "begin and end take " + std::to_string(in.dims.size()) + " values each");
    require(!std::isnan(op.value), "value is NaN");
    Dims dims = in.dims;
    for (std::size_t i = 0; i < dims.size(); ++i) {
      const auto bounded = [](std::int64_t v) { return v > -kMaxElements && v < kMaxElements; };
      require(bounded(op.begin[i]) && bounded(op.end[i]), "a pad is out of range");
      // Cropping one side by more than the map would read outside it even if the other side made up
      // for it.
      require(
          in.dims[i] + std::min<std::int64_t>(op.begin[i], 0) +
                  std::min<std::int64_t>(op.end[i], 0) >=
              0,
          "it crops more than there is of axis " + std::to_string(i) + " of dims " + text(in.dims));
      dims[i] += op.begin[i] + op.end[i];
    }
    write(op.output, DType::kF32, dims);
  }

  void check(Softmax& op) {
    const Tensor& in = read(op.input, DType::kF32);
    check_axis(op.axis, in);
    write(op.output, DType::kF32, in.dims);
  }

  void check(ArgMax& op) {
    const Tensor& in = read(op.input, DType::kF32);
    const std::size_t axis = check_axis(op.axis, in);
    const Tensor& out = write(op.output);
    Dims kept = in.dims, removed = in.dims;
    kept[axis] = 1;
    removed.erase(removed.begin() + static_cast<std::ptrdiff_t>(axis));
    require(out.dtype == DType::kI64, "its output must be i64", out.name);
    require(out.dims == kept || out.dims == removed,
            "its dims are " + text(out.dims) + ", expected " + text(removed) + " or " + text(kept),
            out.name);
  }

  void check(Reduce& op) {
    const Tensor& in = read(op.input, DType::kF32);
    const Tensor& out = write(op.output);
    require(out.dtype == DType::kF32, "its output must be f32", out.name);
    require(!op.axes.empty(), "it reduces no axis");
    Dims kept = in.dims, removed;
    std::int64_t before = -1;
    for (const std::int64_t axis : op.axes) {
      kept[check_axis(axis, in)] = 1;
      require(axis > before, "axes " + text(op.axes) + " do not ascend");
      before = axis;
    }
    for (std::size_t i = 0; i < in.dims.size(); ++i) {
      if (std::ranges::find(op.axes, static_cast<std::int64_t>(i)) == op.axes.end())
        removed.push_back(in.dims[i]);
    }
    require(out.dims == kept || out.dims == removed,
            "its dims are " + text(out.dims) + ", expected " + text(removed) + " or " + text(kept),
            out.name);
  }

  void check(Select& op) {
    const Tensor& in = read(op.input, DType::kF32);
    const std::size_t axis = check_axis(op.axis, in);
    require(op.indices.size() != 0, "it selects nothing");
    for (const std::int32_t index : op.indices.view()) {
      if (index < 0 || index >= in.dims[axis]) {
        fail("index " + std::to_string(index) + " of axis " + std::to_string(axis) + " of dims " +
             text(in.dims));
      }
    }
    Dims dims = in.dims;
    dims[axis] = static_cast<std::int64_t>(op.indices.size());
    write(op.output, DType::kF32, dims);
  }

  const Graph& graph_;
  std::vector<bool> written_;
  const Op* op_ = nullptr;
};

}  // namespace

void validate(const Graph& graph) {
  Validator(graph).run();
}

}  // namespace tac
