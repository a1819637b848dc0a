// Small graphs for tests of the format and of validation.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "format/writer.h"

namespace tac::test {

inline TensorId add_tensor(Graph& graph, std::string name, DType dtype,
                           std::vector<std::int64_t> dims, Encoding encoding = {}) {
  Tensor t;
  t.name = std::move(name);
  t.dtype = dtype;
  t.dims = std::move(dims);
  t.encoding = encoding;
  graph.tensors.push_back(std::move(t));
  return static_cast<TensorId>(graph.tensors.size() - 1);
}

inline constexpr Encoding kBinary{Encoding::Kind::kLinear, 1, -2, 2};
inline constexpr Encoding kTwoBit{Encoding::Kind::kLinear, 0, 1, 4};
inline constexpr Encoding kSignZero{Encoding::Kind::kSignZero, -1, 1, 3};

template <class T>
BlobOf<T> filled(ModelWriter& w, std::size_t count, T value) {
  return w.own_array<T>(std::vector<T>(count, value));
}

inline TensorId constant_one(ModelWriter& w) {
  Tensor one;
  one.name = "one";
  one.is_constant = true;
  one.data = filled<float>(w, 1, 1.0F).bytes;
  w.graph.tensors.push_back(one);
  return static_cast<TensorId>(w.graph.tensors.size() - 1);
}

// A model that uses every op once, on an image [3, 4, 4].
inline void build_every_op(ModelWriter& w) {
  Graph& g = w.graph;
  const auto f32 = [&](const char* name, std::vector<std::int64_t> dims) {
    return add_tensor(g, name, DType::kF32, std::move(dims));
  };
  const auto bits = [&](const char* name, std::vector<std::int64_t> dims, Encoding e) {
    return add_tensor(g, name, DType::kBits, std::move(dims), e);
  };
  const auto op = [&](const char* name, OpVariant variant) {
    g.ops.push_back({name, "test", std::move(variant)});
  };

  const TensorId x = f32("x", {3, 4, 4});
  g.inputs.push_back({x, {filled<float>(w, 3 * 256, 0.5F), true}});
  const TensorId nhwc = f32("nhwc", {4, 4, 3});
  op("transpose", Transpose{x, nhwc, {1, 2, 0}});
  const TensorId conv = f32("conv", {4, 4, 5});
  op("conv", Conv{nhwc,
                  conv,
                  {{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}},
                  1,
                  filled<float>(w, 5 * 27, 0.25F),
                  filled<float>(w, 5, 1.0F)});
  const TensorId sparse = f32("sparse", {4, 4, 5});
  CodedWeights few;  // 2 of 5 in each row
  few.values = w.own_array<float>(std::vector<float>{1.0F, -1.0F, 2.0F});
  few.code_bits = 2;
  few.bitmap = filled<std::uint32_t>(w, 5, 9U);
  few.codes = w.own_array<std::uint8_t>(std::vector<std::uint8_t>{0x24, 0x12, 0x09});
  const TensorId whole = f32("whole", {4, 4, 5});
  op("integer_conv", IntegerConv{conv,
                                 whole,
                                 {},
                                 1,
                                 few,
                                 filled<float>(w, 5, 0.5F),
                                 filled<float>(w, 5, 0.25F),
                                 2,
                                 1,
                                 4095,
                                 0.0F});
  op("coded_conv", CodedConv{whole, sparse, {}, 1, few, filled<float>(w, 5, 0.0F)});
  const TensorId affine = f32("affine", {4, 4, 5});
  op("affine", Affine{sparse, affine, filled<float>(w, 5, 2.0F), filled<float>(w, 1, -1.0F)});
  const TensorId sign = bits("sign", {4, 4, 5}, kBinary);
  op("quantize", Quantize{affine, sign, filled<float>(w, 1, 0.0F), {}});
  const TensorId bconv = bits("bconv", {4, 4, 33}, kTwoBit);
  std::vector<std::int32_t> steps;
  for (int c = 0; c < 33; ++c) steps.insert(steps.end(), {-5, 0, 7});
  BinaryConv binary;
  binary.input = sign;
  binary.output = bconv;
  binary.window = {{3, 3}, {1, 1}, {1, 1}, {1, 1, 1, 1}};
  binary.weights = filled<std::uint32_t>(w, 33 * 2, 0x1FFFU);
  binary.thresholds = w.own_array<std::int32_t>(steps);
  binary.descending = filled<std::uint8_t>(w, 33, 1);
  op("binary_conv", binary);
  const TensorId pooled = bits("pooled", {2, 2, 33}, kTwoBit);
  op("bit_pool",
     BitPool{
         bconv, pooled, {{2, 2}, {2, 2}, {1, 1}, {0, 0, 0, 0}}, filled<std::uint8_t>(w, 33, 0)});
  const TensorId values = f32("values", {2, 2, 33});
  op("dequantize",
     Dequantize{pooled, values, w.own_array<float>(std::vector<float>{0.0F, 0.5F, 1.0F, 1.5F})});
  const TensorId pool = f32("pool", {1, 1, 33});
  op("pool", Pool{values, pool, PoolKind::kAverage, {{2, 2}, {2, 2}, {1, 1}, {0, 0, 0, 0}}, true});
  const TensorId flat = f32("flat", {33});
  op("reshape", Reshape{pool, flat});
  const TensorId hidden = f32("hidden", {8});
  CodebookLinear book;
  book.input = flat;
  book.output = hidden;
  book.codebook = w.own_array<float>(std::vector<float>{-1.0F, 0.5F, 2.0F});
  book.code_bits = 2;
  book.bitmap =
      w.own_array<std::uint32_t>(std::vector<std::uint32_t>(16, 1U));  // 16 coded positions
  book.codes = w.own_array<std::uint8_t>(std::vector<std::uint8_t>{0x24, 0x24, 0x24, 0x24});
  book.bias = filled<float>(w, 8, 0.1F);
  op("codebook_linear", book);
  const TensorId relu = f32("relu", {8});
  op("unary", Unary{hidden, relu, UnaryKind::kClip, 0.0F, 6.0F});
  Tensor constant;
  constant.name = "constant";
  constant.dims = {8};
  constant.is_constant = true;
  constant.data = filled<float>(w, 8, 3.0F).bytes;
  g.tensors.push_back(constant);
  const auto constant_id = static_cast<TensorId>(g.tensors.size() - 1);
  const TensorId sum = f32("sum", {8});
  op("binary", Binary{relu, constant_id, sum, BinaryKind::kAdd});
  const TensorId joined = f32("joined", {16});
  op("concat", Concat{{{sum, relu}}, joined, 0});
  const TensorId padded = f32("padded", {18});
  op("pad", Pad{joined, padded, {1}, {1}, -1.0F});
  const TensorId rotated = f32("rotated", {18});
  std::vector<std::int32_t> order;
  for (std::int32_t i = 0; i < 18; ++i) order.push_back((i * 5 + 1) % 18);
  op("select", Select{padded, rotated, 0, w.own_array<std::int32_t>(order)});
  const TensorId mixed = f32("mixed", {18});
  CodedWeights coded;
  coded.values = filled<float>(w, 18 * 5, 0.5F);
  coded.code_bits = 3;
  coded.per_output = true;
  coded.codes = filled<std::uint8_t>(w, 122, 0);  // 324 codes
  op("coded_linear", CodedLinear{rotated, mixed, coded, filled<float>(w, 18, 1.0F)});
  const TensorId total = f32("total", {1});
  op("reduce", Reduce{mixed, total, ReduceKind::kL1, {0}});
  const TensorId scaled = f32("scaled", {18});
  op("rescale", Binary{rotated, total, scaled, BinaryKind::kMul});
  const TensorId chosen = f32("chosen", {18});
  op("where", Where{mixed, scaled, constant_one(w), chosen});
  const TensorId normal = f32("normal", {18});
  op("lrn", Lrn{chosen, normal, 3, 0.5F, 0.75F, 1.0F});
  const TensorId wide = f32("wide", {3, 6}), tall = f32("tall", {6, 3});
  op("wide", Reshape{normal, wide});
  op("tall", Reshape{normal, tall});
  const TensorId product = f32("product", {3, 3});
  op("matmul", MatMul{wide, tall, product});
  const TensorId products = f32("products", {9});
  op("products", Reshape{product, products});
  const TensorId logits = f32("logits", {4});
  op("linear", Linear{products, logits, filled<float>(w, 36, 0.5F), filled<float>(w, 4, 0.0F)});
  const TensorId probabilities = f32("probabilities", {4});
  op("softmax", Softmax{logits, probabilities, 0, false});
  const TensorId best = add_tensor(g, "best", DType::kI64, {});
  op("arg_max", ArgMax{probabilities, best, 0, true});
  g.outputs = {probabilities, best};
  g.metadata = R"({"producer":"test"})";
}

}  // namespace tac::test
