#include "kernels/codebook_i16/codebook_i16.h"

#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "backends_under_test.h"
#include "base/aligned_buffer.h"
#include "float_testing.h"
#include "reference/codebook_reference.h"

namespace tac::kernels {
namespace {

using test::GuardedBuffer;

struct Case {
  std::size_t batch, inputs, outputs;
  std::size_t zeros_in_8 = 4;  // weights of 0, of 8
  bool extreme = false;        // all levels and inputs at their limits
  std::size_t gap = 0, offset = 0;
  std::size_t group_steps = 4;
  int max_level = 32767;
  std::size_t max_run = 8;
};

// Weights and inputs of one case, with the outputs expected.
struct Problem {
  explicit Problem(const Case& c)
      : levels(32),
        codes(c.outputs * c.inputs),
        bias(c.outputs),
        q_stride((c.inputs + kCodebookWindow + 31) / 32 * 32),
        q(c.batch * q_stride),
        units(c.batch) {
    test::Random random(static_cast<std::uint32_t>(c.inputs * 131 + c.outputs * 7 + c.batch));
    // Code 15 is zero.
    for (std::size_t i = 0; i < 15; ++i) {
      const auto level = static_cast<std::int16_t>(
          static_cast<int>(random.below(2 * static_cast<std::size_t>(c.max_level) + 1)) -
          c.max_level);
      levels[i] = c.extreme ? static_cast<std::int16_t>(c.max_level) : level;
    }
    for (std::size_t i = 0; i < 16; ++i) levels[16 + i] = levels[i];
    for (std::uint8_t& code : codes)
      code = static_cast<std::uint8_t>(random.below(8) < c.zeros_in_8 ? 15 : random.below(15));
    for (std::size_t o = 0; o < c.outputs; ++o) bias[o] = random.value(test::Data::kReal);
    std::vector<std::int32_t> weights(codes.size());
    for (std::size_t i = 0; i < codes.size(); ++i) weights[i] = levels[codes[i]];
    for (std::size_t n = 0; n < c.batch; ++n) {
      for (std::size_t k = 0; k < c.inputs; ++k) {
        const auto value = static_cast<std::int16_t>(static_cast<int>(random.below(65535)) - 32767);
        q[n * q_stride + k] =
            c.extreme ? static_cast<std::int16_t>(n % 2 == 0 ? 32767 : -32767) : value;
      }
      units[n] = std::ldexp(1.0 + 0.1 * static_cast<double>(n), -30);
      const std::vector<float> y = reference::integer_linear(
          {q.data() + n * q_stride, c.inputs}, units[n], weights, {bias.data(), c.outputs});
      expected.insert(expected.end(), y.begin(), y.end());
    }
  }

