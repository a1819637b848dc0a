// One struct per op, each with one fields() visitor that the writer, the reader, the printer and
// op_specs() share.
//
// A visitor is called as v("field_name", field) for fields of these types only:
//   TensorId, std::vector<TensorId> (wrapped: TensorList), std::int64_t, float, bool,
//   std::vector<std::int64_t>, an enum class with an EnumNames<> specialisation, BlobOf<float>,
//   BlobOf<std::int32_t>, BlobOf<std::uint8_t>, BlobOf<std::uint32_t>.
// Arithmetic of every op: the comment at its struct. "C" is the size of the last axis.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "ir/tensor.h"

namespace tac {

enum class OpCode : std::uint16_t {
#define TAC_OP(code, Struct, name) k##Struct = code,
#include "ir/ops.inc"
#undef TAC_OP
};

template <class T>
struct BlobOf {
  Blob bytes;
  std::size_t size() const noexcept { return bytes.size() / sizeof(T); }
  // Blobs are 64-byte aligned in the file and in the writer.
  const T* data() const noexcept { return reinterpret_cast<const T*>(bytes.data()); }
  std::span<const T> view() const noexcept { return {data(), size()}; }
};

struct TensorList {
  std::vector<TensorId> ids;
};

template <class E>
struct EnumNames;  // static constexpr std::array of string_view, index = value

// A sliding window over [H, W]: pads are {top, left, bottom, right}, the others {vertical,
// horizontal}.
struct Window {
  std::vector<std::int64_t> kernel{1, 1}, strides{1, 1}, dilations{1, 1}, pads{0, 0, 0, 0};

  template <class V>
  void fields(V& v) {
    v("kernel", kernel);
    v("strides", strides);
    v("dilations", dilations);
    v("pads", pads);
  }
};

// Step function on the ordered output levels, shared by BinaryConv (integer thresholds) and
// Quantize (float thresholds). thresholds [C][T] or, shared by all channels, [1][T]; ascending
// within a row; T = n_levels - 1 of the output encoding.
//   n     = number of t with x >= t
//   index = descending[c] ? T - n : n          (index in the ascending list of output levels)
// A constant channel has all its thresholds at the type's lowest (n = T) or, for int32, INT32_MAX /
// for float, +inf (x = +inf then counts as reached). `descending` is empty (none is) or has one
// byte per threshold row.

// Integer convolution of low-bit levels: acc = sum over window taps and channels of weight level *
// input level, exact.
//   input  kBits [H, W, C]; output kBits or kF32 [OH, OW, out_channels]
//   pad_level: the level that a tap outside the map reads (0 for ONNX zero padding, -1 or +1 for
//     Pad nodes); 0 without pads
//   weights: 1..5 sign planes, one per w_coefs, each a bit matrix of out_channels rows; a row is
//     the bits of (kh, kw, c in group) in that order, padded with 0 to whole 32-bit words. Bit b is
//     s = 1 - 2b, and weight level = (sum over planes of w_coefs[plane] * s) / 2^w_shift, which
//     must be an integer.
//   kBits out: thresholds on acc, as above.
//   kF32 out: y = scale[c] * float(acc) + bias[c], one rounding each.
struct BinaryConv {
  TensorId input = 0, output = 0;
  Window window;
  std::int64_t groups = 1;
  std::int64_t pad_level = 0;
  BlobOf<std::uint32_t> weights;
  std::vector<std::int64_t> w_coefs{1};
  std::int64_t w_shift = 0;
  BlobOf<std::int32_t> thresholds;
  BlobOf<std::uint8_t> descending;
  BlobOf<float> scale, bias;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    window.fields(v);
    v("groups", groups);
    v("pad_level", pad_level);
    v("weights", weights);
    v("w_coefs", w_coefs);
    v("w_shift", w_shift);
    v("thresholds", thresholds);
    v("descending", descending);
    v("scale", scale);
    v("bias", bias);
  }
};

// kF32 [..., C] -> kBits of the same dims, by float thresholds (above). NaN reaches no threshold.
struct Quantize {
  TensorId input = 0, output = 0;
  BlobOf<float> thresholds;
  BlobOf<std::uint8_t> descending;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("thresholds", thresholds);
    v("descending", descending);
  }
};

// kBits [..., C] -> kF32 of the same dims: y = values[c or 0][index], index = position in the
// ascending list of levels.
struct Dequantize {
  TensorId input = 0, output = 0;
  BlobOf<float> values;  // [C][n_levels] or [1][n_levels]

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("values", values);
  }
};

// Max pooling of levels, kBits [H, W, C] -> kBits of the same encoding; padding never wins.
// Channels with a non-zero byte in `take_min` are min-pooled instead (max pooling moved behind a
// descending threshold).
struct BitPool {
  TensorId input = 0, output = 0;
  Window window;
  BlobOf<std::uint8_t> take_min;  // empty, or [C]

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    window.fields(v);
    v("take_min", take_min);
  }
};

