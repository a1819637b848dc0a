#include "runtime/codebook_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bitset>
#include <functional>
#include <random>
#include <type_traits>
#include <utility>

#include "format/writer.h"
#include "kernels/codebook_i16/codebook_i16.h"
#include "kernels/codebook_sparse/codebook_sparse.h"

namespace tac {
namespace {

using kernels::kCodebookBytesGroup;
using kernels::kCodebookTile;

// A layer from its weights as codes; 15 stands for zero. Code i has level levels[i].
struct Layer {
  Layer(std::size_t rows, std::size_t columns,
        const std::function<int(std::size_t, std::size_t)>& code)
      : rows(rows), columns(columns) {
    const std::size_t words = (columns + 31) / 32;
    std::vector<std::uint32_t> bitmap(rows * words);
    std::vector<std::uint8_t> packed;
    std::size_t n_coded = 0;
    for (std::size_t o = 0; o < rows; ++o) {
      for (std::size_t k = 0; k < columns; ++k) {
        codes.push_back(code(o, k));
        if (codes.back() == 15) continue;
        bitmap[o * words + k / 32] |= 1U << (k % 32);
        if (n_coded % 2 == 0) packed.push_back(0);
        packed.back() =
            static_cast<std::uint8_t>(packed.back() | codes.back() << (n_coded % 2 * 4));
        ++n_coded;
      }
    }
    op.bitmap = writer.own_array<std::uint32_t>(bitmap);
    op.codes = writer.own_array<std::uint8_t>(packed);
    levels = {1, -2, 3, 40, -500, 6000, 16383, -16383, 32767, -32767, 9, 10, 0, 12, 13};
  }
  std::optional<SlicedCodebook> slice() {
    const CodebookRows weights(op, rows, columns);
    return slice_codebook(weights, rows, columns, levels);
  }

  DenseCodebook dense() {
    const CodebookRows weights(op, rows, columns);
    return dense_codebook(weights, rows, columns, levels);
  }

