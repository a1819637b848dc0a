#include "kernels/codebook_linear/codebook_linear.h"

#include <numeric>

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
  std::size_t row_begin = 0, row_end = SIZE_MAX;
};

// Weights, codes and mask of one layer. Padding codes point at the last table entry, which is
// infinite and used by no weight.
struct Layer {
  Layer(const Case& c, Data data, test::Random& random)
      : k_padded((c.inputs + kCodebookKAlign - 1) / kCodebookKAlign * kCodebookKAlign),
        codes(c.outputs * k_padded / 8),
        mask(c.masked ? c.outputs * k_padded / 32 : 0),
        table(16),
        bias(c.outputs),
        weights(c.outputs * c.inputs) {
    for (std::size_t i = 0; i < 15; ++i) table[i] = random.value(data);
    table[15] = INFINITY;
    std::fill_n(codes.data(), codes.size(), 0xFFFFFFFFU);
    std::fill_n(mask.data(), mask.size(), 0xFFFFFFFFU);
    for (std::size_t o = 0; o < c.outputs; ++o) {
      bias[o] = random.value(data);
      for (std::size_t k = 0; k < c.inputs; ++k) {
        // Masked positions may hold any code, that of infinity too.
        const bool zero = c.masked && random.below(3) == 0;
        const std::uint32_t code = static_cast<std::uint32_t>(random.below(zero ? 16 : 15));
        weights[o * c.inputs + k] = zero ? 0.0F : table[code];
        const std::size_t run = k / 128;
        const std::size_t nibble = k % 128 / 16;
        std::uint32_t& dword = codes[(o * k_padded / 128 + run) * 16 + k % 16];
        dword = (dword & ~(0xFU << (4 * nibble))) | code << (4 * nibble);
        if (zero) mask[(o * k_padded + k) / 32] &= ~(1U << (k % 32));
      }
    }
  }
  CodebookLinearParams params(const Case& c) {
    return {.in_features = c.inputs,
            .k_padded = k_padded,
            .codes = reinterpret_cast<const std::uint8_t*>(codes.data()),
            .mask = c.masked ? mask.data() : nullptr,
            .table = table.data(),
            .bias = bias.data()};
  }

  std::size_t k_padded;
  GuardedBuffer<std::uint32_t> codes, mask;
  GuardedBuffer<float> table, bias;
  std::vector<float> weights;
};

void check(const KernelTable& kernels, const Case& c, Data data) {
  SCOPED_TRACE(testing::Message() << "batch " << c.batch << " inputs " << c.inputs << " outputs "
                                  << c.outputs << (c.masked ? " masked" : "")
                                  << (data == Data::kWhole ? " whole" : " real"));
  test::Random random(static_cast<std::uint32_t>(c.inputs * 131 + c.outputs * 7 + c.batch));
  Layer layer(c, data, random);
  const std::vector<float> x = random.values(c.batch * c.inputs, data);
  const std::size_t x_stride = c.inputs + c.gap;
  const std::size_t y_stride = c.outputs + c.gap;
  GuardedBuffer<float> xs(c.batch == 0 ? 0 : (c.batch - 1) * x_stride + c.inputs, c.offset);
  GuardedBuffer<float> ys(c.batch == 0 ? 0 : (c.batch - 1) * y_stride + c.outputs, c.offset);
  std::fill_n(xs.data(), xs.size(), NAN);
  std::fill_n(ys.data(), ys.size(), test::kUntouched);
  for (std::size_t n = 0; n < c.batch; ++n) {
    for (std::size_t k = 0; k < c.inputs; ++k) xs[n * x_stride + k] = x[n * c.inputs + k];
  }
  const std::size_t row_end = std::min(c.row_end, c.outputs);
  kernels.codebook_linear_f32(layer.params(c), xs.data(), c.batch, x_stride, c.row_begin, row_end,
                              ys.data(), y_stride);

  const std::vector<float> bias(layer.bias.data(), layer.bias.data() + c.outputs);
  const std::vector<reference::Sum> expected =
      reference::linear(c.batch, c.inputs, c.outputs, layer.weights, bias, x);
  for (std::size_t i = 0; i < ys.size(); ++i) {
    const std::size_t o = i % y_stride;
    if (o >= c.row_begin && o < row_end) {
      test::expect_sum(expected[i / y_stride * c.outputs + o], ys[i], c.inputs, data);
    } else {
      EXPECT_EQ(ys[i], test::kUntouched) << "written at output " << o;
    }
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_TRUE(ys.intact());
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
  for (const std::size_t inputs :
       {1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 127, 128, 129, 255, 256, 257, 1000}) {
    for (const std::size_t batch : {0, 1, 2, 3, 4, 5, 8, 17}) {
      for (const std::size_t outputs : {1, 4, 7}) {
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
    }
  }
}

TEST_P(CodebookLinearF32, WritesOnlyTheRowsAskedFor) {
  for (std::size_t begin = 0; begin <= 10; ++begin) {
    for (std::size_t end = begin; end <= 10; ++end) {
      for (const std::size_t batch : {1, 5}) {
        check_all(
            {.batch = batch, .inputs = 130, .outputs = 10, .row_begin = begin, .row_end = end});
      }
    }
  }
}

TEST_P(CodebookLinearF32, AgreesWithReferenceOverMoreRowsThanAChunk) {
  for (const std::size_t batch : {1, 5}) {
    check_all({.batch = batch, .inputs = 4000, .outputs = 150});
    check_all({.batch = batch, .inputs = 4000, .outputs = 150, .row_begin = 3, .row_end = 149});
  }
}

// Every code at every position of a run, with x of a single 1: reads back the table exactly.
TEST_P(CodebookLinearF32, DecodesEveryCodeAtEveryPosition) {
  GuardedBuffer<float> table(16);
  std::iota(table.data(), table.data() + 16, 1.0F);
  GuardedBuffer<std::uint8_t> codes(16 * 64);
  GuardedBuffer<float> bias(16), x(128), y(16);
  std::fill_n(bias.data(), 16, 0.0F);
  for (std::size_t row = 0; row < 16; ++row)
    std::fill_n(codes.data() + row * 64, 64, static_cast<std::uint8_t>(row * 0x11));
  const CodebookLinearParams params{.in_features = 128,
                                    .k_padded = 128,
                                    .codes = codes.data(),
                                    .mask = nullptr,
                                    .table = table.data(),
                                    .bias = bias.data()};
  for (std::size_t k = 0; k < 128; ++k) {
    std::fill_n(x.data(), 128, 0.0F);
    x[k] = 1.0F;
    GetParam().table->codebook_linear_f32(params, x.data(), 1, 128, 0, 16, y.data(), 16);
    for (std::size_t row = 0; row < 16; ++row) ASSERT_EQ(y[row], table[row]) << "position " << k;
  }
}

INSTANTIATE_TEST_SUITE_P(All, CodebookLinearF32, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

}  // namespace
}  // namespace tac::kernels
