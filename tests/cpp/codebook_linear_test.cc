#include "kernels/codebook_linear/codebook_linear.h"

#include <cmath>
#include <vector>

#include "backends_under_test.h"
#include "float_testing.h"

namespace tac::kernels {
namespace {

using test::Data;
using test::GuardedBuffer;

struct Case {
  std::size_t batch, inputs, outputs;
  bool masked = false;
  std::size_t gap = 0, offset = 0;
  std::size_t block_begin = 0, block_end = SIZE_MAX;
  std::size_t zeros_in_8 = 3;  // inputs of 0, of 8
};

std::size_t nibbles_of(std::size_t outputs) {
  return outputs > 64 ? 8 : outputs > 32 ? 4 : outputs > 16 ? 2 : 1;
}

// Weights, codes and mask of one layer. Codes that no output has point at the last table entry,
// which no weight has.
struct Layer {
  Layer(const Case& c, Data data, test::Random& random)
      : n_blocks((c.outputs + 127) / 128),
        last_nibbles(nibbles_of(c.outputs - (n_blocks - 1) * 128)),
        codes(code_bytes(c)),
        mask(c.masked ? n_blocks * c.inputs * 16 : 0),
        padded(codes.size() + kCodebookOverRead),
        table(16),
        bias((c.outputs + 15) / 16 * 16),
        weights(c.outputs * c.inputs) {
    for (std::size_t i = 0; i < 15; ++i) table[i] = random.value(data);
    table[15] = 1e30F;
    std::fill_n(codes.data(), codes.size(), std::uint8_t{0xFF});
    std::fill_n(mask.data(), mask.size(), std::uint8_t{0xFF});
    for (std::size_t o = 0; o < bias.size(); ++o) bias[o] = random.value(data);
    for (std::size_t o = 0; o < c.outputs; ++o) {
      const std::size_t block = o / 128;
      const std::size_t nibbles = block + 1 == n_blocks ? last_nibbles : 8;
      for (std::size_t k = 0; k < c.inputs; ++k) {
        // Masked positions may hold any code, that of 1e30 too.
        const bool zero = c.masked && random.below(3) == 0;
        const std::size_t code = random.below(zero ? 16 : 15);
        weights[o * c.inputs + k] = zero ? 0.0F : table[code];
        const std::size_t inputs_in_dword = 8 / nibbles;
        const std::size_t nibble = k % inputs_in_dword * nibbles + o % 128 / 16;
        std::uint8_t& byte =
            codes[block * c.inputs * 64 + k / inputs_in_dword * 64 + o % 16 * 4 + nibble / 2];
        const std::size_t shift = nibble % 2 * 4;
        byte = static_cast<std::uint8_t>((byte & ~(0xFU << shift)) | code << shift);
        if (zero) {
          std::uint8_t& bits = mask[(block * c.inputs + k) * 16 + o % 128 / 8];
          bits = static_cast<std::uint8_t>(bits & ~(1U << (o % 8)));
        }
      }
    }
  }
  std::size_t code_bytes(const Case& c) const {
    const std::size_t per_dword = 8 / last_nibbles;
    return (n_blocks - 1) * c.inputs * 64 + (c.inputs + per_dword - 1) / per_dword * 64;
  }
  // The codes in a buffer that ends with what may be read behind them.
  CodebookLinearParams params(const Case& c) {
    std::copy(codes.begin(), codes.end(), padded.data());
    return {.in_features = c.inputs,
            .out_features = c.outputs,
            .codes = padded.data(),
            .mask = c.masked ? mask.data() : nullptr,
            .table = table.data(),
            .bias = bias.data(),
            .skip_zeros = true};
  }