  AlignedBuffer<std::int16_t> levels;
  std::vector<std::uint8_t> codes;
  GuardedBuffer<float> bias;
  std::size_t q_stride;
  AlignedBuffer<std::int16_t> q;
  std::vector<double> units;
  std::vector<float> expected;  // [batch][outputs]
};

// Outputs of rows in [begin, end) are as expected, the others untouched.
void check_outputs(const Case& c, const Problem& problem, GuardedBuffer<float>& y,
                   const std::function<bool(std::size_t)>& written) {
  const std::size_t stride = c.outputs + c.gap;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const std::size_t o = i % stride;
    const float expected = o < c.outputs && written(o)
                               ? problem.expected[i / stride * c.outputs + o]
                               : test::kUntouched;
    ASSERT_TRUE(test::same_bits(y[i], expected))
        << "output " << o << " of sample " << i / stride << ": " << y[i] << ", expected "
        << expected << "; batch " << c.batch << " inputs " << c.inputs << " outputs " << c.outputs;
  }
  EXPECT_TRUE(y.intact());
}

class CodebookLinearI16 : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->codebook_linear_i16 == nullptr)
      GTEST_SKIP() << "served by the next backend down";
  }
  // Whether 32-bit sums of row o hold `run` times 16 inputs.
  static bool holds(const Problem& problem, std::size_t inputs, std::size_t o, std::size_t run) {
    for (std::size_t begin = 0; begin < inputs; begin += 16 * run) {
      for (std::size_t lane = 0; lane < 8; ++lane) {
        std::int32_t sum = 0;
        for (std::size_t k = begin; k < std::min(begin + 16 * run, inputs); ++k) {
          if (k % 16 / 2 == lane)
            sum += std::abs(std::int32_t{problem.levels[problem.codes[o * inputs + k]]});
        }
        if (sum > kCodebookGroupSum) return false;
      }
    }
    return true;
  }
  void check(const Case& c, std::size_t row_begin = 0, std::size_t row_end = SIZE_MAX) {
    Problem problem(c);
    const std::size_t k_padded =
        (c.inputs + kCodebookDenseAlign - 1) / kCodebookDenseAlign * kCodebookDenseAlign;
    // Padding has a code that is not zero, and meets inputs of 0.
    GuardedBuffer<std::uint8_t> codes(c.outputs * k_padded / 2);
    std::fill_n(codes.data(), codes.size(), std::uint8_t{0});
    for (std::size_t o = 0; o < c.outputs; ++o) {
      for (std::size_t k = 0; k < c.inputs; ++k) {
        const std::size_t p = k % 8;
        const std::size_t lane = k / 8 % 2;
        const std::size_t half = k / 16 % 2;
        const bool high = k / 32 % 2 != 0;
        codes[o * k_padded / 2 + k / 64 * 32 + lane * 16 + half * 8 + p] |=
            static_cast<std::uint8_t>(problem.codes[o * c.inputs + k] << (high ? 4 : 0));
      }
    }
    std::vector<std::uint8_t> runs(c.outputs, 1);
    for (std::size_t o = 0; o < c.outputs; ++o) {
      while (runs[o] < c.max_run && holds(problem, c.inputs, o, 2U * runs[o]))
        runs[o] = static_cast<std::uint8_t>(2 * runs[o]);
    }
    if (c.extreme) {
      ASSERT_EQ(runs[0], std::bit_floor(32767U / static_cast<unsigned>(c.max_level)));
    }
    const CodebookDenseParams params{.in_features = c.inputs,
                                     .k_padded = k_padded,
                                     .codes = codes.data(),
                                     .levels = problem.levels.data(),
                                     .runs = runs.data(),
                                     .bias = problem.bias.data()};
    const std::size_t stride = c.outputs + c.gap;
    GuardedBuffer<float> y(c.batch == 0 ? 0 : (c.batch - 1) * stride + c.outputs, c.offset);
    std::fill_n(y.data(), y.size(), test::kUntouched);
    row_end = std::min(row_end, c.outputs);
    GetParam().table->codebook_linear_i16(params, problem.q.data(), c.batch, problem.q_stride,
                                          problem.units.data(), row_begin, row_end, y.data(),
                                          stride);
    check_outputs(c, problem, y, [&](std::size_t o) { return o >= row_begin && o < row_end; });
  }
};

