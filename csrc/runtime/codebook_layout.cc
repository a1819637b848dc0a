#include "runtime/codebook_layout.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/count_bits.h"
#include "kernels/codebook_i16/codebook_i16.h"
#include "kernels/codebook_sparse/codebook_sparse.h"
#include "runtime/layout.h"

namespace tac {

namespace {

using kernels::kCodebookTile;
using kernels::kCodebookWindow;
using kernels::kSparseChunk;
using kernels::kSparseGroup;
using kernels::kSparseTile;

// Entries of a step.
constexpr std::size_t kStep = 2 * kCodebookTile;

// One code a byte.
std::unique_ptr<std::uint8_t[]> unpack(std::span<const std::uint8_t> packed,
                                       std::size_t code_bits) {
  const std::size_t per_byte = 8 / code_bits;
  auto codes = std::make_unique_for_overwrite<std::uint8_t[]>(packed.size() * per_byte);
  std::uint8_t* out = codes.get();
  if (code_bits == 4) {
    for (std::size_t i = 0; i < packed.size(); ++i) {
      out[2 * i] = packed[i] & 0xFU;
      out[2 * i + 1] = packed[i] >> 4U;
    }
    return codes;
  }
  const unsigned mask = (1U << code_bits) - 1U;
  for (const std::uint8_t byte : packed) {
    for (std::size_t i = 0; i < per_byte; ++i)
      *out++ = static_cast<std::uint8_t>(byte >> (i * code_bits) & mask);
  }
  return codes;
}

// Two words of a row of `n`, the second 0 behind its end: loops over the bits of a word end half as
// often at a branch that cannot be foreseen.
std::uint64_t two_words(const std::uint32_t* words, std::size_t i, std::size_t n) noexcept {
  return words[i] | (i + 1 < n ? std::uint64_t{words[i + 1]} << 32U : 0);
}

// The weights of one lane of a tile, and how far they are scheduled.
struct Lane {
  std::vector<std::uint32_t> items;  // column, and from bit 22 on the code
  std::vector<std::uint32_t> sums;   // of the |levels| before each
  std::size_t next = 0, size = 0;

  void fill(const CodebookRows::Row& row, const std::array<std::int32_t, 16>& magnitudes,
            std::size_t padding) {
    items.resize(row.codes.size() + padding);
    sums.resize(row.codes.size() + padding + 1);
    next = size = 0;
    std::uint32_t sum = 0;
    for (std::size_t i = 0; i < row.codes.size(); ++i) {
      const std::uint8_t code = row.codes[i];
      // Overwritten by the next one where the level is 0.
      items[size] = row.positions[i] | std::uint32_t{code} << 22U;
      sums[size] = sum;
      sum += static_cast<std::uint32_t>(magnitudes[code]);
      size += magnitudes[code] != 0;
    }
    // What follows the last one never fits.
    sums[size] = sum;
    std::fill_n(sums.begin() + static_cast<std::ptrdiff_t>(size) + 1, padding, UINT32_MAX);
  }
  std::uint32_t position() const noexcept { return items[next] & 0xFFFFU; }

  // Writes the next weights that fit a group of G steps into the entries of this lane, and `fill`
  // into the others. Free of branches: what does not fit is counted, not found.
  template <std::size_t G>
  void take(std::uint32_t start, std::uint32_t fill, std::uint16_t* entries) noexcept {
    const std::uint32_t* item = items.data() + next;
    const std::uint32_t* sum = sums.data() + next;
    const std::uint32_t limit = sum[0] + static_cast<std::uint32_t>(kernels::kCodebookGroupSum);
    std::array<std::uint32_t, 2 * G> fits;
#pragma GCC unroll 8
    for (std::size_t i = 0; i < 2 * G; ++i) {
      fits[i] = static_cast<std::uint32_t>((item[i] & 0xFFFFU) - start < kCodebookWindow) &
                static_cast<std::uint32_t>(sum[i + 1] <= limit);
    }
#pragma GCC unroll 8
    for (std::size_t i = 0; i < 2 * G; ++i) {
      const std::uint32_t entry = ((item[i] & 0xFFFFU) - start) | item[i] >> 16U;
      entries[i / 2 * kStep + i % 2] =
          static_cast<std::uint16_t>(fill ^ ((entry ^ fill) & (0U - fits[i])));
      next += fits[i];
    }
  }
};

// Bit i: codes[i] is none of `dropped`. All codes are below 128.
std::uint64_t kept_of_8(const std::uint8_t* codes, std::span<const std::uint8_t> dropped) noexcept {
  constexpr std::uint64_t kOnes = 0x0101010101010101;
  std::uint64_t eight;
  std::memcpy(&eight, codes, sizeof eight);
  std::uint64_t differ = 0x80 * kOnes;  // the top bits of the bytes
  for (const std::uint8_t code : dropped) differ &= (eight ^ code * kOnes) + 0x7F * kOnes;
  // The product moves bit 8 i to bit 56 + i.
  return (differ >> 7U) * 0x0102040810204080 >> 56U;
}

// Calls use(column, which) for 64 columns at a time, bit i of `which`: the code of column + i is
// none of `dropped`.
template <class Use>
void for_each_64(const std::uint8_t* codes, std::size_t columns,
                 std::span<const std::uint8_t> dropped, const Use& use) {
  for (std::size_t first = 0; first < columns; first += 64) {
    std::uint64_t kept = 0;
    for (std::size_t i = 0; i < 64; i += 8) kept |= kept_of_8(codes + first + i, dropped) << i;
    if (columns - first < 64) kept &= (std::uint64_t{1} << (columns - first)) - 1;
    use(first, kept);
  }
}

// Of the lists of a layer.
std::size_t max_groups(std::size_t rows, std::size_t columns) noexcept {
  return rows * columns / 16 * kMaxSparseShare / (kSparseTile * kSparseGroup);
}

// Grows in place of a vector: what is written is where it stays, aligned.
template <class T>
struct Growing {
  AlignedBuffer<T> buffer;
  std::size_t size = 0;

