#include "kernels/codebook_sparse/codebook_sparse.h"

#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "backends_under_test.h"
#include "base/aligned_buffer.h"
#include "float_testing.h"
#include "kernels/codebook_i16/codebook_i16.h"
#include "reference/codebook_reference.h"

namespace tac::kernels {
namespace {

using test::Data;
using test::GuardedBuffer;

struct Case {
  std::size_t batch, inputs, outputs;
  std::size_t zeros_in_16 = 12;  // weights of 0, of 16
  std::size_t gap = 0, offset = 0;
  std::size_t tile_begin = 0, tile_end = SIZE_MAX;
  int max_level = 16383;
  bool extreme = false;  // all levels and inputs at their limits
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << "batch " << c.batch << " inputs " << c.inputs << " outputs " << c.outputs
             << " zeros " << c.zeros_in_16 << " of 16, tiles " << c.tile_begin << " on, levels to "
             << c.max_level;
}

constexpr int kZero = -1;

// Lists of random weights, written as the contract says, in buffers that end where they end.
struct Lists {
  Lists(const Case& c, test::Random& random)
      : n_tiles((c.outputs + kSparseTile - 1) / kSparseTile),
        codes(c.outputs * c.inputs),
        bias(c.outputs) {
    for (int& code : codes)
      code = random.below(16) < c.zeros_in_16 ? kZero : static_cast<int>(random.below(16));
    std::vector<std::uint16_t> place_list;
    std::vector<std::uint8_t> code_list;
    for (std::size_t first = 0; first < c.inputs; first += kSparseChunk) {
      for (std::size_t tile = 0; tile < n_tiles; ++tile) {
        begins.push_back(static_cast<std::uint32_t>(code_list.size() / (kSparseTile * 2)));
        std::vector<std::vector<std::size_t>> rows(kSparseTile);
        std::size_t longest = 0;
        for (std::size_t r = 0; r < kSparseTile; ++r) {
          const std::size_t o = tile * kSparseTile + r;
          for (std::size_t k = first; k < std::min(first + kSparseChunk, c.inputs); ++k)
            if (o < c.outputs && codes[o * c.inputs + k] != kZero) rows[r].push_back(k);
          const std::size_t groups = (rows[r].size() + kSparseGroup - 1) / kSparseGroup;
          counts.push_back(static_cast<std::uint8_t>(groups));
          longest = std::max(longest, groups);
        }
        for (std::size_t g = 0; g < longest; ++g) {
          for (std::size_t r = 0; r < kSparseTile; ++r) {
            const auto code = [&](std::size_t e) {
              const std::size_t i = g * kSparseGroup + e, o = tile * kSparseTile + r;
              return i < rows[r].size() ? codes[o * c.inputs + rows[r][i]] : 0;
            };
            for (std::size_t e = 0; e < kSparseGroup; ++e) {
              const std::size_t i = g * kSparseGroup + e;
              place_list.push_back(static_cast<std::uint16_t>(
                  i < rows[r].size() ? (rows[r][i] - first) * kSparseStep : kSparseFill));
            }
            code_list.push_back(static_cast<std::uint8_t>(code(0) | code(1) << 4));
            code_list.push_back(static_cast<std::uint8_t>(code(2) | code(3) << 4));
          }
        }
      }
    }
    places = std::make_unique<GuardedBuffer<std::uint16_t>>(place_list.size());
    test::fill(*places, place_list);
    packed = std::make_unique<GuardedBuffer<std::uint8_t>>(code_list.size());
    test::fill(*packed, code_list);
    for (std::size_t o = 0; o < c.outputs; ++o) bias[o] = random.value(Data::kWhole);
  }
  CodebookSparseParams params(const Case& c) {
    return {.in_features = c.inputs,
            .out_features = c.outputs,
            .places = places->data(),
            .codes = packed->data(),
            .begins = begins.data(),
            .counts = counts.data(),
            .bias = bias.data()};
  }