// y[o] = sum over k of codebook[code(o, k)] * x[k] + bias[o]; kF32 [..., K] -> kF32 [..., O].
//   bitmap: empty: every position has a code. Otherwise [O][ceil(K / 32)] words, bit k % 32 of word
//     k / 32 set where the weight is not zero; only those have a code.
//   codes: code_bits (1, 2 or 4) each, little end first within a byte, row after row without gaps;
//     the last byte is padded with 0.
//   codebook: at most 2^code_bits values; with a bitmap none of them is 0.
//   levels: empty: sums in float32. Otherwise an integer for each codebook value, which is level *
//     level_scale up to half a level_scale; x is rounded to 16 bits (kernels/codebook_i16 has the
//     rule, runtime/codebook_rounding.h that for what rounding leaves) and the sum is that of
//     integers, exact, and scaled once. |level| <= 32767, K <= 65536, and a bitmap leaves one of
//     the 16 codes free.
struct CodebookLinear {
  TensorId input = 0, output = 0;
  std::int64_t code_bits = 4;
  BlobOf<float> codebook;
  BlobOf<std::uint32_t> bitmap;
  BlobOf<std::uint8_t> codes;
  BlobOf<float> bias;  // [O]
  BlobOf<std::int32_t> levels;
  float level_scale = 0.0F;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("code_bits", code_bits);
    v("codebook", codebook);
    v("bitmap", bitmap);
    v("codes", codes);
    v("bias", bias);
    v("levels", levels);
    v("level_scale", level_scale);
  }
};

// kF32 [..., K] -> [..., O]; weights [O][K], bias [O].
struct Linear {
  TensorId input = 0, output = 0;
  BlobOf<float> weights, bias;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("weights", weights);
    v("bias", bias);
  }
};

// kF32 [H, W, C] -> [OH, OW, O]; weights [O][kh][kw][C / groups], bias [O]; taps outside the map
// read 0.
struct Conv {
  TensorId input = 0, output = 0;
  Window window;
  std::int64_t groups = 1;
  BlobOf<float> weights, bias;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    window.fields(v);
    v("groups", groups);
    v("weights", weights);
    v("bias", bias);
  }
};

enum class PoolKind : std::uint8_t { kMax = 0, kAverage = 1 };
template <>
struct EnumNames<PoolKind> {
  static constexpr std::array<std::string_view, 2> kNames{"max", "average"};
};

// kF32 [H, W, C] -> [OH, OW, C]. Windows are clipped to the padded map; max ignores padding;
// average divides by the taps inside the map or, with count_include_pad, inside the padded map. OH,
// OW come from the output tensor (ceil mode).
struct Pool {
  TensorId input = 0, output = 0;
  PoolKind kind = PoolKind::kMax;
  Window window;
  bool count_include_pad = false;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("kind", kind);
    window.fields(v);
    v("count_include_pad", count_include_pad);
  }
};

// y = scale[c] * x + shift[c], c along the last axis, [C] or [1] each; two roundings.
struct Affine {
  TensorId input = 0, output = 0;
  BlobOf<float> scale, shift;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("scale", scale);
    v("shift", shift);
  }
};

enum class UnaryKind : std::uint8_t {
  kRelu = 0,       // max(x, 0)
  kClip = 1,       // min(max(x, alpha), beta)
  kLeakyRelu = 2,  // x < 0 ? alpha * x : x
  kSigmoid = 3,
  kTanh = 4,
  kHardSigmoid = 5,  // min(max(alpha * x + beta, 0), 1)
  kHardSwish = 6,    // x * min(max(x / 6 + 0.5, 0), 1)
  kAbs = 7,
  kNeg = 8,
  kSqrt = 9,
  kExp = 10,
  kSign = 11,  // -1, 0, 1; NaN stays NaN
  kFloor = 12,
  kCeil = 13,
  kRound = 14,     // half to even
  kElu = 15,       // x < 0 ? alpha * (exp(x) - 1) : x
  kSelu = 16,      // beta * elu(x)
  kCelu = 17,      // x < 0 ? alpha * (exp(x / alpha) - 1) : x
  kSoftplus = 18,  // log(exp(x) + 1)
  kSoftsign = 19,  // x / (1 + |x|)
  kErf = 20,
  kGelu = 21,      // x * (1 + erf(x / sqrt(2))) / 2
  kGeluTanh = 22,  // x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) / 2
  kReciprocal = 23,
  kLog = 24,
  kMish = 25,             // x * tanh(softplus(x))
  kThresholdedRelu = 26,  // x > alpha ? x : 0
  kTrunc = 27,            // towards 0
};
template <>
struct EnumNames<UnaryKind> {
  static constexpr std::array<std::string_view, 28> kNames{
      "relu",       "clip",      "leaky_relu",
      "sigmoid",    "tanh",      "hard_sigmoid",
      "hard_swish", "abs",       "neg",
      "sqrt",       "exp",       "sign",
      "floor",      "ceil",      "round",
      "elu",        "selu",      "celu",
      "softplus",   "softsign",  "erf",
      "gelu",       "gelu_tanh", "reciprocal",
      "log",        "mish",      "thresholded_relu",
      "trunc"};
};