  explicit Growing(std::size_t capacity) : buffer(capacity) {}
  T* append(std::size_t count) {
    if (size + count > buffer.size()) {
      AlignedBuffer<T> larger(buffer.size() + buffer.size() / 8 + count);
      if (size != 0) std::memcpy(larger.data(), buffer.data(), size * sizeof(T));
      buffer = std::move(larger);
    }
    T* begin = buffer.data() + size;
    size += count;
    return begin;
  }
};

// The groups made so far.
struct Groups {
  Growing<std::uint16_t> words;
  Growing<std::uint8_t> codes;
  std::vector<std::uint16_t> starts;
};

// entries [G][kStep], position | code << 6 each, to the kernel's packed form.
template <std::size_t G>
void pack_group(const std::uint16_t* entries, std::uint16_t* words, std::uint8_t* codes) noexcept {
  const auto code = [&](std::size_t step, std::size_t e) {
    return static_cast<unsigned>(entries[step * kStep + e]) >> 6U;
  };
  for (std::size_t i = 0; i < G / 2; ++i) {
    const std::uint16_t* pair = entries + 2 * i * kStep;
    for (std::size_t e = 0; e < kStep; ++e) {
      words[i * kStep + e] = static_cast<std::uint16_t>(
          (pair[e] & 63U) | (pair[kStep + e] & 63U) << 6U | code(i, e) << 12U);
    }
  }
  for (std::size_t e = 0; e < kStep; ++e) {
    codes[e] = static_cast<std::uint8_t>(code(G / 2, e) | (G == 4 ? code(3, e) << 4U : 0U));
  }
}

// Whether the tile fitted.
template <std::size_t G>
bool slice_tile(std::array<Lane, kCodebookTile>& lanes, std::size_t max_entries,
                std::uint32_t fill_code, Groups& groups) {
  std::array<std::uint16_t, G * kStep> entries;
  for (;;) {
    std::uint32_t start = UINT32_MAX;
    for (const Lane& lane : lanes)
      if (lane.next < lane.size) start = std::min(start, lane.position());
    if (start == UINT32_MAX) return true;
    if ((groups.starts.size() + 1) * entries.size() > max_entries) return false;
    for (std::size_t l = 0; l < kCodebookTile; ++l)
      lanes[l].take<G>(start, fill_code << 6U, entries.data() + 2 * l);
    groups.starts.push_back(static_cast<std::uint16_t>(start));
    pack_group<G>(entries.data(), groups.words.append(G / 2 * kStep), groups.codes.append(kStep));
  }
}

// The |levels| of the 8 lanes of each 64 inputs of a row.
using LaneSums = std::array<std::uint32_t, 8>;

// How many times 16 inputs a 32-bit sum holds; `sums` are an even number.
std::uint8_t longest_run(std::span<const LaneSums> sums, std::uint32_t max_level) {
  std::uint32_t of_64 = 0, of_128 = 0;
  for (std::size_t i = 0; i < sums.size(); i += 2) {
    for (std::size_t l = 0; l < sums[i].size(); ++l) {
      of_64 = std::max({of_64, sums[i][l], sums[i + 1][l]});
      of_128 = std::max(of_128, sums[i][l] + sums[i + 1][l]);
    }
  }
  constexpr auto kLimit = static_cast<std::uint32_t>(kernels::kCodebookGroupSum);
  return of_128 <= kLimit ? 8 : of_64 <= kLimit ? 4 : 4 * max_level <= kLimit ? 2 : 1;
}

}  // namespace

CodebookRows::CodebookRows(const CodebookLinear& op, std::size_t rows, std::size_t columns)
    : columns_(columns),
      bitmap_(op.bitmap.view()),
      codes_(unpack(op.codes.view(), static_cast<std::size_t>(op.code_bits))),
      begins_(rows + 1),
      positions_(columns) {
  if (bitmap_.empty()) {
    for (std::size_t r = 0; r <= rows; ++r) begins_[r] = r * columns;
    std::iota(positions_.begin(), positions_.end(), 0U);
    return;
  }
  const std::size_t words = ceil_div(columns, kWordBits);
  for (std::size_t r = 0; r < rows; ++r) {
    begins_[r + 1] =
        begins_[r] + static_cast<std::size_t>(count_bits(bitmap_.subspan(r * words, words)));
  }
}

CodebookRows::Row CodebookRows::row(std::size_t index) {
  if (!bitmap_.empty()) {
    const std::size_t words = ceil_div(columns_, kWordBits);
    std::uint32_t* out = positions_.data();
    for (std::size_t w = 0; w < words; w += 2) {
      const auto first = static_cast<std::uint32_t>(w * kWordBits);
      std::uint64_t word = two_words(bitmap_.data() + index * words, w, words);
      for (; word != 0; word &= word - 1)
        *out++ = first + static_cast<std::uint32_t>(std::countr_zero(word));
    }
  }
  return {codes(index), std::span(positions_).first(size(index))};
}

std::optional<SlicedCodebook> slice_codebook(CodebookRows& weights, std::size_t rows,
                                             std::size_t columns,
                                             std::span<const std::int32_t> levels) {
  // A code for entries that no weight takes.
  std::size_t fill_code = 0;
  while (fill_code < levels.size() && levels[fill_code] != 0) ++fill_code;
  const std::size_t max_entries = rows * columns / 16 * kMaxSlicedShare + 512 * kStep;
  std::size_t coded = 0;
  for (std::size_t r = 0; r < rows; ++r) coded += weights.size(r);
  if (coded > max_entries || fill_code > 15) return std::nullopt;

  SlicedCodebook sliced;
  // Sparser layers have fewer weights in a window; 4 steps take 8 of them.
  sliced.group_steps = coded * 7 >= rows * columns ? 4 : 2;
  const std::size_t per_lane = 2 * sliced.group_steps;
  std::array<std::int32_t, 16> magnitudes{};
  for (std::size_t i = 0; i < levels.size(); ++i) magnitudes[i] = std::abs(levels[i]);
  // Rows of about the same length share a tile.
  sliced.rows.resize(round_up(rows, kCodebookTile), static_cast<std::uint32_t>(rows));
  std::iota(sliced.rows.begin(), sliced.rows.begin() + static_cast<std::ptrdiff_t>(rows), 0U);
  std::stable_sort(
      sliced.rows.begin(), sliced.rows.begin() + static_cast<std::ptrdiff_t>(rows),
      [&](std::uint32_t a, std::uint32_t b) { return weights.size(a) > weights.size(b); });

  sliced.lanes.resize(rows);
  for (std::size_t i = 0; i < rows; ++i)
    sliced.lanes[sliced.rows[i]] = static_cast<std::uint32_t>(i);

  const std::size_t about = std::min(max_entries, coded + coded / 6);
  Groups groups{Growing<std::uint16_t>(about / 2), Growing<std::uint8_t>(about / per_lane * 2), {}};
  std::array<Lane, kCodebookTile> lanes;
  sliced.tiles.push_back(0);
  for (std::size_t tile = 0; tile < sliced.rows.size(); tile += kCodebookTile) {
    for (std::size_t l = 0; l < kCodebookTile; ++l) {
      const std::uint32_t r = sliced.rows[tile + l];
      lanes[l].fill(r < rows ? weights.row(r) : CodebookRows::Row{}, magnitudes, per_lane);
    }
    const auto fill = static_cast<std::uint32_t>(fill_code);
    const bool fits = sliced.group_steps == 4 ? slice_tile<4>(lanes, max_entries, fill, groups)
                                              : slice_tile<2>(lanes, max_entries, fill, groups);
    if (!fits) return std::nullopt;
    sliced.tiles.push_back(static_cast<std::uint32_t>(groups.starts.size()));
  }
  sliced.words = std::move(groups.words.buffer);
  sliced.codes = std::move(groups.codes.buffer);
  sliced.starts = std::move(groups.starts);
  return sliced;
}

void read_sliced_row(const SlicedCodebook& sliced, std::size_t row,
                     std::span<const std::int16_t> levels, std::uint8_t* codes) {
  const std::size_t tile = sliced.lanes[row] / kCodebookTile;
  const std::size_t lane = sliced.lanes[row] % kCodebookTile;
  const std::size_t half = sliced.group_steps / 2;
  for (std::size_t group = sliced.tiles[tile]; group < sliced.tiles[tile + 1]; ++group) {
    const std::uint16_t* words = sliced.words.data() + group * half * kStep;
    const std::uint8_t* more = sliced.codes.data() + group * kStep;
    std::uint8_t* from = codes + sliced.starts[group];
    for (std::size_t e = 2 * lane; e < 2 * lane + 2; ++e) {
      for (std::size_t step = 0; step < sliced.group_steps; ++step) {
        const unsigned code =
            step < half ? words[step * kStep + e] >> 12U : more[e] >> 4U * (step - half) & 15U;
        if (levels[code] == 0) continue;
        from[words[step / 2 * kStep + e] >> 6U * (step % 2) & 63U] =
            static_cast<std::uint8_t>(code);
      }
    }
  }
}

std::size_t sparse_entries(const CodebookRows& weights, std::size_t rows, std::size_t columns,
                           const std::bitset<16>& zeros) {
  std::size_t n_entries = 0;
  for (std::size_t r = 0; r < rows; ++r) {
    const auto kept = [&](std::uint8_t code) { return !zeros[code]; };
    n_entries += zeros.none()
                     ? weights.size(r)
                     : static_cast<std::size_t>(std::ranges::count_if(weights.codes(r), kept));
  }
  return n_entries > max_groups(rows, columns) * kSparseTile * kSparseGroup ? 0 : n_entries;
}

std::optional<SparseCodebook> sparse_codebook(const ReadCodes& read, std::size_t rows,
                                              std::size_t columns, const std::bitset<16>& zeros) {
  constexpr std::size_t kGroup = kSparseTile * kSparseGroup;
  const std::size_t n_tiles = ceil_div(rows, kSparseTile);
  const std::size_t n_chunks = ceil_div(columns, kSparseChunk);
  std::vector<std::uint8_t> dropped = {kNoCode};
  for (std::size_t i = 0; i < zeros.size(); ++i)
    if (zeros[i]) dropped.push_back(static_cast<std::uint8_t>(i));

  const std::size_t stride = round_up(columns, kReadAlign);
  std::vector<std::uint8_t> codes(kSparseTile * stride);
  // Calls use(tile, row of the tile, column, which) as for_each_64() does, tile by tile.
  const auto for_each_row = [&](const auto& use) {
    for (std::size_t tile = 0; tile < n_tiles; ++tile) {
      const std::size_t n_rows = std::min(kSparseTile, rows - tile * kSparseTile);
      read(tile * kSparseTile, n_rows, codes.data());
      for (std::size_t r = 0; r < n_rows; ++r) {
        for_each_64(codes.data() + r * stride, columns, dropped,
                    [&](std::size_t column, std::uint64_t which) { use(tile, r, column, which); });
      }
    }
  };

  // First the sizes, then the entries, where they stay.
  SparseCodebook sparse;
  sparse.begins.resize(n_chunks * n_tiles);
  std::vector<std::uint16_t> sizes(n_chunks * n_tiles * kSparseTile);
  for_each_row([&](std::size_t tile, std::size_t r, std::size_t column, std::uint64_t which) {
    const std::size_t piece = column / kSparseChunk * n_tiles + tile;
    std::uint16_t& size = sizes[piece * kSparseTile + r];
    size = static_cast<std::uint16_t>(size + std::popcount(which));
  });
  sparse.counts.resize(sizes.size());
  std::size_t n_groups = 0;
  for (std::size_t piece = 0; piece < sparse.begins.size(); ++piece) {
    sparse.begins[piece] = static_cast<std::uint32_t>(n_groups);
    std::uint8_t* counts = sparse.counts.data() + piece * kSparseTile;
    for (std::size_t r = 0; r < kSparseTile; ++r) {
      counts[r] = static_cast<std::uint8_t>(
          ceil_div(std::size_t{sizes[piece * kSparseTile + r]}, kSparseGroup));
    }
    n_groups += *std::max_element(counts, counts + kSparseTile);
    if (n_groups > max_groups(rows, columns)) return std::nullopt;
  }
  // One more, for the pointers of pieces without a group.
  sparse.places = AlignedBuffer<std::uint16_t>((n_groups + 1) * kGroup);
  sparse.codes = AlignedBuffer<std::uint8_t>((n_groups + 1) * kGroup / 2);
  std::fill_n(sparse.places.data(), sparse.places.size(),
              static_cast<std::uint16_t>(kernels::kSparseFill));
  std::fill(sizes.begin(), sizes.end(), std::uint16_t{0});
  for_each_row([&](std::size_t tile, std::size_t r, std::size_t column, std::uint64_t which) {
    const std::size_t piece = column / kSparseChunk * n_tiles + tile;
    const std::size_t begin = sparse.begins[piece] * kGroup + r * kSparseGroup;
    std::size_t entry = sizes[piece * kSparseTile + r];
    for (; which != 0; which &= which - 1, ++entry) {
      const std::size_t k = column + static_cast<std::size_t>(std::countr_zero(which));
      const std::size_t at = begin + entry / kSparseGroup * kGroup + entry % kSparseGroup;
      sparse.places[at] = static_cast<std::uint16_t>(k % kSparseChunk * kernels::kSparseStep);
      sparse.codes[at / 2] |= static_cast<std::uint8_t>(codes[r * stride + k] << (entry % 2 * 4));
    }
    sizes[piece * kSparseTile + r] = static_cast<std::uint16_t>(entry);
  });
  return sparse;
}

DenseCodebook dense_codebook(CodebookRows& weights, std::size_t rows, std::size_t columns,
                             std::span<const std::int32_t> levels) {
  const auto zero_code = static_cast<std::uint8_t>(levels.size());
  const std::size_t row_bytes = round_up(columns, kernels::kCodebookDenseAlign) / 2;
  DenseCodebook dense{AlignedBuffer<std::uint8_t>(rows * row_bytes),
                      std::vector<std::uint8_t>(rows)};
  std::array<std::uint32_t, 16> magnitudes{};
  for (std::size_t i = 0; i < levels.size(); ++i)
    magnitudes[i] = static_cast<std::uint32_t>(std::abs(levels[i]));
  const std::uint32_t max_level = *std::max_element(magnitudes.begin(), magnitudes.end());
  std::vector<LaneSums> sums(round_up(row_bytes / 32, 2));
  std::vector<std::uint8_t> codes(2 * row_bytes);
  for (std::size_t r = 0; r < rows; ++r) {
    const CodebookRows::Row row = weights.row(r);
    std::fill(codes.begin(), codes.end(), zero_code);
    std::fill(sums.begin(), sums.end(), LaneSums{});
    for (std::size_t i = 0; i < row.codes.size(); ++i) {
      const std::size_t k = row.positions[i];
      codes[k] = row.codes[i];
      sums[k / 64][k / 2 % 8] += magnitudes[row.codes[i]];
    }
    dense.runs[r] = longest_run(sums, max_level);
    std::uint8_t* out = dense.codes.data() + r * row_bytes;
    for (std::size_t run = 0; run < row_bytes; run += 32) {
      for (std::size_t lane = 0; lane < 2; ++lane) {
        for (std::size_t half = 0; half < 2; ++half) {
          const std::uint8_t* low = codes.data() + 2 * run + 16 * half + 8 * lane;
          for (std::size_t p = 0; p < 8; ++p) {
            out[run + 16 * lane + 8 * half + p] =
                static_cast<std::uint8_t>(low[p] | low[32 + p] << 4U);
          }
        }
      }
    }
  }
  return dense;
}

void read_dense_row(const std::uint8_t* __restrict row, std::size_t k_padded,
                    std::uint8_t* __restrict codes) {
  constexpr std::uint64_t kNibbles = 0x0F0F0F0F0F0F0F0F;
  const auto put = [](std::uint8_t* to, std::uint64_t eight) {
    std::memcpy(to, &eight, sizeof eight);
  };
  for (std::size_t run = 0; run < k_padded / 2; run += 32) {
    for (std::size_t lane = 0; lane < 2; ++lane) {
      for (std::size_t half = 0; half < 2; ++half) {
        std::uint64_t bytes;
        std::memcpy(&bytes, row + run + 16 * lane + 8 * half, sizeof bytes);
        std::uint8_t* low = codes + 2 * run + 16 * half + 8 * lane;
        put(low, bytes & kNibbles);
        put(low + 32, bytes >> 4U & kNibbles);
      }
    }
  }
}

}  // namespace tac