  std::size_t n_tiles;
  std::vector<int> codes;  // [outputs][inputs]
  std::unique_ptr<GuardedBuffer<std::uint16_t>> places;
  std::unique_ptr<GuardedBuffer<std::uint8_t>> packed;
  std::vector<std::uint32_t> begins;
  std::vector<std::uint8_t> counts;
  GuardedBuffer<float> bias;
};

// Runs `call(tile_begin, tile_end, scratch, y, y_stride)`; `expect(sample, output, y)` looks at the
// outputs asked for, the others are untouched.
template <class Call, class Expect>
void run_and_check(const Case& c, const Lists& lists, const Call& call, const Expect& expect) {
  const std::size_t tile_end = std::min(c.tile_end, lists.n_tiles);
  const std::size_t stride = c.outputs + c.gap;
  GuardedBuffer<float> y(c.batch == 0 ? 0 : (c.batch - 1) * stride + c.outputs, c.offset);
  std::fill_n(y.data(), y.size(), test::kUntouched);
  // Whatever is in it.
  const std::size_t bytes = sparse_scratch_bytes(tile_end - c.tile_begin);
  ASSERT_EQ(bytes % 64, 0U);
  GuardedBuffer<std::byte> scratch(bytes);
  std::fill_n(scratch.data(), bytes, std::byte{0x7F});
  call(c.tile_begin, tile_end, scratch.data(), y.data(), stride);
  for (std::size_t i = 0; i < y.size(); ++i) {
    const std::size_t o = i % stride;
    if (o < tile_end * kSparseTile && o >= c.tile_begin * kSparseTile && o < c.outputs) {
      expect(i / stride, o, y[i]);
    } else {
      EXPECT_EQ(y[i], test::kUntouched) << "written at output " << o;
    }
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_TRUE(y.intact());
  EXPECT_TRUE(scratch.intact());
}

// The cases of both kernels.
std::vector<Case> cases_of_every_size() {
  std::vector<Case> cases;
  for (const std::size_t inputs : {1, 3, 7, 8, 9, 100, 255, 256, 257, 600}) {
    for (const std::size_t batch : {0, 1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 32}) {
      for (const std::size_t outputs : {1, 3, 4, 5, 18})
        cases.push_back({.batch = batch, .inputs = inputs, .outputs = outputs});
    }
  }
  return cases;
}

std::vector<Case> cases_of_every_range() {
  std::vector<Case> cases;
  for (std::size_t begin = 0; begin <= 3; ++begin) {
    for (std::size_t end = begin; end <= 3; ++end) {
      for (const std::size_t batch : {5, 20}) {
        cases.push_back({.batch = batch,
                         .inputs = 300,
                         .outputs = 10,
                         .gap = 3,
                         .offset = 1,
                         .tile_begin = begin,
                         .tile_end = end});
      }
    }
  }
  return cases;
}

class CodebookSparseF32 : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->codebook_sparse_f32 == nullptr)
      GTEST_SKIP() << "served by the next backend down";
  }
  void check(const Case& c, Data data) {
    SCOPED_TRACE(testing::Message() << c << (data == Data::kWhole ? " whole" : " real"));
    test::Random random(static_cast<std::uint32_t>(c.inputs * 131 + c.outputs * 7 + c.batch));
    Lists lists(c, random);
    AlignedBuffer<float> table(16);
    for (std::size_t i = 0; i < 16; ++i) table[i] = random.value(data);
    std::vector<float> weights;
    for (const int code : lists.codes)
      weights.push_back(code == kZero ? 0.0F : table[static_cast<std::size_t>(code)]);
    const std::vector<float> x = random.values(c.batch * c.inputs, data);
    const std::size_t x_stride = c.inputs + c.gap;
    GuardedBuffer<float> xs(c.batch == 0 ? 0 : (c.batch - 1) * x_stride + c.inputs, c.offset);
    std::fill_n(xs.data(), xs.size(), NAN);
    for (std::size_t i = 0; i < x.size(); ++i) xs[i / c.inputs * x_stride + i % c.inputs] = x[i];
    const std::vector<float> bias(lists.bias.data(), lists.bias.data() + c.outputs);
    const std::vector<reference::Sum> expected =
        reference::linear(c.batch, c.inputs, c.outputs, weights, bias, x);
    const CodebookSparseParams params = lists.params(c);
    run_and_check(
        c, lists,
        [&](std::size_t begin, std::size_t end, std::byte* scratch, float* y, std::size_t stride) {
          GetParam().table->codebook_sparse_f32(params, table.data(), xs.data(), c.batch, x_stride,
                                                begin, end, scratch, y, stride);
        },
        [&](std::size_t n, std::size_t o, float y) {
          test::expect_sum(expected[n * c.outputs + o], y, c.inputs, data);
        });
  }
};

TEST_P(CodebookSparseF32, AgreesWithReferenceForEverySize) {
  for (const Case& c : cases_of_every_size()) {
    for (const Data data : {Data::kWhole, Data::kReal}) check(c, data);
    if (HasFailure()) return;
  }
}

TEST_P(CodebookSparseF32, AgreesWithReferenceForEveryShareOfZeros) {
  for (const std::size_t zeros : {0, 1, 8, 15, 16}) {
    for (const std::size_t batch : {5, 20})
      check({.batch = batch, .inputs = 700, .outputs = 30, .zeros_in_16 = zeros}, Data::kReal);
  }
}

