// From the codes of a file to the layouts of the codebook kernels.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/aligned_buffer.h"
#include "ir/ops.h"
#include "kernels/codebook_i16/codebook_i16.h"

namespace tac {

// The weights of a codebook layer, row by row, those without a code left out.
class CodebookRows {
 public:
  CodebookRows(const CodebookLinear& op, std::size_t rows, std::size_t columns);

  struct Row {
    std::span<const std::uint8_t> codes;       // one a byte, columns ascending
    std::span<const std::uint32_t> positions;  // their columns
  };
  // Rows in any order; what a call returns lasts until the next.
  Row row(std::size_t index);
  // Only the codes.
  std::span<const std::uint8_t> codes(std::size_t index) const noexcept {
    return {codes_.get() + begins_[index], size(index)};
  }
  // Weights of a row that have a code.
  std::size_t size(std::size_t index) const noexcept { return begins_[index + 1] - begins_[index]; }

 private:
  std::size_t columns_;
  std::span<const std::uint32_t> bitmap_;
  std::unique_ptr<std::uint8_t[]> codes_;
  std::vector<std::size_t> begins_;  // [rows + 1] into codes_
  std::vector<std::uint32_t> positions_;
};

// codebook_linear_i16_sliced (kernels/codebook_i16/codebook_i16.h).
struct SlicedCodebook {
  std::size_t group_steps = 0;
  AlignedBuffer<std::uint16_t> words;  // words and codes have room for more than the groups
  AlignedBuffer<std::uint8_t> codes;
  std::vector<std::uint16_t> starts;
  std::vector<std::uint32_t> tiles, rows;
  std::vector<std::uint32_t> lanes;  // where an output is in `rows`

  std::size_t bytes() const noexcept {
    return words.bytes() + codes.bytes() + 2 * starts.size() +
           4 * (tiles.size() + rows.size() + lanes.size());
  }
};

// Nothing where the sliced form would have more than kMaxSlicedShare / 16 entries per weight
// position: layers with few zeros, or with zeros that no order of the work can use. Nor where all
// 16 codes have a level.
inline constexpr std::size_t kMaxSlicedShare = 9;
std::optional<SlicedCodebook> slice_codebook(CodebookRows& weights, std::size_t rows,
                                             std::size_t columns,
                                             std::span<const std::int32_t> levels);

// Writes the codes of a row to codes [columns] where their level is not 0.
void read_sliced_row(const SlicedCodebook& sliced, std::size_t row,
                     std::span<const std::int16_t> levels, std::uint8_t* codes);

// codebook_sparse_* (kernels/codebook_sparse/codebook_sparse.h).
struct SparseCodebook {
  AlignedBuffer<std::uint16_t> places;
  AlignedBuffer<std::uint8_t> codes;
  std::vector<std::uint32_t> begins;
  std::vector<std::uint8_t> counts;

  std::size_t bytes() const noexcept {
    return places.bytes() + codes.bytes() + 4 * begins.size() + counts.size();
  }
};

// Writes the codes of rows [first, first + n) to codes [n][round_up(columns, kReadAlign)], kNoCode
// where there is none. The rows are of one tile of lists.
inline constexpr std::uint8_t kNoCode = 16;
inline constexpr std::size_t kReadAlign = kernels::kCodebookDenseAlign;
using ReadCodes =
    std::function<void(std::size_t first_row, std::size_t n_rows, std::uint8_t* codes)>;

// Weights whose code is set in `zeros` are left out. Nothing where the lists would have more than
// kMaxSparseShare / 16 entries, of 20 bits and little more, per weight position.
inline constexpr std::size_t kMaxSparseShare = 9;
std::optional<SparseCodebook> sparse_codebook(const ReadCodes& read, std::size_t rows,
                                              std::size_t columns, const std::bitset<16>& zeros);
// About how many entries they will have, from the number of weights; 0 where that alone says that
// there will be nothing.
std::size_t sparse_entries(const CodebookRows& weights, std::size_t rows, std::size_t columns,
                           const std::bitset<16>& zeros);

// codebook_linear_i16: codes [rows][round_up(columns, 64) / 2].
struct DenseCodebook {
  AlignedBuffer<std::uint8_t> codes;
  std::vector<std::uint8_t> runs;

  std::size_t bytes() const noexcept { return codes.bytes() + runs.size(); }
};
// Weights without a code get the one behind the last level.
DenseCodebook dense_codebook(CodebookRows& weights, std::size_t rows, std::size_t columns,
                             std::span<const std::int32_t> levels);
// The codes of a row and of its padding, from its bytes.
void read_dense_row(const std::uint8_t* row, std::size_t k_padded, std::uint8_t* codes);

}  // namespace tac