  std::size_t rows, columns;
  std::vector<int> codes;
  ModelWriter writer;
  CodebookLinear op;
  std::vector<std::int32_t> levels;
};

// Calls use(group, lane, first input of the window, position in it, code) for every entry.
template <class Use>
void for_each_entry(const SlicedCodebook& sliced, const Use& use) {
  const std::size_t half = sliced.group_steps / 2;
  for (std::size_t group = 0; group < sliced.starts.size(); ++group) {
    const std::uint16_t* words = sliced.words.data() + group * half * 32;
    for (std::size_t step = 0; step < sliced.group_steps; ++step) {
      for (std::size_t e = 0; e < 32; ++e) {
        const unsigned code = step < half
                                  ? words[step * 32 + e] >> 12U
                                  : sliced.codes[group * 32 + e] >> (4 * (step - half)) & 15U;
        use(group, e / 2, sliced.starts[group], words[step / 2 * 32 + e] >> (step % 2 * 6) & 63U,
            code);
      }
    }
  }
}
template <class Use>
void for_each_entry(const BytesCodebook& bytes, const Use& use) {
  for (std::size_t i = 0; i < bytes.starts.size() * 32; ++i) {
    const std::uint8_t entry = bytes.entries[i];
    use(i / 32 / kCodebookBytesGroup, i % 32 / 2, bytes.starts[i / 32], entry >> 4U, entry & 15U);
  }
}

// Every weight with a level is in its row once, and no group breaks its promises.
template <class Codebook>
void expect_complete(Layer& layer, const Codebook& codebook) {
  constexpr bool kBytes = std::is_same_v<Codebook, BytesCodebook>;
  constexpr std::size_t kStartsOfGroup = kBytes ? kCodebookBytesGroup : 1;
  ASSERT_EQ(codebook.rows.size(), (layer.rows + 15) / 16 * 16);
  ASSERT_EQ(codebook.tiles.size(), codebook.rows.size() / kCodebookTile + 1);
  ASSERT_EQ(codebook.tiles.back(), codebook.starts.size());
  std::vector<std::size_t> tile_of(codebook.starts.size() / kStartsOfGroup);
  for (std::size_t tile = 0; tile + 1 < codebook.tiles.size(); ++tile) {
    for (const std::size_t i : {tile, tile + 1}) ASSERT_EQ(codebook.tiles[i] % kStartsOfGroup, 0U);
    for (std::size_t i = codebook.tiles[tile]; i < codebook.tiles[tile + 1]; ++i)
      tile_of[i / kStartsOfGroup] = tile;
  }
  std::vector<int> found(layer.codes.size(), 15);
  std::vector<std::int32_t> sums(tile_of.size() * kCodebookTile);
  for_each_entry(codebook, [&](std::size_t group, std::size_t lane, std::size_t start,
                               std::size_t position, unsigned code) {
    ASSERT_LT(start, layer.columns);
    if (code >= layer.levels.size() || layer.levels[code] == 0) return;  // fills up
    const std::size_t row = codebook.rows[tile_of[group] * kCodebookTile + lane];
    const std::size_t k = start + position;
    ASSERT_LT(row, layer.rows);
    ASSERT_LT(k, layer.columns);
    ASSERT_EQ(found[row * layer.columns + k], 15) << "twice";
    found[row * layer.columns + k] = static_cast<int>(code);
    sums[group * kCodebookTile + lane] += std::abs(layer.levels[code]);
  });
  for (const std::int32_t sum : sums) ASSERT_LE(sum, kernels::kCodebookGroupSum);
  for (std::size_t i = 0; i < found.size(); ++i)
    ASSERT_EQ(found[i], layer.codes[i] == 12 ? 15 : layer.codes[i]) << "weight " << i;
}

template <class Codebook>
void expect_read_back(const Layer& layer, const Codebook& codebook) {
  std::vector<std::int16_t> levels(layer.levels.begin(), layer.levels.end());
  levels.resize(16);
  std::vector<std::uint8_t> codes(kCodebookTile * layer.columns);
  for (std::size_t tile = 0; tile + 1 < codebook.tiles.size(); ++tile) {
    std::ranges::fill(codes, kNoCode);
    read_tile(codebook, tile, levels, layer.columns, codes.data());
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const std::size_t row = codebook.rows[tile * kCodebookTile + i / layer.columns];
      const std::size_t k = i % layer.columns;
      const int code = row < layer.rows ? layer.codes[row * layer.columns + k] : 15;
      ASSERT_EQ(codes[i], levels[static_cast<std::size_t>(code)] == 0 ? kNoCode : code)
          << "row " << row << ", column " << k;
    }
  }
}

TEST(SliceCodebook, HoldsEveryWeightOnce) {
  std::mt19937 engine(3);
  for (const std::size_t rows : {1, 16, 17, 50}) {
    for (const std::size_t columns : {1, 31, 64, 65, 500}) {
      for (const unsigned zeros_in_16 : {6U, 10U, 12U, 15U}) {
        Layer layer(rows, columns, [&](auto, auto) {
          return engine() % 16 < zeros_in_16 ? 15 : static_cast<int>(engine() % 15);
        });
        const auto sliced = layer.slice();
        ASSERT_TRUE(sliced);
        expect_complete(layer, *sliced);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(SliceCodebook, RowsAreReadBackButForWeightsWithoutALevel) {
  std::mt19937 engine(5);
  for (const unsigned zeros_in_16 : {6U, 12U, 15U}) {
    Layer layer(37, 300, [&](auto, auto) {
      return engine() % 16 < zeros_in_16 ? 15 : static_cast<int>(engine() % 15);
    });
    const auto sliced = layer.slice();
    ASSERT_TRUE(sliced);
    expect_read_back(layer, *sliced);
  }
}

TEST(SliceCodebook, TakesNoSpaceForZeros) {
  Layer layer(100, 300, [](auto, auto) { return 15; });
  const auto sliced = layer.slice();
  ASSERT_TRUE(sliced);
  EXPECT_EQ(sliced->starts.size(), 0U);
  expect_complete(layer, *sliced);
}

TEST(SliceCodebook, WastesLittleOnPrunedLayers) {
  std::mt19937 engine(3);
  // Levels as clusters of a normal distribution have them: the larger, the rarer.
  Layer layer(64, 4096,
              [&](auto, auto) { return engine() % 4 != 0 ? 15 : static_cast<int>(engine() % 6); });
  layer.levels = {4000, -4000, 5000, -5000, 6000, -6000, 16383};
  const auto sliced = layer.slice();
  ASSERT_TRUE(sliced);
  const double words = static_cast<double>(sliced->starts.size() * sliced->group_steps * 32);
  EXPECT_LE(words, 1.2 * 64 * 4096 / 4);
}

TEST(SliceCodebook, ARowThatIsDenseIsAloneInItsTile) {
  Layer layer(64, 2048, [](std::size_t o, std::size_t k) {
    return o == 40 || (o * 31 + k * 7) % 16 == 0 ? static_cast<int>(k % 4) : 15;
  });
  const auto sliced = layer.slice();
  ASSERT_TRUE(sliced);
  EXPECT_EQ(sliced->rows[0], 40U);
  expect_complete(layer, *sliced);
}

TEST(SliceCodebook, RefusesLayersThatItCannotHoldSmall) {
  Layer full(64, 2048, [](auto, std::size_t k) { return static_cast<int>(k % 4); });
  EXPECT_FALSE(full.slice());
  // Each row of a tile has its weights where no other has any.
  Layer apart(512, 2048, [](std::size_t o, std::size_t k) {
    return k / 128 == o % 16 ? static_cast<int>(k % 4) : 15;
  });
  apart.levels = {32767, -32767, 32767, -32767};  // two weights fill a group
  EXPECT_FALSE(apart.slice());
  Layer no_zero(16, 64, [](auto, std::size_t k) { return k % 4 == 0 ? 0 : 15; });
  EXPECT_TRUE(no_zero.slice());
  no_zero.levels = std::vector<std::int32_t>(16, 7);  // no code is left to fill up with
  EXPECT_FALSE(no_zero.slice());
}

std::optional<BytesCodebook> bytes_of(Layer& layer) {
  const CodebookRows weights(layer.op, layer.rows, layer.columns);
  return slice_codebook_to_bytes(weights, layer.rows, layer.columns, layer.levels);
}

TEST(BytesCodebook, HoldsEveryWeightOnceAndIsReadBack) {
  std::mt19937 engine(3);
  for (const std::size_t rows : {1, 16, 17, 50}) {
    for (const std::size_t columns : {1, 31, 64, 65, 500}) {
      for (const unsigned zeros_in_16 : {7U, 12U, 15U}) {
        Layer layer(rows, columns, [&](auto, auto) {
          return engine() % 16 < zeros_in_16 ? 15 : static_cast<int>(engine() % 15);
        });
        const auto bytes = bytes_of(layer);
        ASSERT_TRUE(bytes);
        expect_complete(layer, *bytes);
        expect_read_back(layer, *bytes);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(BytesCodebook, HoldsWeightsOfTheLastOf65536Columns) {
  Layer layer(3, 65536, [](std::size_t o, std::size_t k) { return k >= 65533 + o ? 1 : 15; });
  const auto bytes = bytes_of(layer);
  ASSERT_TRUE(bytes);
  expect_complete(layer, *bytes);
  const auto sliced = layer.slice();
  ASSERT_TRUE(sliced);
  expect_complete(layer, *sliced);
}

TEST(BytesCodebook, TakesNoSpaceForZeros) {
  Layer layer(100, 300, [](auto, auto) { return 15; });
  const auto bytes = bytes_of(layer);
  ASSERT_TRUE(bytes);
  EXPECT_EQ(bytes->starts.size(), 0U);
  expect_complete(layer, *bytes);
}

TEST(BytesCodebook, WastesLittleOnPrunedLayers) {
  std::mt19937 engine(3);
  Layer layer(64, 4096,
              [&](auto, auto) { return engine() % 4 != 0 ? 15 : static_cast<int>(engine() % 6); });
  // The largest that converters write.
  layer.levels = {16383, -16383, 16383, -16383, 16383, -16383};
  const auto bytes = bytes_of(layer);
  ASSERT_TRUE(bytes);
  EXPECT_LE(static_cast<double>(bytes->starts.size() * 32), 1.4 * 64 * 4096 / 4);
}

TEST(BytesCodebook, RefusesLayersThatItCannotHoldSmall) {
  Layer full(64, 2048, [](auto, std::size_t k) { return static_cast<int>(k % 4); });
  EXPECT_FALSE(bytes_of(full));
  // Each row of a tile has its weights where no other has any.
  Layer apart(512, 2048, [](std::size_t o, std::size_t k) {
    return k / 128 == o % 16 ? static_cast<int>(k % 4) : 15;
  });
  EXPECT_FALSE(bytes_of(apart));
  Layer no_zero(16, 64, [](auto, std::size_t k) { return k % 4 == 0 ? 0 : 15; });
  EXPECT_TRUE(bytes_of(no_zero));
  no_zero.levels = std::vector<std::int32_t>(16, 7);  // no code is left to fill up with
  EXPECT_FALSE(bytes_of(no_zero));
}

std::size_t dense_bytes(std::size_t columns) {
  return (columns + 63) / 64 * 32;
}

TEST(DenseCodebook, HoldsEveryWeightInItsPlace) {
  std::mt19937 engine(3);
  for (const std::size_t rows : {1, 3}) {
    for (const std::size_t columns : {1, 31, 32, 33, 64, 65, 200}) {
      Layer layer(rows, columns, [&](auto, auto) { return static_cast<int>(engine() % 16); });
      const DenseCodebook dense = layer.dense();
      ASSERT_EQ(dense.codes.size(), rows * dense_bytes(columns));
      ASSERT_EQ(dense.runs.size(), rows);
      for (std::size_t i = 0; i < rows * columns; ++i) {
        const std::size_t k = i % columns;
        const std::uint8_t byte = dense.codes[i / columns * dense_bytes(columns) + k / 64 * 32 +
                                              k % 16 / 8 * 16 + k % 32 / 16 * 8 + k % 8];
        ASSERT_EQ(k % 64 < 32 ? byte & 15 : byte >> 4, layer.codes[i]) << "weight " << i;
      }
    }
  }
}

// The longest run of one row whose weights are at `positions`, all of level 8192, so that 7 of them
// fit and 8 do not.
std::uint8_t run_of(std::size_t columns, const std::vector<std::size_t>& positions) {
  Layer layer(1, columns, [&](auto, std::size_t k) {
    return std::ranges::find(positions, k) == positions.end() ? 15 : static_cast<int>(k % 2);
  });
  layer.levels = {8192, -8192, 16384};
  return layer.dense().runs[0];
}

TEST(DenseCodebook, RunsAreAsLongAsTheLevelsOfALaneAllow) {
  // Lane 3 of the first 64 inputs, and of the next.
  const std::vector<std::size_t> first{6, 7, 22, 23, 38, 39, 54, 55};
  const std::vector<std::size_t> next{70, 71, 86, 87, 102, 103, 118, 119};
  const auto of_both = [&](std::size_t n_first, std::size_t n_next) {
    std::vector<std::size_t> all(first.begin(),
                                 first.begin() + static_cast<std::ptrdiff_t>(n_first));
    all.insert(all.end(), next.begin(), next.begin() + static_cast<std::ptrdiff_t>(n_next));
    return all;
  };
  EXPECT_EQ(run_of(64, {}), 8);
  EXPECT_EQ(run_of(128, of_both(4, 3)), 8);
  EXPECT_EQ(run_of(128, of_both(4, 4)), 4);
  EXPECT_EQ(run_of(128, of_both(7, 7)), 4);
  EXPECT_EQ(run_of(128, of_both(8, 0)), 1);
  EXPECT_EQ(run_of(128, of_both(0, 8)), 1);
  EXPECT_EQ(run_of(120, of_both(0, 8)), 1);
  EXPECT_EQ(run_of(56, of_both(7, 0)), 8);
  EXPECT_EQ(run_of(56, of_both(8, 0)), 1);
  // Other lanes, and a run that begins at 128, have sums of their own.
  EXPECT_EQ(run_of(300, {6, 7, 22, 23, 8, 9, 24, 25, 134, 135, 150, 151}), 8);
  EXPECT_EQ(run_of(300, {70, 71, 86, 87, 134, 135, 150, 151}), 8);
  EXPECT_EQ(run_of(300, {134, 135, 150, 151, 198, 199, 214, 215}), 4);
}

TEST(DenseCodebook, FullRowsAreLimitedByTheirLevel) {
  for (const auto& [level, run] :
       {std::pair{16384, 1}, {16383, 2}, {8192, 2}, {8191, 4}, {4096, 4}, {4095, 8}}) {
    Layer layer(2, 256, [&](auto, auto) { return 0; });
    layer.levels = {-level};
    EXPECT_EQ(layer.dense().runs, std::vector<std::uint8_t>(2, static_cast<std::uint8_t>(run)));
  }
}

TEST(DenseCodebook, CanBeReadBack) {
  std::mt19937 engine(3);
  for (const std::size_t columns : {1, 63, 64, 65, 300}) {
    Layer layer(5, columns, [&](auto, auto) { return static_cast<int>(engine() % 16); });
    layer.levels.resize(15);
    const DenseCodebook dense = layer.dense();
    const std::size_t k_padded = (columns + 63) / 64 * 64;
    std::vector<std::uint8_t> row(k_padded);
    for (std::size_t r = 0; r < layer.rows; ++r) {
      read_dense_row(dense.codes.data() + r * k_padded / 2, k_padded, row.data());
      for (std::size_t k = 0; k < columns; ++k)
        ASSERT_EQ(row[k], layer.codes[r * columns + k]) << "row " << r << ", column " << k;
    }
  }
}

// Every weight with a level is in its list once, in order, and the rest of a piece is filling.
void expect_complete(Layer& layer, const SparseCodebook& sparse) {
  using kernels::kSparseChunk, kernels::kSparseGroup, kernels::kSparseTile;
  const std::size_t n_tiles = (layer.rows + kSparseTile - 1) / kSparseTile;
  std::vector<int> found(layer.codes.size(), 15);
  std::size_t group = 0;
  for (std::size_t piece = 0; piece < sparse.begins.size(); ++piece) {
    ASSERT_EQ(sparse.begins[piece], group);
    const std::uint8_t* counts = sparse.counts.data() + piece * kSparseTile;
    const std::size_t n_groups = *std::max_element(counts, counts + kSparseTile);
    for (std::size_t r = 0; r < kSparseTile; ++r) {
      std::size_t next = piece / n_tiles * kSparseChunk, entries = 0;
      for (std::size_t i = 0; i < n_groups * kSparseGroup; ++i) {
        const std::size_t at =
            ((group + i / kSparseGroup) * kSparseTile + r) * kSparseGroup + i % kSparseGroup;
        const unsigned code = sparse.codes[at / 2] >> (at % 2 * 4) & 15U;
        if (sparse.places[at] == kernels::kSparseFill) {
          ASSERT_EQ(code, 0U);
          continue;
        }
        ASSERT_EQ(entries, i) << "a gap";
        ++entries;
        const std::size_t k =
            piece / n_tiles * kSparseChunk + sparse.places[at] / kernels::kSparseStep;
        const std::size_t row = piece % n_tiles * kSparseTile + r;
        ASSERT_LT(row, layer.rows);
        ASSERT_LT(k, layer.columns);
        ASSERT_GE(k, next);
        next = k + 1;
        found[row * layer.columns + k] = static_cast<int>(code);
      }
      ASSERT_EQ(counts[r], (entries + kSparseGroup - 1) / kSparseGroup);
    }
    group += n_groups;
  }
  ASSERT_EQ(sparse.places.size(), (group + 1) * kSparseTile * kSparseGroup);
  for (std::size_t i = 0; i < found.size(); ++i)
    ASSERT_EQ(found[i], layer.codes[i] == 12 ? 15 : layer.codes[i]) << "weight " << i;
}

std::optional<SparseCodebook> sparse_of(Layer& layer) {
  const std::size_t stride = (layer.columns + kReadAlign - 1) / kReadAlign * kReadAlign;
  // In no order.
  const auto read = [&](const UseRow& use) {
    std::vector<std::uint8_t> codes(stride);
    for (std::size_t i = 0; i < layer.rows; ++i) {
      const std::size_t row = i % 2 == 0 ? i / 2 : layer.rows - 1 - i / 2;
      for (std::size_t k = 0; k < layer.columns; ++k) {
        const int code = layer.codes[row * layer.columns + k];
        codes[k] = code == 15 ? kNoCode : static_cast<std::uint8_t>(code);
      }
      use(row, codes.data());
    }
  };
  return sparse_codebook(read, layer.rows, layer.columns, std::bitset<16>{}.set(12));
}

TEST(SparseCodebook, HoldsEveryWeightOnce) {
  std::mt19937 engine(3);
  for (const std::size_t rows : {4, 16, 18, 51}) {
    for (const std::size_t columns : {31, 64, 255, 256, 257, 900}) {
      for (const unsigned zeros_in_16 : {12U, 15U}) {
        Layer layer(rows, columns, [&](auto, auto) {
          return engine() % 16 < zeros_in_16 ? 15 : static_cast<int>(engine() % 15);
        });
        const auto sparse = sparse_of(layer);
        ASSERT_TRUE(sparse);
        expect_complete(layer, *sparse);
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(SparseCodebook, HoldsRowsOfAllLengths) {
  Layer layer(40, 800, [](std::size_t o, std::size_t k) {
    return o == 9 || (o % 7 == 3 && k % 3 == 0) ? static_cast<int>(k % 15) : 15;
  });
  const auto sparse = sparse_of(layer);
  ASSERT_TRUE(sparse);
  expect_complete(layer, *sparse);
}

TEST(SparseCodebook, HoldsLayersWithoutWeightsAtTheFrontAtTheEndAndAtAll) {
  for (const std::size_t first : {0, 8, 40}) {
    Layer layer(40, 800, [&](std::size_t o, std::size_t k) {
      return o >= first && o < 30 && k >= 300 && k < 310 ? 3 : 15;
    });
    const auto sparse = sparse_of(layer);
    ASSERT_TRUE(sparse);
    expect_complete(layer, *sparse);
  }
}

TEST(SparseCodebook, WastesLittleOnPrunedLayers) {
  std::mt19937 engine(3);
  Layer layer(64, 4096,
              [&](auto, auto) { return engine() % 4 != 0 ? 15 : static_cast<int>(engine() % 6); });
  const auto sparse = sparse_of(layer);
  ASSERT_TRUE(sparse);
  EXPECT_LE(static_cast<double>(sparse->places.size()), 1.2 * 64 * 4096 / 4);
}

TEST(SparseCodebook, RefusesLayersThatItCannotHoldSmall) {
  Layer full(64, 512, [](auto, std::size_t k) { return static_cast<int>(k % 4); });
  EXPECT_FALSE(sparse_of(full));
  const CodebookRows weights(full.op, full.rows, full.columns);
  EXPECT_EQ(sparse_entries(weights, full.rows, full.columns, {}), 0U);
  EXPECT_EQ(sparse_entries(weights, full.rows, full.columns, std::bitset<16>{}.set(1).set(3)),
            64U * 512 / 2);
  // One output of a tile of four.
  Layer alone(1, 4096, [](auto, std::size_t k) { return k % 4 == 0 ? 1 : 15; });
  EXPECT_FALSE(sparse_of(alone));
}

}  // namespace
}  // namespace tac
