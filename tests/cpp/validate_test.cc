#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "base/error.h"
#include "sample_graphs.h"

namespace tac {
namespace {

// Changes one thing in the graph that uses every op and expects the refusal to name the op and to
// say `message`.
struct Break {
  const char* op;
  const char* message;
  std::function<void(ModelWriter&)> edit;
};

template <class Struct>
Struct& find(ModelWriter& w) {
  for (Op& op : w.graph.ops) {
    if (auto* held = std::get_if<Struct>(&op.op)) return *held;
  }
  throw std::logic_error("the sample has no such op");
}

Tensor& tensor(ModelWriter& w, const std::string& name) {
  for (Tensor& t : w.graph.tensors) {
    if (t.name == name) return t;
  }
  throw std::logic_error("the sample has no tensor " + name);
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

const std::vector<Break>& breaks() {
  static const std::vector<Break> all = {
      {"binary_conv", "weights has 65 values, expected 66",
       [](auto& w) { find<BinaryConv>(w).weights = test::filled<std::uint32_t>(w, 65, 0); }},
      {"binary_conv", "bits behind its end",
       [](auto& w) { find<BinaryConv>(w).weights = test::filled<std::uint32_t>(w, 66, ~0U); }},
      {"binary_conv", "groups do not divide", [](auto& w) { find<BinaryConv>(w).groups = 2; }},
      {"binary_conv", "pad_level 2", [](auto& w) { find<BinaryConv>(w).pad_level = 2; }},
      {"binary_conv", "weight planes, expected 1 .. 5",
       [](auto& w) { find<BinaryConv>(w).w_coefs.clear(); }},
      {"binary_conv", "no integer level", [](auto& w) { find<BinaryConv>(w).w_shift = 1; }},
      {"binary_conv", "w_shift 5", [](auto& w) { find<BinaryConv>(w).w_shift = 5; }},
      {"binary_conv", "do not ascend",
       [](auto& w) { const_cast<std::int32_t*>(find<BinaryConv>(w).thresholds.data())[4] = -9; }},
      {"binary_conv", "descending has 2 values",
       [](auto& w) { find<BinaryConv>(w).descending = test::filled<std::uint8_t>(w, 2, 0); }},
      {"binary_conv", "descending holds a value",
       [](auto& w) { find<BinaryConv>(w).descending = test::filled<std::uint8_t>(w, 33, 2); }},
      {"binary_conv", "scale and bias on an output of bits",
       [](auto& w) { find<BinaryConv>(w).scale = test::filled<float>(w, 33, 1.0F); }},
      {"binary_conv", "strides [0, 1] out of range",
       [](auto& w) { find<BinaryConv>(w).window.strides = {0, 1}; }},
      {"binary_conv", "kernel, strides and dilations take 2 values, pads 4",
       [](auto& w) { find<BinaryConv>(w).window.pads = {1, 1}; }},
      {"binary_conv", "larger than the padded map",
       [](auto& w) { find<BinaryConv>(w).window.kernel = {7, 3}; }},
      {"binary_conv", "expected 4 on axis 0", [](auto& w) { tensor(w, "bconv").dims[0] = 5; }},
      {"binary_conv", "pad_level -1 without padding",
       [](auto& w) {
         find<BinaryConv>(w).window.pads = {0, 0, 0, 0};
         find<BinaryConv>(w).pad_level = -1;
         tensor(w, "bconv").dims = {2, 2, 33};
       }},
      {"binary_conv", "a weight coefficient of 65",
       [](auto& w) { find<BinaryConv>(w).w_coefs = {65}; }},
      {"binary_conv", "a weight coefficient of -9223372036854775808",
       [](auto& w) { find<BinaryConv>(w).w_coefs = {std::numeric_limits<std::int64_t>::min()}; }},
      {"quantize", "thresholds have 2 values, expected 1 or 5",
       [](auto& w) { find<Quantize>(w).thresholds = test::filled<float>(w, 2, 0.0F); }},
      {"quantize", "thresholds has a NaN at 0",
       [](auto& w) { find<Quantize>(w).thresholds = test::filled<float>(w, 1, kNan); }},
      {"quantize", "its output must be bits",
       [](auto& w) { find<Quantize>(w).output = find<Dequantize>(w).output; }},
      {"dequantize", "values has a NaN",
       [](auto& w) { find<Dequantize>(w).values = test::filled<float>(w, 4, kNan); }},
      {"dequantize", "values has 3 entries",
       [](auto& w) { find<Dequantize>(w).values = test::filled<float>(w, 3, 0.0F); }},
      {"bit_pool", "take_min has 32 values",
       [](auto& w) { find<BitPool>(w).take_min = test::filled<std::uint8_t>(w, 32, 0); }},
      {"bit_pool", "sees padding only",
       [](auto& w) {
         find<BitPool>(w).window.pads = {2, 0, 0, 0};
         tensor(w, "pooled").dims[0] = 3;
       }},
      {"bit_pool", "encoding differs",
       [](auto& w) { tensor(w, "pooled").encoding = test::kSignZero; }},
      {"codebook_linear", "code_bits 3", [](auto& w) { find<CodebookLinear>(w).code_bits = 3; }},
      {"codebook_linear", "codes has 3 values, expected 4",
       [](auto& w) { find<CodebookLinear>(w).codes = test::filled<std::uint8_t>(w, 3, 0); }},
      {"codebook_linear", "code 3 at 0, the codebook has 3",
       [](auto& w) { find<CodebookLinear>(w).codes = test::filled<std::uint8_t>(w, 4, 0xFF); }},
      {"codebook_linear", "holds a 0",
       [](auto& w) { find<CodebookLinear>(w).codebook = test::filled<float>(w, 3, 0.0F); }},
      {"codebook_linear", "a codebook of 5 values with codes of 2 bits",
       [](auto& w) { find<CodebookLinear>(w).codebook = test::filled<float>(w, 5, 1.0F); }},
      {"codebook_linear", "levels has 2 values, expected 3",
       [](auto& w) { find<CodebookLinear>(w).levels = test::filled<std::int32_t>(w, 2, 1); }},
      {"codebook_linear", "a level_scale without levels",
       [](auto& w) { find<CodebookLinear>(w).level_scale = 0.5F; }},
      {"codebook_linear", "level_scale must be positive",
       [](auto& w) { find<CodebookLinear>(w).levels = test::filled<std::int32_t>(w, 3, 1); }},
      {"codebook_linear", "level 32768 exceeds 32767",
       [](auto& w) {
         find<CodebookLinear>(w).levels = test::filled<std::int32_t>(w, 3, 32768);
         find<CodebookLinear>(w).level_scale = 1.0F;
       }},
      {"codebook_linear", "level 1 is not that of its codebook value",
       [](auto& w) {
         find<CodebookLinear>(w).levels = test::filled<std::int32_t>(w, 3, 1);
         find<CodebookLinear>(w).level_scale = 1.0F;
       }},
      {"codebook_linear", "levels of 16 values behind a bitmap",
       [](auto& w) {
         auto& op = find<CodebookLinear>(w);
         op.code_bits = 4;
         op.codebook = test::filled<float>(w, 16, 1.0F);
         op.codes = test::filled<std::uint8_t>(w, 8, 0);
         op.levels = test::filled<std::int32_t>(w, 16, 1);
         op.level_scale = 1.0F;
       }},
      {"codebook_linear", "bitmap row 0 has bits behind its end",
       [](auto& w) { find<CodebookLinear>(w).bitmap = test::filled<std::uint32_t>(w, 16, 2U); }},
      {"linear", "weights has 35 values, expected 36",
       [](auto& w) { find<Linear>(w).weights = test::filled<float>(w, 35, 0.0F); }},
      {"linear", "bias has a NaN",
       [](auto& w) { find<Linear>(w).bias = test::filled<float>(w, 4, kNan); }},
      {"conv", "kernel [65537, 3] out of range",
       [](auto& w) { find<Conv>(w).window.kernel = {65537, 3}; }},
      {"conv", "2 groups do not divide", [](auto& w) { find<Conv>(w).groups = 2; }},
      {"conv", "weights has 134 values, expected 135",
       [](auto& w) { find<Conv>(w).weights = test::filled<float>(w, 134, 0.0F); }},
      {"pool", "channels differ", [](auto& w) { tensor(w, "pool").dims[2] = 32; }},
      {"pool", "or, in ceil mode,", [](auto& w) { tensor(w, "pool").dims[0] = 2; }},
      {"affine", "scale and shift take 1 or 5 values, found 4",
       [](auto& w) { find<Affine>(w).scale = test::filled<float>(w, 4, 0.0F); }},
      {"affine", "shift has a NaN",
       [](auto& w) { find<Affine>(w).shift = test::filled<float>(w, 5, kNan); }},
      {"unary", "alpha or beta is NaN", [](auto& w) { find<Unary>(w).alpha = kNan; }},
      {"binary", "do not broadcast", [](auto& w) { tensor(w, "constant").dims = {2, 4}; }},
      {"concat", "axis 1 of dims [8]", [](auto& w) { find<Concat>(w).axis = 1; }},
      {"concat", "all inputs are constants",
       [](auto& w) { find<Concat>(w).inputs.ids = {find<Binary>(w).b}; }},
      {"concat", "it joins nothing", [](auto& w) { find<Concat>(w).inputs.ids.clear(); }},
      {"reshape", "the input's [1, 1, 33]", [](auto& w) { tensor(w, "flat").dims = {32}; }},
      {"transpose", "no permutation", [](auto& w) { find<Transpose>(w).perm = {1, 1, 0}; }},
      {"pad", "crops more than there is", [](auto& w) { find<Pad>(w).begin = {-17}; }},
      {"pad", "value is NaN", [](auto& w) { find<Pad>(w).value = kNan; }},
      {"pad", "a pad is out of range",
       [](auto& w) { find<Pad>(w).end = {std::numeric_limits<std::int64_t>::max()}; }},
      {"coded_conv", "2 groups do not divide", [](auto& w) { find<CodedConv>(w).groups = 2; }},
      {"coded_conv", "bias has 4 values, expected 5",
       [](auto& w) { find<CodedConv>(w).bias = test::filled<float>(w, 4, 0.0F); }},
      {"coded_conv", "code_bits 9, expected 0 .. 8",
       [](auto& w) { find<CodedConv>(w).weights.code_bits = 9; }},
      {"coded_conv", "code_bits -1, expected 0 .. 8",
       [](auto& w) { find<CodedConv>(w).weights.code_bits = -1; }},
      {"coded_conv", "values has a NaN at 0",
       [](auto& w) { find<CodedConv>(w).weights.values = test::filled<float>(w, 3, kNan); }},
      {"coded_conv", "5 values for 1 codebooks with codes of 2 bits",
       [](auto& w) { find<CodedConv>(w).weights.values = test::filled<float>(w, 5, 1.0F); }},
      {"coded_conv", "0 values for 1 codebooks",
       [](auto& w) { find<CodedConv>(w).weights.values = {}; }},
      {"coded_conv", "a value behind a bitmap holds a 0",
       [](auto& w) { find<CodedConv>(w).weights.values = test::filled<float>(w, 3, 0.0F); }},
      {"coded_conv", "bitmap has 4 values, expected 5",
       [](auto& w) { find<CodedConv>(w).weights.bitmap = test::filled<std::uint32_t>(w, 4, 9U); }},
      {"coded_conv", "bitmap row 0 has bits behind its end",
       [](auto& w) { find<CodedConv>(w).weights.bitmap = test::filled<std::uint32_t>(w, 5, 33U); }},
      {"coded_conv", "codes has 2 values, expected 3",
       [](auto& w) { find<CodedConv>(w).weights.codes = test::filled<std::uint8_t>(w, 2, 0); }},
      {"coded_conv", "code 3 at 8, the codebook has 3 values",
       [](auto& w) {
         const std::vector<std::uint8_t> codes{0, 0, 3};
         find<CodedConv>(w).weights.codes = w.template own_array<std::uint8_t>(codes);
       }},
      {"coded_conv", "codes have bits behind their end",
       [](auto& w) {
         const std::vector<std::uint8_t> codes{0, 0, 16};
         find<CodedConv>(w).weights.codes = w.template own_array<std::uint8_t>(codes);
       }},
      {"coded_conv", "values has 3 values, expected 10",
       [](auto& w) { find<CodedConv>(w).weights.code_bits = 0; }},
      {"coded_conv", "codes has 3 values, expected 0",
       [](auto& w) {
         find<CodedConv>(w).weights.code_bits = 0;
         find<CodedConv>(w).weights.values = test::filled<float>(w, 10, 1.0F);
       }},
      {"coded_conv", "weights without codes and without a bitmap",
       [](auto& w) {
         find<CodedConv>(w).weights.code_bits = 0;
         find<CodedConv>(w).weights.bitmap = {};
       }},
      {"integer_conv", "level_scale has 4 values, expected 5",
       [](auto& w) { find<IntegerConv>(w).level_scale = test::filled<float>(w, 4, 1.0F); }},
      {"integer_conv", "level_scale must be positive",
       [](auto& w) { find<IntegerConv>(w).level_scale = test::filled<float>(w, 5, 0.0F); }},
      {"integer_conv", "level_scale must be positive",
       [](auto& w) { find<IntegerConv>(w).level_scale = test::filled<float>(w, 5, kNan); }},
      {"integer_conv", "run_parts 0, expected 1 .. 5",
       [](auto& w) { find<IntegerConv>(w).run_parts = 0; }},
      {"integer_conv", "run_parts 6, expected 1 .. 5",
       [](auto& w) { find<IntegerConv>(w).run_parts = 6; }},
      {"integer_conv", "runs_per_sum 0", [](auto& w) { find<IntegerConv>(w).runs_per_sum = 0; }},
      {"integer_conv", "input_limit 0, expected 1 .. 32767",
       [](auto& w) { find<IntegerConv>(w).input_limit = 0; }},
      {"integer_conv", "input_limit 32768, expected 1 .. 32767",
       [](auto& w) { find<IntegerConv>(w).input_limit = 32768; }},
      {"integer_conv", "input_unit must be 0 or positive",
       [](auto& w) { find<IntegerConv>(w).input_unit = -1.0F; }},
      {"integer_conv", "input_unit must be 0 or positive",
       [](auto& w) { find<IntegerConv>(w).input_unit = kNan; }},
      {"integer_conv", "input_unit must be 0 or positive",
       [](auto& w) { find<IntegerConv>(w).input_unit = 1e-45F; }},
      {"integer_conv", "more than 2^31 values in the padded map",
       [](auto& w) {
         find<IntegerConv>(w).window = {
             {1, 1}, {65536, 65536}, {1, 1}, {65536, 65536, 65536, 65536}};
         tensor(w, "whole").dims = {3, 3, 5};
       }},
      {"integer_conv", "bitmap has 4 values, expected 5",
       [](auto& w) {
         find<IntegerConv>(w).weights.bitmap = test::filled<std::uint32_t>(w, 4, 9U);
       }},
      {"coded_linear", "89 values for 18 codebooks with codes of 3 bits",
       [](auto& w) { find<CodedLinear>(w).weights.values = test::filled<float>(w, 89, 1.0F); }},
      {"coded_linear", "162 values for 18 codebooks with codes of 3 bits",
       [](auto& w) { find<CodedLinear>(w).weights.values = test::filled<float>(w, 162, 1.0F); }},
      {"coded_linear", "code 7 at 0, the codebook has 5 values",
       [](auto& w) { find<CodedLinear>(w).weights.codes = test::filled<std::uint8_t>(w, 122, 7); }},
      {"coded_linear", "a codebook for each output without codes",
       [](auto& w) {
         find<CodedLinear>(w).weights.code_bits = 0;
         find<CodedLinear>(w).weights.bitmap = test::filled<std::uint32_t>(w, 18, 1U);
       }},
      {"coded_linear", "bias has a NaN",
       [](auto& w) { find<CodedLinear>(w).bias = test::filled<float>(w, 18, kNan); }},
      {"where", "do not broadcast",
       [](auto& w) { find<Where>(w).condition = w.graph.inputs[0].tensor; }},
      {"where", "all inputs are constants",
       [](auto& w) {
         Where& op = find<Where>(w);
         op.condition = op.a = op.b;
       }},
      {"lrn", "size 0, expected 1 .. 2^16", [](auto& w) { find<Lrn>(w).size = 0; }},
      {"lrn", "size 65537", [](auto& w) { find<Lrn>(w).size = 65537; }},
      {"lrn", "must be finite", [](auto& w) { find<Lrn>(w).beta = kNan; }},
      {"lrn", "its dims are [17], expected [18]", [](auto& w) { tensor(w, "normal").dims = {17}; }},
      {"matmul", "[6, 3] and [6, 3] are no matrices to multiply",
       [](auto& w) { find<MatMul>(w).a = find<MatMul>(w).b; }},
      {"matmul", "[18] and [6, 3] are no matrices to multiply",
       [](auto& w) { find<MatMul>(w).a = find<Lrn>(w).output; }},
      {"matmul", "[3, 6] and [18] are no matrices to multiply",
       [](auto& w) { find<MatMul>(w).b = find<Lrn>(w).output; }},
      {"matmul", "both inputs are constants",
       [](auto& w) {
         MatMul& op = find<MatMul>(w);
         op.a = op.b = find<Binary>(w).b;
       }},
      {"matmul", "its dims are [3, 4], expected [3, 3]",
       [](auto& w) { tensor(w, "product").dims = {3, 4}; }},
      {"select", "axis 1 of dims [18]", [](auto& w) { find<Select>(w).axis = 1; }},
      {"select", "it selects nothing", [](auto& w) { find<Select>(w).indices = {}; }},
      {"select", "index 18 of axis 0",
       [](auto& w) { find<Select>(w).indices = test::filled<std::int32_t>(w, 18, 18); }},
      {"select", "index -1 of axis 0",
       [](auto& w) { find<Select>(w).indices = test::filled<std::int32_t>(w, 18, -1); }},
      {"select", "its dims are [18], expected [17]",
       [](auto& w) { find<Select>(w).indices = test::filled<std::int32_t>(w, 17, 0); }},
      {"reduce", "it reduces no axis", [](auto& w) { find<Reduce>(w).axes.clear(); }},
      {"reduce", "axis 1 of dims [18]", [](auto& w) { find<Reduce>(w).axes = {1}; }},
      {"reduce", "axes [0, 0] do not ascend", [](auto& w) { find<Reduce>(w).axes = {0, 0}; }},
      {"reduce", "its dims are [18], expected [] or [1]",
       [](auto& w) { tensor(w, "total").dims = {18}; }},
      {"reduce", "its output must be f32", [](auto& w) { tensor(w, "total").dtype = DType::kI64; }},
      {"softmax", "axis 1 of dims [4]", [](auto& w) { find<Softmax>(w).axis = 1; }},
      {"arg_max", "its output must be i64", [](auto& w) { tensor(w, "best").dtype = DType::kF32; }},
      {"", "the model has no output", [](auto& w) { w.graph.outputs.clear(); }},
      {"", "the model has no input", [](auto& w) { w.graph.inputs.clear(); }},
      {"", "an output must be f32 or i64",
       [](auto& w) { w.graph.outputs = {find<Quantize>(w).output}; }},
      {"", "tensor id 999", [](auto& w) { w.graph.outputs = {999}; }},
      {"", "tensor 'constant': data of 32 bytes, expected 36",
       [](auto& w) { tensor(w, "constant").dims = {9}; }},
      {"", "tensor 'constant': data has a NaN at 0",
       [](auto& w) { tensor(w, "constant").data = test::filled<float>(w, 8, kNan).bytes; }},
      {"", "tensor 'spare': no op writes it",
       [](auto& w) { test::add_tensor(w.graph, "spare", DType::kF32, {1}); }},
      {"", "the name of tensor #1 is not UTF-8 at byte 1",
       [](auto& w) { w.graph.tensors[1].name = "a\xC0\xAF"; }},
      {"", "the name of tensor #1 is 4097 bytes long, limit 4096",
       [](auto& w) { w.graph.tensors[1].name.assign(4097, 'n'); }},
      {"", "the name of op #0 has the control character 10 at byte 1",
       [](auto& w) { w.graph.ops[0].name = "a\nb"; }},
      {"", "the metadata is not UTF-8", [](auto& w) { w.graph.metadata = "\xED\xA0\x80"; }},
      {"", "tensor #1 has no name", [](auto& w) { w.graph.tensors[1].name.clear(); }},
      {"", "take 17179869184 bytes, limit 2^33",
       [](auto& w) { test::add_tensor(w.graph, "long", DType::kI64, {std::int64_t{1} << 31}); }},
      // One channel in each word: 2^31 words of one plane are 2^33 bytes, of two 2^34.
      {"", "take 17179869184 bytes, limit 2^33",
       [](auto& w) {
         test::add_tensor(w.graph, "thin", DType::kBits, {std::int64_t{1} << 31, 1}, test::kTwoBit);
       }},
      {"", "rank 9 exceeds 8", [](auto& w) { tensor(w, "flat").dims.assign(9, 1); }},
      {"", "each must be 1 .. 2^31", [](auto& w) { tensor(w, "flat").dims = {0}; }},
      {"", "each must be 1 .. 2^31",
       [](auto& w) { tensor(w, "flat").dims = {std::numeric_limits<std::int64_t>::max()}; }},
      {"", "more than 2^31 elements", [](auto& w) { tensor(w, "flat").dims = {1 << 20, 1 << 20}; }},
      {"", "an encoding with step 0", [](auto& w) { tensor(w, "sign").encoding.step = 0; }},
      {"", "17 levels",
       [](auto& w) { tensor(w, "sign").encoding = {Encoding::Kind::kLinear, 0, 1, 17}; }},
      {"", "levels beyond +-2^15",
       [](auto& w) { tensor(w, "sign").encoding = {Encoding::Kind::kLinear, 0, 1 << 15, 3}; }},
      {"", "a preprocessing table of 767 values, expected 768",
       [](auto& w) { w.graph.inputs[0].preprocess.lut = test::filled<float>(w, 767, 0.0F); }},
      {"quantize", "it is read before it is written",
       [](auto& w) { std::swap(w.graph.ops[4], w.graph.ops[5]); }},
      {"quantize", "it is written twice", [](auto& w) { w.graph.ops.push_back(w.graph.ops[5]); }},
  };
  return all;
}

TEST(Validate, AcceptsTheSample) {
  ModelWriter w;
  test::build_every_op(w);
  EXPECT_NO_THROW(validate(w.graph));
}

TEST(Validate, NamesWhatIsWrong) {
  for (const Break& b : breaks()) {
    ModelWriter w;
    test::build_every_op(w);
    b.edit(w);
    try {
      validate(w.graph);
      ADD_FAILURE() << "accepted: " << b.op << ", " << b.message;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kInvalidModel) << b.message;
      EXPECT_EQ(e.op(), b.op) << e.what();
      EXPECT_NE(std::string(e.what()).find(b.message), std::string::npos)
          << e.what() << " does not say: " << b.message;
    }
  }
}

// A model with one integer layer of `features` inputs.
void check_layer(std::int64_t features, const Encoding& encoding) {
  ModelWriter w;
  Graph& g = w.graph;
  const TensorId x = test::add_tensor(g, "x", DType::kF32, {features});
  const TensorId b = test::add_tensor(g, "b", DType::kBits, {features}, encoding);
  const TensorId y = test::add_tensor(g, "y", DType::kF32, {1});
  g.inputs.push_back({x, {}});
  g.outputs = {y};
  g.ops.push_back(
      {"q", "", Quantize{x, b, test::filled<float>(w, encoding.n_levels - 1, 0.0F), {}}});
  BinaryConv conv;
  conv.input = b;
  conv.output = y;
  conv.weights = test::filled<std::uint32_t>(w, static_cast<std::size_t>((features + 31) / 32), 0);
  conv.scale = test::filled<float>(w, 1, 1.0F);
  conv.bias = test::filled<float>(w, 1, 0.0F);
  g.ops.push_back({"fc", "", conv});
  validate(g);
}

// The longest sum that fits, and one more is refused. The kernel adds twice the level and twice the
// planes of the code: 9 levels of step s are -4s .. 4s, and the four planes of their codes reach
// 15s.
TEST(Validate, BoundsAccumulators) {
  constexpr std::int64_t kLimit = (std::int64_t{1} << 30) - 1;
  const Encoding sixteen{Encoding::Kind::kLinear, 0, 1 << 11, 16},
      nine{Encoding::Kind::kLinear, -4 * 4096, 4096, 9};
  for (const auto& [encoding, reach] :
       {std::pair{sixteen, std::int64_t{30 << 11}}, {nine, std::int64_t{19 * 4096}}}) {
    EXPECT_NO_THROW(check_layer(kLimit / reach, encoding));
    EXPECT_THROW(check_layer(kLimit / reach + 1, encoding), Error);
  }
}

// Window, padding and output size of a pool, and whether every output sees the map.
TEST(Validate, PoolsSeeTheMap) {
  const auto accepted = [](const Window& window, std::int64_t in, std::int64_t out) {
    ModelWriter w;
    Graph& g = w.graph;
    const TensorId x = test::add_tensor(g, "x", DType::kF32, {in, 1, 1});
    const TensorId y = test::add_tensor(g, "y", DType::kF32, {out, 1, 1});
    g.inputs.push_back({x, {}});
    g.outputs = {y};
    g.ops.push_back({"pool", "", Pool{x, y, PoolKind::kMax, window, false}});
    try {
      validate(g);
      return true;
    } catch (const Error&) {
      return false;
    }
  };
  EXPECT_TRUE(accepted({{2, 1}, {2, 1}, {1, 1}, {0, 0, 0, 0}}, 5, 2));
  EXPECT_TRUE(accepted({{2, 1}, {2, 1}, {1, 1}, {0, 0, 0, 0}}, 5, 3));  // ceil mode
  EXPECT_FALSE(accepted({{2, 1}, {2, 1}, {1, 1}, {0, 0, 0, 0}}, 4, 3));
  EXPECT_TRUE(accepted({{2, 1}, {1, 1}, {1, 1}, {1, 0, 1, 0}}, 4, 5));
  EXPECT_FALSE(
      accepted({{1, 1}, {1, 1}, {1, 1}, {1, 0, 0, 0}}, 4, 5));  // the first sees padding only
  EXPECT_FALSE(accepted({{2, 1}, {2, 1}, {1, 1}, {0, 0, 2, 0}}, 4, 3));  // the last does
  EXPECT_FALSE(accepted({{2, 1}, {1, 1}, {3, 1}, {1, 0, 3, 0}}, 1,
                        2));  // one tap before the map, one behind it
  EXPECT_TRUE(accepted({{1, 1}, {1, 1}, {1, 1}, {0, 0, 0, 0}}, std::int64_t{1} << 31,
                       std::int64_t{1} << 31));
}

}  // namespace
}  // namespace tac
