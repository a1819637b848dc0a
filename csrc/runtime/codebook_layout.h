// From the codes of a file to the layouts of the codebook kernels.
#pragma once

#include <bit>
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
#include "runtime/layout.h"

namespace tac {

inline constexpr std::size_t kTableSize = 16;  // codes

// The weights of a codebook layer, row by row, those without a code left out.
class CodebookRows {
 public:
  CodebookRows(const CodebookLinear& op, std::size_t rows, std::size_t columns);

  // Calls use(column, code) for the weights of a row, columns ascending.
  template <class Use>
  void for_each(std::size_t index, const Use& use) const {
    const std::uint8_t* code = codes_.get() + begins_[index];
    if (bitmap_.empty()) {
      for (std::size_t k = 0; k < columns_; ++k) use(k, *code++);
      return;
    }
    const std::size_t n_words = ceil_div(columns_, kWordBits);
    const std::uint32_t* words = bitmap_.data() + index * n_words;
    // Two words at a time: loops over the bits of one end twice as often at a branch that cannot be
    // foreseen.
    for (std::size_t w = 0; w < n_words; w += 2) {
      std::uint64_t bits = words[w];
      if (w + 1 < n_words) bits |= std::uint64_t{words[w + 1]} << 32U;
      for (; bits != 0; bits &= bits - 1)
        use(w * kWordBits + static_cast<std::size_t>(std::countr_zero(bits)), *code++);
    }
  }
  // Only the codes, one a byte.
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
};

// What the forms without zeros share (kernels/codebook_i16/codebook_i16.h). Their buffers of
// entries have room for more than there are.
struct CodebookTiles {
  std::vector<std::uint16_t> starts;
  std::vector<std::uint32_t> tiles, rows;

  std::size_t tile_bytes() const noexcept {
    return 2 * starts.size() + 4 * (tiles.size() + rows.size());
  }
};

// codebook_linear_i16_sliced.
struct SlicedCodebook : CodebookTiles {
  std::size_t group_steps = 0;
  AlignedBuffer<std::uint16_t> words;
  AlignedBuffer<std::uint8_t> codes;

  std::size_t bytes() const noexcept { return tile_bytes() + words.bytes() + codes.bytes(); }
};

// codebook_linear_i16_bytes.
struct BytesCodebook : CodebookTiles {
  AlignedBuffer<std::uint8_t> entries;

  std::size_t bytes() const noexcept { return tile_bytes() + entries.bytes(); }
};

// Nothing where the form would have more than kMaxSlicedShare / 16 entries per weight position:
// layers with few zeros, or with zeros that no order of the work can use. Nor where all 16 codes
// have a level.
inline constexpr std::size_t kMaxSlicedShare = 9;
std::optional<SlicedCodebook> slice_codebook(const CodebookRows& weights, std::size_t rows,
                                             std::size_t columns,
                                             std::span<const std::int32_t> levels);

std::optional<BytesCodebook> slice_codebook_to_bytes(const CodebookRows& weights, std::size_t rows,
                                                     std::size_t columns,
                                                     std::span<const std::int32_t> levels);

// Write the codes of a tile to codes [kCodebookTile][stride] where their level is not 0.
void read_tile(const SlicedCodebook& sliced, std::size_t tile, std::span<const std::int16_t> levels,
               std::size_t stride, std::uint8_t* codes);
void read_tile(const BytesCodebook& bytes, std::size_t tile, std::span<const std::int16_t> levels,
               std::size_t stride, std::uint8_t* codes);

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

// Calls use(row, codes) for every row once, in any order, codes [round_up(columns, kReadAlign)]
// with kNoCode where there is none.
inline constexpr std::uint8_t kNoCode = 16;
inline constexpr std::size_t kReadAlign = kernels::kCodebookDenseAlign;
using UseRow = std::function<void(std::size_t row, const std::uint8_t* codes)>;
using ReadRows = std::function<void(const UseRow& use)>;

// Weights whose code is set in `zeros` are left out. Nothing where the lists would have more than
// kMaxSparseShare / 16 entries, of 20 bits and little more, per weight position.
inline constexpr std::size_t kMaxSparseShare = 9;
std::optional<SparseCodebook> sparse_codebook(const ReadRows& read, std::size_t rows,
                                              std::size_t columns,
                                              const std::bitset<kTableSize>& zeros);
// About how many entries they will have, from the number of weights; 0 where that alone says that
// there will be nothing.
std::size_t sparse_entries(const CodebookRows& weights, std::size_t rows, std::size_t columns,
                           const std::bitset<kTableSize>& zeros);

// codebook_linear_i16: codes [rows][round_up(columns, 64) / 2].
struct DenseCodebook {
  AlignedBuffer<std::uint8_t> codes;
  std::vector<std::uint8_t> runs;

  std::size_t bytes() const noexcept { return codes.bytes() + runs.size(); }
};
// Weights without a code get the one behind the last level.
DenseCodebook dense_codebook(const CodebookRows& weights, std::size_t rows, std::size_t columns,
                             std::span<const std::int32_t> levels);
// The codes of a row and of its padding, from its bytes.
void read_dense_row(const std::uint8_t* row, std::size_t k_padded, std::uint8_t* codes);

}  // namespace tac