struct Unary {
  TensorId input = 0, output = 0;
  UnaryKind kind = UnaryKind::kRelu;
  float alpha = 0.0F, beta = 0.0F;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("kind", kind);
    v("alpha", alpha);
    v("beta", beta);
  }
};

enum class BinaryKind : std::uint8_t {
  kAdd = 0,
  kSub = 1,
  kMul = 2,
  kDiv = 3,
  kMin = 4,
  kMax = 5,
  kPow = 6,
  kPRelu = 7,  // a < 0 ? b * a : a
  kLess = 8,   // 1 where it holds, else 0; so are the others
  kLessOrEqual = 9,
  kEqual = 10,
};
template <>
struct EnumNames<BinaryKind> {
  static constexpr std::array<std::string_view, 11> kNames{
      "add", "sub", "mul", "div", "min", "max", "pow", "prelu", "less", "less_or_equal", "equal"};
};

// kF32 elementwise with NumPy broadcasting over the per-sample dims (aligned at the last axis).
// Either input may be a constant tensor; at least one is not.
struct Binary {
  TensorId a = 0, b = 0, output = 0;
  BinaryKind kind = BinaryKind::kAdd;

  template <class V>
  void fields(V& v) {
    v("a", a);
    v("b", b);
    v("output", output);
    v("kind", kind);
  }
};

// kF32; axis counts per-sample dims. Inputs may be constants, but not all of them.
struct Concat {
  TensorList inputs;
  TensorId output = 0;
  std::int64_t axis = 0;

  template <class V>
  void fields(V& v) {
    v("inputs", inputs);
    v("output", output);
    v("axis", axis);
  }
};

// Same elements, other per-sample dims; costs nothing at run time. kF32, or kBits where the last
// axis is unchanged or [H, W, C] becomes [H * W * C] with C a multiple of 32.
struct Reshape {
  TensorId input = 0, output = 0;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
  }
};

// kF32; output dim i is input dim perm[i], per-sample dims.
struct Transpose {
  TensorId input = 0, output = 0;
  std::vector<std::int64_t> perm;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("perm", perm);
  }
};

// kF32 constant padding; begin and end per per-sample dim, negative crops.
struct Pad {
  TensorId input = 0, output = 0;
  std::vector<std::int64_t> begin, end;
  float value = 0.0F;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("begin", begin);
    v("end", end);
    v("value", value);
  }
};

struct Softmax {
  TensorId input = 0, output = 0;
  std::int64_t axis = 0;
  bool log = false;  // log(softmax)

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("axis", axis);
    v("log", log);
  }
};

// kF32 -> kI64; the output dims have that axis removed or, keepdims, of size 1. Ties: the first, or
// with select_last the last.
struct ArgMax {
  TensorId input = 0, output = 0;
  std::int64_t axis = 0;
  bool select_last = false;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("axis", axis);
    v("select_last", select_last);
  }
};

enum class ReduceKind : std::uint8_t {
  kMean = 0,
  kSum = 1,
  kMax = 2,  // NaN where one is
  kMin = 3,
  kProd = 4,
  kL1 = 5,         // sum of |x|
  kL2 = 6,         // square root of the sum of x^2
  kSumSquare = 7,  // sum of x^2
};
template <>
struct EnumNames<ReduceKind> {
  static constexpr std::array<std::string_view, 8> kNames{"mean", "sum", "max", "min",
                                                          "prod", "l1",  "l2",  "sum_square"};
};

// kF32: many values to one, over the axes `axes` (per-sample, ascending). The output dims have
// those axes removed or, keepdims, of size 1. Sums and products are made in double precision and
// rounded to float32 once for every run of neighbouring axes.
struct Reduce {
  TensorId input = 0, output = 0;
  ReduceKind kind = ReduceKind::kMean;
  std::vector<std::int64_t> axes;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("kind", kind);
    v("axes", axes);
  }
};

// kF32: position i along `axis` of the output is position indices[i] of the input.
struct Select {
  TensorId input = 0, output = 0;
  std::int64_t axis = 0;
  BlobOf<std::int32_t> indices;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("axis", axis);
    v("indices", indices);
  }
};

