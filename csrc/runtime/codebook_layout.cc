#include "runtime/codebook_layout.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "kernels/codebook_i16/codebook_i16.h"
#include "runtime/layout.h"

namespace tac {

namespace {

using kernels::kCodebookTile;
using kernels::kCodebookWindow;

// One code a byte.
std::vector<std::uint8_t> unpack(std::span<const std::uint8_t> packed, std::size_t code_bits) {
  const std::size_t per_byte = 8 / code_bits;
  std::vector<std::uint8_t> codes(packed.size() * per_byte);
  std::uint8_t* out = codes.data();
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

// The weights of one lane of a tile, and how far they are scheduled.
struct Lane {
  std::vector<std::uint32_t> positions;
  std::vector<std::uint8_t> codes;
  std::size_t next = 0, size = 0;
};

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
    std::size_t count = 0;
    for (std::size_t w = r * words; w < (r + 1) * words; ++w)
      count += static_cast<std::size_t>(std::popcount(bitmap_[w]));
    begins_[r + 1] = begins_[r] + count;
  }
}

CodebookRows::Row CodebookRows::row(std::size_t index) {
  if (!bitmap_.empty()) {
    const std::size_t words = ceil_div(columns_, kWordBits);
    std::uint32_t* out = positions_.data();
    for (std::size_t w = 0; w < words; ++w) {
      for (std::uint32_t word = bitmap_[index * words + w]; word != 0; word &= word - 1)
        *out++ = static_cast<std::uint32_t>(w * kWordBits) +
                 static_cast<std::uint32_t>(std::countr_zero(word));
    }
  }
  return {std::span(codes_).subspan(begins_[index], size(index)),
          std::span(positions_).first(size(index))};
}

std::optional<SlicedCodebook> slice_codebook(CodebookRows& weights, std::size_t rows,
                                             std::size_t columns,
                                             std::span<const std::int32_t> levels) {
  const std::size_t max_words = rows * columns / 16 * kMaxSlicedBits + 16 * 64 * kCodebookTile;
  std::size_t coded = 0;
  for (std::size_t r = 0; r < rows; ++r) coded += weights.size(r);
  if (coded > max_words) return std::nullopt;

  SlicedCodebook sliced;
  // Sparser layers have fewer weights in a window; 4 steps take 8 of them.
  sliced.group_steps = coded * 7 >= rows * columns ? 4 : 2;
  const std::size_t group_words = sliced.group_steps * 2 * kCodebookTile;
  const std::size_t per_lane = 2 * sliced.group_steps;
  std::array<std::int32_t, 16> magnitudes{};
  for (std::size_t i = 0; i < levels.size(); ++i) magnitudes[i] = std::abs(levels[i]);
  // Rows of about the same length share a tile.
  sliced.rows.resize(round_up(rows, kCodebookTile), static_cast<std::uint32_t>(rows));
  std::iota(sliced.rows.begin(), sliced.rows.begin() + static_cast<std::ptrdiff_t>(rows), 0U);
  std::stable_sort(
      sliced.rows.begin(), sliced.rows.begin() + static_cast<std::ptrdiff_t>(rows),
      [&](std::uint32_t a, std::uint32_t b) { return weights.size(a) > weights.size(b); });

  constexpr std::uint16_t kFill = 16 << 6;
  std::vector<std::uint16_t> words;
  words.reserve(coded + coded / 4);
  std::array<Lane, kCodebookTile> lanes;
  sliced.tiles.push_back(0);
  for (std::size_t tile = 0; tile < sliced.rows.size(); tile += kCodebookTile) {
    for (std::size_t l = 0; l < kCodebookTile; ++l) {
      Lane& lane = lanes[l];
      lane.next = lane.size = 0;
      const std::uint32_t r = sliced.rows[tile + l];
      if (r >= rows) continue;
      const CodebookRows::Row row = weights.row(r);
      lane.positions.resize(row.codes.size() + 1);
      lane.codes.resize(row.codes.size());
      for (std::size_t i = 0; i < row.codes.size(); ++i) {
        // Overwritten by the next one where the level is 0.
        lane.positions[lane.size] = row.positions[i];
        lane.codes[lane.size] = row.codes[i];
        lane.size += magnitudes[row.codes[i]] != 0;
      }
      lane.positions[lane.size] = UINT32_MAX;
    }
    for (;;) {
      std::uint32_t start = UINT32_MAX;
      for (std::size_t l = 0; l < kCodebookTile; ++l)
        if (lanes[l].size != 0) start = std::min(start, lanes[l].positions[lanes[l].next]);
      if (start == UINT32_MAX) break;
      const std::size_t base = words.size();
      if (base + group_words > max_words) return std::nullopt;
      words.resize(base + group_words, kFill);
      sliced.starts.push_back(static_cast<std::uint16_t>(start));
      for (std::size_t l = 0; l < kCodebookTile; ++l) {
        Lane& lane = lanes[l];
        std::uint16_t* out = words.data() + base + 2 * l;
        std::int32_t room = kernels::kCodebookGroupSum;
        const std::size_t limit = std::min(lane.size, lane.next + per_lane);
        for (std::size_t i = 0; lane.next < limit; ++i, ++lane.next) {
          const std::uint32_t k = lane.positions[lane.next] - start;
          const std::uint8_t code = lane.codes[lane.next];
          room -= magnitudes[code];
          if (k >= kCodebookWindow || room < 0) break;
          out[i / 2 * 2 * kCodebookTile + i % 2] = static_cast<std::uint16_t>(k | code << 6U);
        }
      }
    }
    sliced.tiles.push_back(static_cast<std::uint32_t>(sliced.starts.size()));
  }
  sliced.entries = AlignedBuffer<std::uint16_t>(words.size());
  if (!words.empty()) std::memcpy(sliced.entries.data(), words.data(), words.size() * 2);
  return sliced;
}

AlignedBuffer<std::uint8_t> dense_codebook(CodebookRows& weights, std::size_t rows,
                                           std::size_t columns, std::uint8_t zero_code) {
  const std::size_t row_bytes = round_up(columns, kernels::kCodebookDenseAlign) / 2;
  AlignedBuffer<std::uint8_t> packed(rows * row_bytes);
  std::vector<std::uint8_t> codes(2 * row_bytes);
  for (std::size_t r = 0; r < rows; ++r) {
    const CodebookRows::Row row = weights.row(r);
    std::fill(codes.begin(), codes.end(), zero_code);
    for (std::size_t i = 0; i < row.codes.size(); ++i) codes[row.positions[i]] = row.codes[i];
    std::uint8_t* out = packed.data() + r * row_bytes;
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
  return packed;
}

}  // namespace tac
