#include "runtime/codebook_layout.h"

#include <algorithm>
#include <array>
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

using kernels::kCodebookBytesGroup;
using kernels::kCodebookBytesWindow;
using kernels::kCodebookTile;
using kernels::kCodebookWindow;
using kernels::kSparseChunk;
using kernels::kSparseGroup;
using kernels::kSparseTile;

// Entries of a step.
constexpr std::size_t kStep = 2 * kCodebookTile;
constexpr auto kGroupSum = static_cast<std::uint32_t>(kernels::kCodebookGroupSum);

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

using Magnitudes = std::array<std::uint32_t, kTableSize>;  // of the levels

// The weights of one lane of a tile, and how far they are scheduled.
struct Lane {
  static constexpr std::uint32_t kNone = std::uint32_t{1} << 24U;  // behind the last weight
  std::vector<std::uint32_t> items;                                // column << 4 | code
  const std::uint32_t* next = nullptr;

  // Row `rows`: one without weights. take() may take up to n_taken.
  void fill(const CodebookRows& weights, std::size_t row, std::size_t rows,
            const Magnitudes& magnitudes, std::size_t n_taken) {
    items.resize((row < rows ? weights.size(row) : 0) + n_taken + 1);
    std::uint32_t* item = items.data();
    if (row < rows) {
      weights.for_each(row, [&](std::size_t column, std::uint8_t code) {
        // Overwritten by the next one where the level is 0.
        *item = static_cast<std::uint32_t>(column << 4U | code);
        item += magnitudes[code] != 0;
      });
    }
    std::fill_n(item, n_taken + 1, kNone);
    next = items.data();
  }
  // kNone >> 4 behind the last one.
  std::uint32_t position() const noexcept { return *next >> 4U; }