  std::size_t n_blocks, last_nibbles;
  std::vector<std::uint8_t> codes;
  GuardedBuffer<std::uint8_t> mask;
  GuardedBuffer<std::uint8_t> padded;
  GuardedBuffer<float> table, bias;
  std::vector<float> weights;
};

void check(const KernelTable& kernels, const Case& c, Data data) {
  SCOPED_TRACE(testing::Message() << "batch " << c.batch << " inputs " << c.inputs << " outputs "
                                  << c.outputs << (c.masked ? " masked" : "")
                                  << (data == Data::kWhole ? " whole" : " real"));
  test::Random random(static_cast<std::uint32_t>(c.inputs * 131 + c.outputs * 7 + c.batch));
  Layer layer(c, data, random);
  std::vector<float> x = random.values(c.batch * c.inputs, data);
  for (float& v : x) {
    if (random.below(8) < c.zeros_in_8) v = 0.0F;
  }
  const std::size_t x_stride = c.inputs + c.gap;
  const std::size_t y_stride = c.outputs + c.gap;
  GuardedBuffer<float> xs(c.batch == 0 ? 0 : (c.batch - 1) * x_stride + c.inputs, c.offset);
  GuardedBuffer<float> ys(c.batch == 0 ? 0 : (c.batch - 1) * y_stride + c.outputs, c.offset);
  std::fill_n(xs.data(), xs.size(), NAN);
  std::fill_n(ys.data(), ys.size(), test::kUntouched);
  for (std::size_t n = 0; n < c.batch; ++n) {
    for (std::size_t k = 0; k < c.inputs; ++k) xs[n * x_stride + k] = x[n * c.inputs + k];
  }
  const std::size_t block_end = std::min(c.block_end, layer.n_blocks);
  const std::size_t row_begin = c.block_begin * kCodebookBlock;
  const std::size_t row_end = std::min(block_end * kCodebookBlock, c.outputs);
  const CodebookLinearParams params = layer.params(c);
  kernels.codebook_linear_f32(params, xs.data(), c.batch, x_stride, c.block_begin, block_end,
                              ys.data(), y_stride);

  const std::vector<float> bias(layer.bias.data(), layer.bias.data() + c.outputs);
  const std::vector<reference::Sum> expected =
      reference::linear(c.batch, c.inputs, c.outputs, layer.weights, bias, x);
  for (std::size_t i = 0; i < ys.size(); ++i) {
    const std::size_t o = i % y_stride;
    if (o >= row_begin && o < row_end) {
      test::expect_sum(expected[i / y_stride * c.outputs + o], ys[i], c.inputs, data);
    } else {
      EXPECT_EQ(ys[i], test::kUntouched) << "written at output " << o;
    }
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_TRUE(ys.intact());
  // The same bits for each sample alone.
  for (std::size_t n = 0; n < c.batch; ++n) {
    std::vector<float> alone(c.outputs);
    kernels.codebook_linear_f32(params, xs.data() + n * x_stride, 1, x_stride, c.block_begin,
                                block_end, alone.data(), c.outputs);
    for (std::size_t o = row_begin; o < row_end; ++o)
      ASSERT_TRUE(test::same_bits(alone[o], ys[n * y_stride + o])) << "sample " << n;
  }
}

class CodebookLinearF32 : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->codebook_linear_f32 == nullptr)
      GTEST_SKIP() << "served by the next backend down";
  }
  void check_all(Case c) {
    for (const bool masked : {false, true}) {
      c.masked = masked;
      check(*GetParam().table, c, Data::kWhole);
      check(*GetParam().table, c, Data::kReal);
    }
  }
};