TEST_P(CodebookLinearI16, IsExactForEverySize) {
  for (const std::size_t inputs : {1, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000}) {
    for (const std::size_t batch : {0, 1, 2, 3, 4, 5, 9}) {
      for (const std::size_t outputs : {1, 4, 7, 18}) {
        for (const int max_level : {32767, 16000, 6000, 3000}) {
          check({.batch = batch, .inputs = inputs, .outputs = outputs, .max_level = max_level});
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST_P(CodebookLinearI16, IsExactForEveryRun) {
  for (const std::size_t max_run : {1, 2, 4, 8}) {
    for (const std::size_t batch : {1, 4}) {
      for (const std::size_t inputs : {64, 65, 128, 200, 1000})
        check({.batch = batch,
               .inputs = inputs,
               .outputs = 5,
               .max_level = 4095,
               .max_run = max_run});
    }
  }
}

TEST_P(CodebookLinearI16, WritesOnlyTheRowsAskedForBetweenGaps) {
  for (std::size_t begin = 0; begin <= 10; ++begin) {
    for (std::size_t end = begin; end <= 10; ++end)
      check({.batch = 5, .inputs = 130, .outputs = 10, .gap = 3, .offset = 1}, begin, end);
  }
}

TEST_P(CodebookLinearI16, IsExactAtTheLimitOfLevelsInputsAndLength) {
  // Runs of 1, 1, 2, 2, 4, 4 and 8.
  for (const int max_level : {32767, 16384, 16383, 8192, 8191, 4096, 4095}) {
    check({.batch = 5,
           .inputs = 65536,
           .outputs = 2,
           .zeros_in_8 = 0,
           .extreme = true,
           .max_level = max_level});
    check({.batch = 5, .inputs = 200, .outputs = 9, .max_level = max_level});
  }
}

INSTANTIATE_TEST_SUITE_P(All, CodebookLinearI16, testing::ValuesIn(test::backends_under_test()),
                         test::backend_test_name);

// A plain schedule of a problem without its zeros: windows of inputs side by side, each as often as
// the fullest lane needs, every other one moved to the left as far as its weights allow. Rows go to
// lanes from the last to the first, and the last group of a tile is filled up.
struct PlainSchedule {
  struct Entry {
    std::size_t position = 0;
    std::uint8_t code = 15;
  };
  // A start is a window and per_lane entries of each lane; starts_of_group of them are a group.
  PlainSchedule(const Case& c, const Problem& problem, std::size_t window, std::size_t per_lane,
                std::size_t starts_of_group)
      : n_tiles((c.outputs + 15) / 16), rows(n_tiles * 16, static_cast<std::uint32_t>(c.outputs)) {
    for (std::size_t o = 0; o < c.outputs; ++o)
      rows[o] = static_cast<std::uint32_t>(c.outputs - 1 - o);
    for (std::size_t tile = 0; tile < n_tiles; ++tile) {
      std::vector<std::int32_t> sums(16);
      const auto begin = [&](std::size_t start) {
        if ((starts.size() - tiles.back()) % starts_of_group == 0) std::ranges::fill(sums, 0);
        starts.push_back(static_cast<std::uint16_t>(start));
        entries.resize(starts.size() * 16 * per_lane);
      };
      for (std::size_t first = 0; first < c.inputs; first += window) {
        std::vector<std::vector<std::size_t>> left(16);
        bool any = false;
        for (std::size_t l = 0; l < 16; ++l) {
          for (std::size_t k = first; k < std::min(first + window, c.inputs); ++k) {
            const std::uint32_t row = rows[tile * 16 + l];
            if (row >= c.outputs || problem.codes[row * c.inputs + k] == 15) continue;
            left[l].push_back(k);
            any = true;
          }
        }
        while (any) {
          any = false;
          std::size_t last = first;
          for (const auto& lane : left)
            for (const std::size_t k : lane) last = std::max(last, k);
          const std::size_t start = starts.size() % 2 == 1 && last >= window - 1
                                        ? std::min(last - (window - 1), first)
                                        : first;
          begin(start);
          for (std::size_t l = 0; l < 16; ++l) {
            Entry* lane = entries.data() + ((starts.size() - 1) * 16 + l) * per_lane;
            std::size_t taken = 0;
            for (; taken < std::min(left[l].size(), per_lane); ++taken) {
              const std::size_t k = left[l][taken];
              const std::uint8_t code = problem.codes[rows[tile * 16 + l] * c.inputs + k];
              const std::int32_t level = std::abs(std::int32_t{problem.levels[code]});
              if (sums[l] + level > kCodebookGroupSum) break;
              sums[l] += level;
              lane[taken] = {k - start, code};
            }
            left[l].erase(left[l].begin(), left[l].begin() + static_cast<std::ptrdiff_t>(taken));
            any = any || !left[l].empty();
          }
        }
      }
      while ((starts.size() - tiles.back()) % starts_of_group != 0) begin(0);
      tiles.push_back(static_cast<std::uint32_t>(starts.size()));
    }
  }

  // Calls kernel(tile begin, tile end, y, y stride) and checks what it wrote.
  void check(
      const Case& c, const Problem& problem, std::size_t tile_begin, std::size_t tile_end,
      const std::function<void(std::size_t, std::size_t, float*, std::size_t)>& kernel) const {
    const std::size_t stride = c.outputs + c.gap;
    GuardedBuffer<float> y(c.batch == 0 ? 0 : (c.batch - 1) * stride + c.outputs, c.offset);
    std::fill_n(y.data(), y.size(), test::kUntouched);
    tile_end = std::min(tile_end, n_tiles);
    kernel(tile_begin, tile_end, y.data(), stride);
    check_outputs(c, problem, y, [&](std::size_t o) {
      const std::size_t lane = c.outputs - 1 - o;
      return lane / 16 >= tile_begin && lane / 16 < tile_end;
    });
  }

  std::size_t n_tiles;
  std::vector<std::uint32_t> rows, tiles{0};
  std::vector<std::uint16_t> starts;
  std::vector<Entry> entries;  // [starts][16 lanes][per_lane]
};

class CodebookLinearI16Sliced : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->codebook_linear_i16_sliced == nullptr)
      GTEST_SKIP() << "served by the next backend down";
  }

  void check(const Case& c, std::size_t tile_begin = 0, std::size_t tile_end = SIZE_MAX) {
    Problem problem(c);
    const PlainSchedule schedule(c, problem, 64, 2 * c.group_steps, 1);
    const std::size_t half = c.group_steps / 2;
    AlignedBuffer<std::uint16_t> words(schedule.entries.size() / 2);
    AlignedBuffer<std::uint8_t> codes(schedule.entries.size() / c.group_steps);
    for (std::size_t i = 0; i < schedule.entries.size(); ++i) {
      const auto [position, code] = schedule.entries[i];
      const std::size_t of_lane = i % (2 * c.group_steps), step = of_lane / 2;
      const std::size_t group = i / (32 * c.group_steps);
      const std::size_t e = i / (2 * c.group_steps) % 16 * 2 + of_lane % 2;
      std::uint16_t* to = words.data() + group * half * 32;
      to[step / 2 * 32 + e] =
          static_cast<std::uint16_t>(to[step / 2 * 32 + e] | position << (step % 2 * 6));
      if (step < half) {
        to[step * 32 + e] = static_cast<std::uint16_t>(to[step * 32 + e] | code << 12U);
      } else {
        codes[group * 32 + e] =
            static_cast<std::uint8_t>(codes[group * 32 + e] | code << (4 * (step - half)));
      }
    }
    const CodebookSlicedParams params{.out_features = c.outputs,
                                      .group_steps = c.group_steps,
                                      .words = words.data(),
                                      .codes = codes.data(),
                                      .starts = schedule.starts.data(),
                                      .tiles = schedule.tiles.data(),
                                      .rows = schedule.rows.data(),
                                      .levels = problem.levels.data(),
                                      .bias = problem.bias.data()};
    schedule.check(c, problem, tile_begin, tile_end,
                   [&](std::size_t begin, std::size_t end, float* y, std::size_t y_stride) {
                     GetParam().table->codebook_linear_i16_sliced(
                         params, problem.q.data(), c.batch, problem.q_stride, problem.units.data(),
                         begin, end, y, y_stride);
                   });
  }
};

TEST_P(CodebookLinearI16Sliced, IsExactForEverySize) {
  for (const std::size_t inputs : {1, 2, 31, 32, 33, 63, 64, 65, 100, 129, 700}) {
    for (const std::size_t batch : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 17}) {
      for (const std::size_t outputs : {1, 15, 16, 17, 40}) {
        for (const std::size_t steps : {2, 4}) {
          check({.batch = batch, .inputs = inputs, .outputs = outputs, .group_steps = steps});
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST_P(CodebookLinearI16Sliced, IsExactForEveryShareOfZeros) {
  for (const std::size_t zeros : {0, 1, 7, 8})
    check({.batch = 5, .inputs = 300, .outputs = 33, .zeros_in_8 = zeros});
}

TEST_P(CodebookLinearI16Sliced, WritesOnlyTheTilesAskedForBetweenGaps) {
  for (std::size_t begin = 0; begin <= 3; ++begin) {
    for (std::size_t end = begin; end <= 3; ++end)
      check({.batch = 5, .inputs = 130, .outputs = 45, .gap = 3, .offset = 1}, begin, end);
  }
}

TEST_P(CodebookLinearI16Sliced, IsExactAtTheLimitOfLevelsInputsAndLength) {
  for (const std::size_t batch : {1, 4}) {
    for (const int max_level : {32767, 16383}) {
      check({.batch = batch,
             .inputs = 65536,
             .outputs = 3,
             .zeros_in_8 = 0,
             .extreme = true,
             .max_level = max_level});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CodebookLinearI16Sliced,
                         testing::ValuesIn(test::backends_under_test()), test::backend_test_name);

class CodebookLinearI16Bytes : public testing::TestWithParam<BackendInfo> {
 protected:
  void SetUp() override {
    if (GetParam().table->codebook_linear_i16_bytes == nullptr)
      GTEST_SKIP() << "served by the next backend down";
  }

  void check(const Case& c, std::size_t tile_begin = 0, std::size_t tile_end = SIZE_MAX) {
    Problem problem(c);
    const PlainSchedule schedule(c, problem, kCodebookBytesWindow, 2, kCodebookBytesGroup);
    AlignedBuffer<std::uint8_t> entries(schedule.entries.size());
    for (std::size_t i = 0; i < schedule.entries.size(); ++i) {
      const auto [position, code] = schedule.entries[i];
      entries[i] = static_cast<std::uint8_t>(position << 4U | code);
    }
    // 15 bytes are read behind the last input.
    const std::size_t stride = c.inputs + kCodebookBytesWindow - 1;
    GuardedBuffer<std::uint8_t> bytes(c.batch * 2 * stride);
    for (std::size_t n = 0; n < c.batch; ++n) {
      for (std::size_t k = 0; k < stride; ++k) {
        // Any values are behind the inputs.
        const auto bits = static_cast<std::uint16_t>(
            k < c.inputs ? problem.q[n * problem.q_stride + k] : std::int16_t{12345});
        bytes[n * 2 * stride + k] = static_cast<std::uint8_t>(bits);
        bytes[(n * 2 + 1) * stride + k] = static_cast<std::uint8_t>(bits >> 8U);
      }
    }
    const CodebookBytesParams params{.out_features = c.outputs,
                                     .entries = entries.data(),
                                     .starts = schedule.starts.data(),
                                     .tiles = schedule.tiles.data(),
                                     .rows = schedule.rows.data(),
                                     .levels = problem.levels.data(),
                                     .bias = problem.bias.data()};
    schedule.check(c, problem, tile_begin, tile_end,
                   [&](std::size_t begin, std::size_t end, float* y, std::size_t y_stride) {
                     GetParam().table->codebook_linear_i16_bytes(params, bytes.data(), c.batch,
                                                                 stride, problem.units.data(),
                                                                 begin, end, y, y_stride);
                   });
  }
};

TEST_P(CodebookLinearI16Bytes, IsExactForEverySize) {
  for (const std::size_t inputs : {1, 2, 15, 16, 17, 31, 32, 33, 100, 129, 700}) {
    for (const std::size_t batch : {0, 1, 2, 3, 5, 16, 17, 18, 33}) {
      for (const std::size_t outputs : {1, 15, 16, 17, 40}) {
        check({.batch = batch, .inputs = inputs, .outputs = outputs});
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(CodebookLinearI16Bytes, IsExactForEveryShareOfZeros) {
  for (const std::size_t zeros : {0, 1, 7, 8}) {
    for (const std::size_t batch : {1, 5})
      check({.batch = batch, .inputs = 300, .outputs = 33, .zeros_in_8 = zeros});
  }
}

TEST_P(CodebookLinearI16Bytes, WritesOnlyTheTilesAskedForBetweenGaps) {
  for (std::size_t begin = 0; begin <= 3; ++begin) {
    for (std::size_t end = begin; end <= 3; ++end) {
      check({.batch = 5, .inputs = 130, .outputs = 45, .gap = 3, .offset = 1}, begin, end);
    }
  }
}

TEST_P(CodebookLinearI16Bytes, IsExactAtTheLimitOfLevelsInputsAndLength) {
  for (const std::size_t batch : {1, 4}) {
    for (const int max_level : {32767, 16383}) {
      check({.batch = batch,
             .inputs = 65536,
             .outputs = 3,
             .zeros_in_8 = 0,
             .extreme = true,
             .max_level = max_level});
    }
  }
}

TEST_P(CodebookLinearI16Bytes, InputsAreSplit) {
  for (const std::size_t count : {0, 32, 96}) {
    AlignedBuffer<std::int16_t> q(count);
    for (std::size_t k = 0; k < count; ++k)
      q[k] = static_cast<std::int16_t>(k == 0 ? -32768 : 32767 - 691 * static_cast<int>(k));
    GuardedBuffer<std::uint8_t> lower(count, 1), upper(count, 3);
    GetParam().table->split_i16_u8(q.data(), count, lower.data(), upper.data());
    for (std::size_t k = 0; k < count; ++k) {
      ASSERT_EQ(lower[k], q[k] & 0xFF);
      ASSERT_EQ(upper[k], q[k] >> 8 & 0xFF);
    }
    EXPECT_TRUE(lower.intact());
    EXPECT_TRUE(upper.intact());
  }
}

INSTANTIATE_TEST_SUITE_P(All, CodebookLinearI16Bytes,
                         testing::ValuesIn(test::backends_under_test()), test::backend_test_name);

}  // namespace
}  // namespace tac::kernels