  // Calls put(i, position in the window << 4 | code) for the next N weights that fit, put(i, fill)
  // for the others: of `window` inputs from `start` on, with |levels| that add up to `room` or
  // less. What those taken add up to. Free of branches: what does not fit is counted, not found.
  template <std::size_t N, class Put>
  std::uint32_t take(std::uint32_t start, std::uint32_t window, const Magnitudes& magnitudes,
                     std::uint32_t room, std::uint32_t fill, const Put& put) noexcept {
    const std::uint32_t* item = next;
    std::uint32_t sum = 0, taken = 0, n_fits = 0;
#pragma GCC unroll 8
    for (std::size_t i = 0; i < N; ++i) {
      const std::uint32_t entry = item[i] - (start << 4U);
      const std::uint32_t magnitude = magnitudes[item[i] & 15U];
      sum += magnitude;
      const std::uint32_t fits = static_cast<std::uint32_t>(entry < window << 4U) &
                                 static_cast<std::uint32_t>(sum <= room);
      put(i, fill ^ ((entry ^ fill) & (0U - fits)));
      taken += magnitude & (0U - fits);
      n_fits += fits;
    }
    next = item + n_fits;
    return taken;
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

// Entries of groups made so far.
struct GroupEntries {
  Growing<std::uint16_t> words;
  Growing<std::uint8_t> codes;
};

// entries [G][kStep], position << 4 | code each, to the kernel's packed form.
template <std::size_t G>
void pack_group(const std::uint16_t* entries, std::uint16_t* words, std::uint8_t* codes) noexcept {
  const auto code = [&](std::size_t step, std::size_t e) {
    return entries[step * kStep + e] & 15U;
  };
  for (std::size_t i = 0; i < G / 2; ++i) {
    const std::uint16_t* pair = entries + 2 * i * kStep;
    for (std::size_t e = 0; e < kStep; ++e) {
      const unsigned first = pair[e] >> 4U, second = pair[kStep + e] >> 4U;
      words[i * kStep + e] = static_cast<std::uint16_t>(first | second << 6U | code(i, e) << 12U);
    }
  }
  for (std::size_t e = 0; e < kStep; ++e) {
    codes[e] = static_cast<std::uint8_t>(code(G / 2, e) | (G == 4 ? code(3, e) << 4U : 0U));
  }
}

using Lanes = std::array<Lane, kCodebookTile>;

constexpr std::uint32_t kNoPosition = Lane::kNone >> 4U;
// That where nothing is left.
std::uint32_t first_position(const Lanes& lanes) noexcept {
  std::uint32_t first = kNoPosition;
  for (const Lane& lane : lanes) first = std::min(first, lane.position());
  return first;
}

// What the sliced forms of a layer begin with.
struct SlicePlan {
  std::uint32_t fill_code;  // of entries that no weight takes
  std::size_t max_entries, n_coded;
  Magnitudes magnitudes;
};

// Nothing where a form will have too many entries or all codes have a level.
std::optional<SlicePlan> plan_slices(const CodebookRows& weights, std::size_t rows,
                                     std::size_t columns, std::span<const std::int32_t> levels) {
  SlicePlan plan{0, rows * columns / 16 * kMaxSlicedShare + 512 * kStep, 0, {}};
  while (plan.fill_code < levels.size() && levels[plan.fill_code] != 0) ++plan.fill_code;
  for (std::size_t r = 0; r < rows; ++r) plan.n_coded += weights.size(r);
  if (plan.n_coded > plan.max_entries || plan.fill_code > 15) return std::nullopt;
  for (std::size_t i = 0; i < levels.size(); ++i)
    plan.magnitudes[i] = static_cast<std::uint32_t>(std::abs(levels[i]));
  return plan;
}

// Appends the groups of a tile. Whether they fitted.
template <std::size_t G>
bool slice_tile(Lanes& lanes, const SlicePlan& plan, std::vector<std::uint16_t>& starts,
                GroupEntries& to) {
  std::array<std::uint16_t, G * kStep> entries;
  for (;;) {
    const std::uint32_t start = first_position(lanes);
    if (start == kNoPosition) return true;
    if ((starts.size() + 1) * entries.size() > plan.max_entries) return false;
    for (std::size_t l = 0; l < kCodebookTile; ++l) {
      lanes[l].take<2 * G>(start, kCodebookWindow, plan.magnitudes, kGroupSum, plan.fill_code,
                           [&](std::size_t i, std::uint32_t entry) {
                             entries[i / 2 * kStep + 2 * l + i % 2] =
                                 static_cast<std::uint16_t>(entry);
                           });
    }
    starts.push_back(static_cast<std::uint16_t>(start));
    pack_group<G>(entries.data(), to.words.append(G / 2 * kStep), to.codes.append(kStep));
  }
}

// Appends the steps of a tile. Whether they fitted. There are at most 8 groups for each 16 inputs:
// a step that starts there sees all weights of them that are left, and the first one of a group
// takes two of each lane.
bool slice_tile_to_bytes(Lanes& lanes, const SlicePlan& plan, std::vector<std::uint16_t>& starts,
                         Growing<std::uint8_t>& to) {
  std::uint32_t start = first_position(lanes);
  while (start != kNoPosition) {
    if ((starts.size() + kCodebookBytesGroup) * kStep > plan.max_entries) return false;
    std::uint8_t* entries = to.append(kCodebookBytesGroup * kStep);
    std::array<std::uint32_t, kCodebookTile> room;  // that a group has left
    room.fill(kGroupSum);
    for (std::size_t step = 0; step < kCodebookBytesGroup; ++step, entries += kStep) {
      // The second one may have nothing left to take.
      const std::uint32_t first = start == kNoPosition ? 0 : start;
      starts.push_back(static_cast<std::uint16_t>(first));
      start = kNoPosition;
      for (std::size_t l = 0; l < kCodebookTile; ++l) {
        room[l] -= lanes[l].take<2>(first, kCodebookBytesWindow, plan.magnitudes, room[l],
                                    plan.fill_code, [&](std::size_t i, std::uint32_t entry) {
                                      entries[2 * l + i] = static_cast<std::uint8_t>(entry);
                                    });
        start = std::min(start, lanes[l].position());
      }
    }
  }
  return true;
}

// Deals rows to the lanes of tiles, those of about the same length to one, and calls slice(lanes)
// for each tile, which appends to to.starts, n_entries for each start, and says whether they
// fitted. False: one did not fit, or those to come cannot.
template <class Slice>
bool slice_tiles(const CodebookRows& weights, std::size_t rows, const SlicePlan& plan,
                 std::size_t n_entries, CodebookTiles& to, const Slice& slice) {
  to.rows.resize(round_up(rows, kCodebookTile), static_cast<std::uint32_t>(rows));
  const auto end = to.rows.begin() + static_cast<std::ptrdiff_t>(rows);
  std::iota(to.rows.begin(), end, 0U);
  std::stable_sort(to.rows.begin(), end, [&](std::uint32_t a, std::uint32_t b) {
    return weights.size(a) > weights.size(b);
  });

  Lanes lanes;
  std::size_t n_left = plan.n_coded;
  to.tiles.push_back(0);
  for (std::size_t tile = 0; tile < to.rows.size(); tile += kCodebookTile) {
    for (std::size_t l = 0; l < kCodebookTile; ++l) {
      const std::size_t row = to.rows[tile + l];
      lanes[l].fill(weights, row, rows, plan.magnitudes, n_entries / kCodebookTile);
      if (row < rows) n_left -= weights.size(row);
    }
    if (!slice(lanes) || to.starts.size() * n_entries + n_left > plan.max_entries) return false;
    to.tiles.push_back(static_cast<std::uint32_t>(to.starts.size()));
  }
  return true;
}

// Without a branch: which entries only fill up cannot be foreseen.
void put_code(unsigned code, std::span<const std::int16_t> levels, std::uint8_t& to) noexcept {
  const auto kept = static_cast<std::uint8_t>(levels[code] == 0 ? 0xFF : 0);
  to = static_cast<std::uint8_t>((to & kept) | (code & ~unsigned{kept}));
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
  return of_128 <= kGroupSum ? 8 : of_64 <= kGroupSum ? 4 : 4 * max_level <= kGroupSum ? 2 : 1;
}

}  // namespace

CodebookRows::CodebookRows(const CodebookLinear& op, std::size_t rows, std::size_t columns)
    : columns_(columns),
      bitmap_(op.bitmap.view()),
      codes_(unpack(op.codes.view(), static_cast<std::size_t>(op.code_bits))),
      begins_(rows + 1) {
  if (bitmap_.empty()) {
    for (std::size_t r = 0; r <= rows; ++r) begins_[r] = r * columns;
    return;
  }
  const std::size_t words = ceil_div(columns, kWordBits);
  for (std::size_t r = 0; r < rows; ++r) {
    begins_[r + 1] =
        begins_[r] + static_cast<std::size_t>(count_bits(bitmap_.subspan(r * words, words)));
  }
}

std::optional<SlicedCodebook> slice_codebook(const CodebookRows& weights, std::size_t rows,
                                             std::size_t columns,
                                             std::span<const std::int32_t> levels) {
  const std::optional<SlicePlan> plan = plan_slices(weights, rows, columns, levels);
  if (!plan) return std::nullopt;
  SlicedCodebook sliced;
  // Sparser layers have fewer weights in a window; 4 steps take 8 of them.
  sliced.group_steps = plan->n_coded * 7 >= rows * columns ? 4 : 2;
  const std::size_t per_lane = 2 * sliced.group_steps;
  const std::size_t about = std::min(plan->max_entries, plan->n_coded + plan->n_coded / 6);
  GroupEntries entries{Growing<std::uint16_t>(about / 2),
                       Growing<std::uint8_t>(about / per_lane * 2)};
  const auto slice = sliced.group_steps == 4 ? slice_tile<4> : slice_tile<2>;
  const bool fits =
      slice_tiles(weights, rows, *plan, sliced.group_steps * kStep, sliced,
                  [&](Lanes& lanes) { return slice(lanes, *plan, sliced.starts, entries); });
  if (!fits) return std::nullopt;
  sliced.words = std::move(entries.words.buffer);
  sliced.codes = std::move(entries.codes.buffer);
  return sliced;
}

std::optional<BytesCodebook> slice_codebook_to_bytes(const CodebookRows& weights, std::size_t rows,
                                                     std::size_t columns,
                                                     std::span<const std::int32_t> levels) {
  const std::optional<SlicePlan> plan = plan_slices(weights, rows, columns, levels);
  if (!plan) return std::nullopt;
  BytesCodebook bytes;
  // The sparser the layer, the fewer weights fill a window.
  const double share = static_cast<double>(plan->n_coded) / static_cast<double>(rows * columns);
  const double about = static_cast<double>(plan->n_coded) / std::min(0.4 + 1.3 * share, 0.85);
  Growing<std::uint8_t> entries(std::min(plan->max_entries, static_cast<std::size_t>(about)));
  const bool fits = slice_tiles(weights, rows, *plan, kStep, bytes, [&](Lanes& lanes) {
    return slice_tile_to_bytes(lanes, *plan, bytes.starts, entries);
  });
  if (!fits) return std::nullopt;
  bytes.entries = std::move(entries.buffer);
  return bytes;
}

void read_tile(const SlicedCodebook& sliced, std::size_t tile, std::span<const std::int16_t> levels,
               std::size_t stride, std::uint8_t* codes) {
  const std::size_t half = sliced.group_steps / 2;
  for (std::size_t group = sliced.tiles[tile]; group < sliced.tiles[tile + 1]; ++group) {
    const std::uint16_t* words = sliced.words.data() + group * half * kStep;
    const std::uint8_t* more = sliced.codes.data() + group * kStep;
    for (std::size_t e = 0; e < kStep; ++e) {
      std::uint8_t* from = codes + e / 2 * stride + sliced.starts[group];
      for (std::size_t step = 0; step < sliced.group_steps; ++step) {
        const unsigned code =
            step < half ? words[step * kStep + e] >> 12U : more[e] >> 4U * (step - half) & 15U;
        put_code(code, levels, from[words[step / 2 * kStep + e] >> 6U * (step % 2) & 63U]);
      }
    }
  }
}

void read_tile(const BytesCodebook& bytes, std::size_t tile, std::span<const std::int16_t> levels,
               std::size_t stride, std::uint8_t* codes) {
  for (std::size_t step = bytes.tiles[tile]; step < bytes.tiles[tile + 1]; ++step) {
    const std::uint8_t* entries = bytes.entries.data() + step * kStep;
    for (std::size_t e = 0; e < kStep; ++e) {
      std::uint8_t* from = codes + e / 2 * stride + bytes.starts[step];
      put_code(entries[e] & 15U, levels, from[entries[e] >> 4U]);
    }
  }
}

std::size_t sparse_entries(const CodebookRows& weights, std::size_t rows, std::size_t columns,
                           const std::bitset<kTableSize>& zeros) {
  std::size_t n_entries = 0;
  for (std::size_t r = 0; r < rows; ++r) {
    const auto kept = [&](std::uint8_t code) { return !zeros[code]; };
    n_entries += zeros.none()
                     ? weights.size(r)
                     : static_cast<std::size_t>(std::ranges::count_if(weights.codes(r), kept));
  }
  return n_entries > max_groups(rows, columns) * kSparseTile * kSparseGroup ? 0 : n_entries;
}

std::optional<SparseCodebook> sparse_codebook(const ReadRows& read, std::size_t rows,
                                              std::size_t columns,
                                              const std::bitset<kTableSize>& zeros) {
  constexpr std::size_t kGroup = kSparseTile * kSparseGroup;
  const std::size_t n_tiles = ceil_div(rows, kSparseTile);
  const std::size_t n_chunks = ceil_div(columns, kSparseChunk);
  std::vector<std::uint8_t> dropped = {kNoCode};
  for (std::size_t i = 0; i < zeros.size(); ++i)
    if (zeros[i]) dropped.push_back(static_cast<std::uint8_t>(i));

  // Calls use(row, codes, column, which) as for_each_64() does.
  const auto for_each_row = [&](const auto& use) {
    read([&](std::size_t row, const std::uint8_t* codes) {
      for_each_64(codes, columns, dropped,
                  [&](std::size_t column, std::uint64_t which) { use(row, codes, column, which); });
    });
  };

  // First the sizes, then the entries, where they stay.
  SparseCodebook sparse;
  sparse.begins.resize(n_chunks * n_tiles);
  std::vector<std::uint16_t> sizes(n_chunks * n_tiles * kSparseTile);
  for_each_row(
      [&](std::size_t row, const std::uint8_t* /*codes*/, std::size_t column, std::uint64_t which) {
        const std::size_t piece = column / kSparseChunk * n_tiles + row / kSparseTile;
        std::uint16_t& size = sizes[piece * kSparseTile + row % kSparseTile];
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
  for_each_row(
      [&](std::size_t row, const std::uint8_t* codes, std::size_t column, std::uint64_t which) {
        const std::size_t piece = column / kSparseChunk * n_tiles + row / kSparseTile;
        const std::size_t r = row % kSparseTile;
        const std::size_t begin = sparse.begins[piece] * kGroup + r * kSparseGroup;
        std::size_t entry = sizes[piece * kSparseTile + r];
        for (; which != 0; which &= which - 1, ++entry) {
          const std::size_t k = column + static_cast<std::size_t>(std::countr_zero(which));
          const std::size_t at = begin + entry / kSparseGroup * kGroup + entry % kSparseGroup;
          sparse.places[at] = static_cast<std::uint16_t>(k % kSparseChunk * kernels::kSparseStep);
          sparse.codes[at / 2] |= static_cast<std::uint8_t>(codes[k] << (entry % 2 * 4));
        }
        sizes[piece * kSparseTile + r] = static_cast<std::uint16_t>(entry);
      });
  return sparse;
}

DenseCodebook dense_codebook(const CodebookRows& weights, std::size_t rows, std::size_t columns,
                             std::span<const std::int32_t> levels) {
  const auto zero_code = static_cast<std::uint8_t>(levels.size());
  const std::size_t row_bytes = round_up(columns, kernels::kCodebookDenseAlign) / 2;
  DenseCodebook dense{AlignedBuffer<std::uint8_t>(rows * row_bytes),
                      std::vector<std::uint8_t>(rows)};
  Magnitudes magnitudes{};
  for (std::size_t i = 0; i < levels.size(); ++i)
    magnitudes[i] = static_cast<std::uint32_t>(std::abs(levels[i]));
  const std::uint32_t max_level = *std::max_element(magnitudes.begin(), magnitudes.end());
  std::vector<LaneSums> sums(round_up(row_bytes / 32, 2));
  std::vector<std::uint8_t> codes(2 * row_bytes);
  for (std::size_t r = 0; r < rows; ++r) {
    std::fill(codes.begin(), codes.end(), zero_code);
    std::fill(sums.begin(), sums.end(), LaneSums{});
    weights.for_each(r, [&](std::size_t k, std::uint8_t code) {
      codes[k] = code;
      sums[k / 64][k / 2 % 8] += magnitudes[code];
    });
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