TEST_P(CodebookSparseF32, WritesOnlyTheTilesAskedForBetweenGaps) {
  for (const Case& c : cases_of_every_range()) check(c, Data::kWhole);
}

INSTANTIATE_TEST_SUITE_P(All, CodebookSparseF32, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

class CodebookSparseI16 : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->codebook_sparse_i16 == nullptr)
      GTEST_SKIP() << "served by the next backend down";
  }
  void check(const Case& c) {
    SCOPED_TRACE(testing::Message() << c);
    test::Random random(static_cast<std::uint32_t>(c.inputs * 131 + c.outputs * 7 + c.batch));
    Lists lists(c, random);
    std::vector<std::int32_t> levels(16);
    std::int32_t max_level = 0;
    for (std::int32_t& level : levels) {
      level = c.extreme
                  ? c.max_level
                  : static_cast<int>(random.below(2U * static_cast<unsigned>(c.max_level) + 1U)) -
                        c.max_level;
      max_level = std::max(max_level, std::abs(level));
    }
    AlignedBuffer<std::uint32_t> pairs(256);
    for (std::size_t i = 0; i < 256; ++i) {
      pairs[i] = static_cast<std::uint16_t>(levels[i % 16]) |
                 std::uint32_t{static_cast<std::uint16_t>(levels[i / 16])} << 16U;
    }
    std::vector<std::int32_t> weights;
    for (const int code : lists.codes)
      weights.push_back(code == kZero ? 0 : levels[static_cast<std::size_t>(code)]);
    const std::size_t stride = (c.inputs + kCodebookWindow + 31) / 32 * 32;
    AlignedBuffer<std::int16_t> q(c.batch * stride);
    std::vector<double> units;
    std::vector<float> expected;
    for (std::size_t n = 0; n < c.batch; ++n) {
      for (std::size_t k = 0; k < c.inputs; ++k) {
        const int limit = n % 2 == 0 ? 32767 : -32767;
        const int value = static_cast<int>(random.below(65535)) - 32767;
        q[n * stride + k] = static_cast<std::int16_t>(c.extreme ? limit : value);
      }
      units.push_back(std::ldexp(1.0 + 0.1 * static_cast<double>(n), -30));
      const std::vector<float> y = reference::integer_linear(
          {q.data() + n * stride, c.inputs}, units[n], weights, {lists.bias.data(), c.outputs});
      expected.insert(expected.end(), y.begin(), y.end());
    }
    const CodebookSparseParams params = lists.params(c);
    run_and_check(
        c, lists,
        [&](std::size_t begin, std::size_t end, std::byte* scratch, float* y,
            std::size_t y_stride) {
          GetParam().table->codebook_sparse_i16(params, pairs.data(), max_level, q.data(), c.batch,
                                                stride, units.data(), begin, end, scratch, y,
                                                y_stride);
        },
        [&](std::size_t n, std::size_t o, float y) {
          ASSERT_TRUE(test::same_bits(y, expected[n * c.outputs + o]))
              << "output " << o << " of sample " << n << ": " << y << ", expected "
              << expected[n * c.outputs + o];
        });
  }
};

TEST_P(CodebookSparseI16, IsExactForEverySize) {
  for (const Case& c : cases_of_every_size()) {
    check(c);
    if (HasFailure()) return;
  }
}

TEST_P(CodebookSparseI16, IsExactForEveryShareOfZeros) {
  for (const std::size_t zeros : {0, 1, 8, 15, 16}) {
    for (const std::size_t batch : {5, 20})
      check({.batch = batch, .inputs = 700, .outputs = 30, .zeros_in_16 = zeros});
  }
}

TEST_P(CodebookSparseI16, WritesOnlyTheTilesAskedForBetweenGaps) {
  for (const Case& c : cases_of_every_range()) check(c);
}

TEST_P(CodebookSparseI16, IsExactAtTheLimitOfLevelsInputsAndLength) {
  for (const int max_level : {32767, 16384, 16383, -32767, -16384, -16383}) {
    for (const std::size_t batch : {2, 18}) {
      check({.batch = batch,
             .inputs = 65536,
             .outputs = 3,
             .zeros_in_16 = 0,
             .max_level = max_level,
             .extreme = true});
      if (max_level > 0)
        check({.batch = batch, .inputs = 500, .outputs = 9, .max_level = max_level});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CodebookSparseI16, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

}  // namespace
}  // namespace tac::kernels
