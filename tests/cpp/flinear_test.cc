#include "kernels/flinear/flinear.h"

#include "backends_under_test.h"
#include "float_testing.h"

namespace tac::kernels {
namespace {

using test::Data;
using test::GuardedBuffer;

struct Case {
  std::size_t batch, inputs, outputs;
  std::size_t x_gap = 0, y_gap = 0, x_offset = 0, y_offset = 0;
  std::size_t block_begin = 0, block_end = SIZE_MAX;
};

void check(const KernelTable& table, const Case& c, Data data) {
  SCOPED_TRACE(testing::Message() << "batch " << c.batch << " inputs " << c.inputs << " outputs "
                                  << c.outputs << " x_gap " << c.x_gap << " y_gap " << c.y_gap
                                  << (data == Data::kWhole ? " whole" : " real"));
  test::Random random(static_cast<std::uint32_t>(c.inputs * 131 + c.outputs * 7 + c.batch));
  const std::vector<float> w = random.values(c.outputs * c.inputs, data);
  const std::vector<float> b = random.values(c.outputs, data);
  const std::vector<float> x = random.values(c.batch * c.inputs, data);
  const std::size_t n_blocks = (c.outputs + 15) / 16;
  GuardedBuffer<float> packed(n_blocks * c.inputs * 16);
  GuardedBuffer<float> bias(n_blocks * 16);
  std::fill_n(packed.data(), packed.size(), 0.0F);
  std::fill_n(bias.data(), bias.size(), 0.0F);
  for (std::size_t o = 0; o < c.outputs; ++o) {
    bias[o] = b[o];
    for (std::size_t k = 0; k < c.inputs; ++k)
      packed[(o / 16 * c.inputs + k) * 16 + o % 16] = w[o * c.inputs + k];
  }
  const std::size_t x_stride = c.inputs + c.x_gap;
  const std::size_t y_stride = c.outputs + c.y_gap;
  GuardedBuffer<float> xs(c.batch == 0 ? 0 : (c.batch - 1) * x_stride + c.inputs, c.x_offset);
  GuardedBuffer<float> ys(c.batch == 0 ? 0 : (c.batch - 1) * y_stride + c.outputs, c.y_offset);
  std::fill_n(xs.data(), xs.size(), NAN);
  std::fill_n(ys.data(), ys.size(), test::kUntouched);
  for (std::size_t n = 0; n < c.batch; ++n) {
    for (std::size_t k = 0; k < c.inputs; ++k) xs[n * x_stride + k] = x[n * c.inputs + k];
  }
  const std::size_t block_end = std::min(c.block_end, n_blocks);
  const LinearParams params{.in_features = c.inputs,
                            .out_features = c.outputs,
                            .weights = packed.data(),
                            .bias = bias.data()};
  table.linear_f32(params, xs.data(), c.batch, x_stride, c.block_begin, block_end, ys.data(),
                   y_stride);

  const std::vector<reference::Sum> expected =
      reference::linear(c.batch, c.inputs, c.outputs, w, b, x);
  for (std::size_t i = 0; i < ys.size(); ++i) {
    const std::size_t o = i % y_stride;
    if (o >= c.block_begin * 16 && o < std::min(c.outputs, block_end * 16)) {
      test::expect_sum(expected[i / y_stride * c.outputs + o], ys[i], c.inputs, data);
    } else {
      EXPECT_EQ(ys[i], test::kUntouched) << "written at output " << o;
    }
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_TRUE(ys.intact());
}

class LinearF32 : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->linear_f32 == nullptr) GTEST_SKIP() << "served by the next backend down";
  }
  void check_both(const Case& c) {
    check(*GetParam().table, c, Data::kWhole);
    check(*GetParam().table, c, Data::kReal);
  }
};

TEST_P(LinearF32, AgreesWithReferenceForEverySize) {
  for (const std::size_t batch : {0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 17}) {
    for (const std::size_t inputs : {1, 3, 7, 16, 17, 65}) {
      for (const std::size_t outputs : {1, 7, 15, 16, 17, 31, 33, 64, 65, 79, 129}) {
        check_both({.batch = batch, .inputs = inputs, .outputs = outputs});
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(LinearF32, KeepsItsSumsAcrossChunksOfInputs) {
  for (const std::size_t inputs : {255, 256, 257, 1023, 1024, 1025, 2049}) {
    for (const std::size_t batch : {1, 7, 19})
      check_both({.batch = batch, .inputs = inputs, .outputs = 83});
  }
}

TEST_P(LinearF32, ReadsAndWritesBetweenGapsOfMisalignedRows) {
  for (const std::size_t offset : {1, 3}) {
    for (const std::size_t batch : {1, 4, 5, 17}) {
      check_both({.batch = batch,
                  .inputs = 33,
                  .outputs = 41,
                  .x_gap = 5,
                  .y_gap = 3,
                  .x_offset = offset,
                  .y_offset = offset});
    }
  }
}

TEST_P(LinearF32, WritesOnlyTheBlocksAskedFor) {
  for (std::size_t begin = 0; begin <= 6; ++begin) {
    for (std::size_t end = begin; end <= 6; ++end) {
      for (const std::size_t batch : {1, 8}) {
        check_both(
            {.batch = batch, .inputs = 20, .outputs = 90, .block_begin = begin, .block_end = end});
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, LinearF32, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

}  // namespace
}  // namespace tac::kernels