// Weights [O][K] of few values, or few of which are not zero; they become floats when the model is
// loaded.
//   bitmap: empty: every position has a code. Otherwise [O][ceil(K / 32)] words, bit k % 32 of word
//     k / 32 set where the weight is not zero; only those have a code.
//   code_bits 1..8: codes of as many bits, little end first within a byte, row after row without
//     gaps; the last byte is padded with 0. values: the codebook, at most 2^code_bits values for
//     all rows or, per_output, as many for each row. With a bitmap none of them is 0.
//   code_bits 0: no codes; values: the weights that the bitmap names, in order.
struct CodedWeights {
  BlobOf<float> values;
  std::int64_t code_bits = 1;
  bool per_output = false;
  BlobOf<std::uint32_t> bitmap;
  BlobOf<std::uint8_t> codes;

  template <class V>
  void fields(V& v) {
    v("values", values);
    v("code_bits", code_bits);
    v("per_output", per_output);
    v("bitmap", bitmap);
    v("codes", codes);
  }
};

// As Conv.
struct CodedConv {
  TensorId input = 0, output = 0;
  Window window;
  std::int64_t groups = 1;
  CodedWeights weights;
  BlobOf<float> bias;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    window.fields(v);
    v("groups", groups);
    weights.fields(v);
    v("bias", bias);
  }
};

// As Linear.
struct CodedLinear {
  TensorId input = 0, output = 0;
  CodedWeights weights;
  BlobOf<float> bias;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    weights.fields(v);
    v("bias", bias);
  }
};

// kF32: a where the condition is not 0, else b; broadcasting as Binary. Inputs may be constants,
// but not all of them.
struct Where {
  TensorId condition = 0, a = 0, b = 0, output = 0;

  template <class V>
  void fields(V& v) {
    v("condition", condition);
    v("a", a);
    v("b", b);
    v("output", output);
  }
};

// kF32 [..., C]: y[c] = x[c] / (bias + alpha / size * sum of x^2)^beta, the sum over the channels
// from c - floor((size - 1) / 2) to c + ceil((size - 1) / 2) that there are (Krizhevsky et al.,
// ImageNet Classification with Deep Convolutional Neural Networks, 2012, section 3.3).
struct Lrn {
  TensorId input = 0, output = 0;
  std::int64_t size = 1;
  float alpha = 0.0F, beta = 0.0F, bias = 1.0F;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    v("size", size);
    v("alpha", alpha);
    v("beta", beta);
    v("bias", bias);
  }
};

// kF32, a product of two matrices: a [..., M, K] times b [..., K, N] -> [..., M, N], of each sample
// and of each index of the leading dims, which are equal. Either may be a constant; one is not.
struct MatMul {
  TensorId a = 0, b = 0, output = 0;

  template <class V>
  void fields(V& v) {
    v("a", a);
    v("b", b);
    v("output", output);
  }
};

// As CodedConv, in integers. A weight w of output o is the level nearest w / level_scale[o], and an
// input x is rounded to q, |q| <= input_limit: by the rule of runtime/rounding.h, from the largest
// input of the sample, or where input_unit is not 0, q = x * (1 / input_unit) and unit = input_unit
// (kernels/rounding has the details of both).
//   y[o] = float(level_scale[o] * unit) * (float(c[0]) + float(c[1]) + ...) + bias[o]
// from left to right in float32. Each c[i] is an exact sum of level * q over runs_per_sum runs, the
// last one over those that are left. Of the products (ky, kx, c) of an output a run is a part of a
// kernel row or, in groups or with dilations[1] > 1, of a tap: of its V values 2 * ceil(V / (2 *
// run_parts)), in the last run what is left.
// |levels| <= 32767, and those of a c[i] times input_limit add up to less than 2^31. A sample with
// an input that is not finite gives NaN, with an input_unit anything. Of inputs below about 1e-30
// the scale in front of the sum loses bits, as any product of floats that small does.
struct IntegerConv {
  TensorId input = 0, output = 0;
  Window window;
  std::int64_t groups = 1;
  CodedWeights weights;
  BlobOf<float> bias;
  BlobOf<float> level_scale;  // [O]
  std::int64_t run_parts = 1, runs_per_sum = 1;
  std::int64_t input_limit = 1;
  float input_unit = 0.0F;

  template <class V>
  void fields(V& v) {
    v("input", input);
    v("output", output);
    window.fields(v);
    v("groups", groups);
    weights.fields(v);
    v("bias", bias);
    v("level_scale", level_scale);
    v("run_parts", run_parts);
    v("runs_per_sum", runs_per_sum);
    v("input_limit", input_limit);
    v("input_unit", input_unit);
  }
};

using OpVariant = std::variant<
#define TAC_OP(code, Struct, name) Struct,
#include "ir/ops.inc"
#undef TAC_OP
    std::monostate>;

struct Op {
  std::string name;    // of the ONNX node it came from (the last one, where several were fused)
  std::string origin;  // free text for people: which nodes were fused
  OpVariant op;
};

}  // namespace tac