TEST_P(CodebookLinearF32, AgreesWithReferenceForEverySize) {
  for (const std::size_t inputs : {1, 2, 3, 8, 9, 15, 16, 17, 33, 129}) {
    for (const std::size_t batch : {0, 1, 2, 3, 4, 5, 6, 13}) {
      for (const std::size_t outputs : {1, 8, 9, 16, 17, 33, 65, 128, 150}) {
        check_all({.batch = batch, .inputs = inputs, .outputs = outputs});
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(CodebookLinearF32, ReadsAndWritesBetweenGapsOfMisalignedRows) {
  for (const std::size_t offset : {1, 3}) {
    for (const std::size_t batch : {1, 4, 7}) {
      check_all({.batch = batch, .inputs = 145, .outputs = 6, .gap = 3, .offset = offset});
      check_all({.batch = batch, .inputs = 45, .outputs = 134, .gap = 3, .offset = offset});
    }
  }
}

TEST_P(CodebookLinearF32, WritesOnlyTheBlocksAskedFor) {
  for (std::size_t begin = 0; begin <= 3; ++begin) {
    for (std::size_t end = begin; end <= 3; ++end) {
      for (const std::size_t batch : {1, 5}) {
        check_all(
            {.batch = batch, .inputs = 30, .outputs = 300, .block_begin = begin, .block_end = end});
      }
    }
  }
}

TEST_P(CodebookLinearF32, AgreesWithReferenceOverMoreInputsThanAChunk) {
  for (const std::size_t batch : {1, 5}) {
    for (const std::size_t zeros : {0, 4, 8}) {
      for (const std::size_t outputs : {140, 150, 170})
        check_all({.batch = batch, .inputs = 4500, .outputs = outputs, .zeros_in_8 = zeros});
    }
  }
}

// x of a single 1: reads back the table exactly, for every code, output and input.
TEST_P(CodebookLinearF32, DecodesEveryCodeAtEveryPosition) {
  test::Random random(1);
  for (const std::size_t outputs : {16, 32, 64, 128}) {
    const Case c{.batch = 1, .inputs = 20, .outputs = outputs};
    Layer layer(c, Data::kReal, random);
    const CodebookLinearParams params = layer.params(c);
    std::fill_n(layer.bias.data(), layer.bias.size(), 0.0F);
    std::vector<float> x(20), y(outputs);
    for (std::size_t k = 0; k < 20; ++k) {
      std::fill(x.begin(), x.end(), 0.0F);
      x[k] = 1.0F;
      GetParam().table->codebook_linear_f32(params, x.data(), 1, 20, 0, 1, y.data(), outputs);
      for (std::size_t o = 0; o < outputs; ++o)
        ASSERT_EQ(y[o], layer.weights[o * 20 + k]) << "output " << o << " input " << k;
    }
  }
}

TEST_P(CodebookLinearF32, NanAndInfinityReachTheOutputs) {
  test::Random random(1);
  const Case c{.batch = 1, .inputs = 40, .outputs = 20};
  Layer layer(c, Data::kReal, random);
  for (float& v : layer.table.span()) v = std::fabs(v) + 1.0F;
  CodebookLinearParams params = layer.params(c);
  for (const float special : {NAN, INFINITY, -INFINITY}) {
    for (const std::size_t batch : {1, 3}) {
      std::vector<float> x(batch * 40, 0.0F), y(batch * 20);
      x[17] = special;
      GetParam().table->codebook_linear_f32(params, x.data(), batch, 40, 0, 1, y.data(), 20);
      for (std::size_t o = 0; o < 20; ++o) {
        ASSERT_TRUE(test::same_bits(y[o], special)) << y[o];
        if (batch > 1) {
          ASSERT_EQ(y[20 + o], layer.bias[o]);
        }
      }
    }
  }
  // An infinite weight times 0 is NaN, unless zeros may be skipped.
  layer.table[0] = INFINITY;
  std::fill_n(layer.codes.begin(), layer.codes.size(), std::uint8_t{0});
  params = layer.params(c);
  params.skip_zeros = false;
  const std::vector<float> x(40, 0.0F);
  std::vector<float> y(20);
  GetParam().table->codebook_linear_f32(params, x.data(), 1, 40, 0, 1, y.data(), 20);
  for (const float v : y) ASSERT_TRUE(std::isnan(v));
}

// The nibbles behind the last input of a small block, and those of outputs that do not exist.
TEST_P(CodebookLinearF32, CodesOfNoWeightAreNotSummed) {
  test::Random random(1);
  for (const std::size_t outputs : {5, 16, 20, 32, 50, 64, 100, 150}) {
    for (const std::size_t batch : {1, 2, 3}) {
      for (const std::size_t inputs : {1, 5, 7, 518}) {
        const Case c{.batch = batch, .inputs = inputs, .outputs = outputs};
        Layer layer(c, Data::kReal, random);
        CodebookLinearParams params = layer.params(c);
        params.skip_zeros = false;
        const std::vector<float> x = random.values(batch * inputs, Data::kReal);
        std::vector<float> expected(batch * outputs), y(batch * outputs);
        const auto run = [&](float unused, std::vector<float>& to) {
          layer.table[15] = unused;
          GetParam().table->codebook_linear_f32(params, x.data(), batch, inputs, 0, layer.n_blocks,
                                                to.data(), outputs);
        };
        run(0.0F, expected);
        run(INFINITY, y);
        for (std::size_t i = 0; i < y.size(); ++i)
          ASSERT_TRUE(test::same_bits(y[i], expected[i])) << "output " << i % outputs;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CodebookLinearF32, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

}  // namespace
}  // namespace tac::kernels
