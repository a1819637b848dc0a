// Codebook layers as lists of weights, for batches.
#pragma once

#include <algorithm>
#include <bitset>
#include <cstddef>
#include <mutex>
#include <string>

#include "base/thread_pool.h"
#include "kernels/codebook_linear/codebook_linear.h"
#include "kernels/codebook_sparse/codebook_sparse.h"
#include "runtime/codebook_layout.h"
#include "runtime/layout.h"

namespace tac {

// Of an item that goes over lists, at most and at least: turning the inputs around is worth it for
// many outputs, and every thread wants an item. The least is a block of the dense form of floats.
inline constexpr std::size_t kMaxSparseTiles = 128;
inline constexpr std::size_t kMinSparseTiles = kernels::kCodebookBlock / kernels::kSparseTile;

// What a call over lists costs, in samples of the layer's other form: for up to kNarrow samples and
// for kSparseSamples. The figures are of layers of which a quarter of the weights is not zero,
// docs/performance.md.
struct ListCosts {
  static constexpr std::size_t kNarrow = 16;
  double narrow, wide;

  // Whether any batch goes over lists.
  bool pay() const noexcept { return wide < static_cast<double>(kernels::kSparseSamples); }
  ListCosts operator*(double factor) const noexcept { return {narrow * factor, wide * factor}; }
};
// Beside a form that takes as long for zeros as for the other weights, of which there are
// n_entries.
ListCosts scaled(const ListCosts& costs, std::size_t n_entries, std::size_t n_weights) noexcept;
// Of the lists, about what a tile of a batch reads: the engine makes them as large as
// ListCosts::kNarrow for it, so nothing where lists want more.
std::size_t bytes_of_tile(const ListCosts& costs, std::size_t n_entries) noexcept;

// The layer as lists, made from its other form when the first batch comes.
class SparseLists {
 public:
  // Weights whose code is set in `zeros` are left out, and so are those of no value, whose code is
  // n_values or more.
  SparseLists(const ListCosts& costs, std::size_t in_features, std::size_t out_features,
              const std::bitset<kTableSize>& zeros, std::size_t n_values, const float* bias,
              std::string kernel);

  // Makes the lists if n_rows samples would go over them, once.
  void make_for(std::size_t n_rows, const ReadRows& read) const;

  // Of n_rows samples for which the lists are made, if they pay, those that go over them.
  std::size_t rows_taken(std::size_t n_rows) const noexcept;
  // The kernels that are called, `other` where samples are left.
  std::string kernels_for(std::size_t n_rows, const std::string& other) const;
  std::size_t bytes_for(std::size_t n_rows) const noexcept {
    return rows_taken(n_rows) == 0 ? 0 : lists_.bytes();
  }

  const kernels::CodebookSparseParams& params() const noexcept { return params_; }
  std::size_t thread_scratch_bytes() const noexcept {
    return kernels::sparse_scratch_bytes(std::min(kMaxSparseTiles, n_tiles()));
  }

  // Calls use(first row, rows, first tile, tile end, thread) for each part of the work.
  template <class Use>
  void for_each_item(ThreadPool& pool, std::size_t n_rows, const Use& use) const {
    const std::size_t groups = ceil_div(n_rows, kernels::kSparseSamples);
    // An output does not depend on the cut.
    const std::size_t tiles =
        std::clamp(round_up(n_tiles() * groups / pool.size(), kMinSparseTiles), kMinSparseTiles,
                   kMaxSparseTiles);
    const std::size_t parts = ceil_div(n_tiles(), tiles);
    pool.parallel_for(groups * parts, [&](std::size_t begin, std::size_t end, std::size_t thread) {
      for (std::size_t i = begin; i < end; ++i) {
        const std::size_t row = i / parts * kernels::kSparseSamples, tile = i % parts * tiles;
        use(row, std::min(kernels::kSparseSamples, n_rows - row), tile,
            std::min(tile + tiles, n_tiles()), thread);
      }
    });
  }

 private:
  std::size_t n_tiles() const noexcept {
    return ceil_div(params_.out_features, kernels::kSparseTile);
  }
  // The samples at the front that go over lists; none only where fewer do not either.
  std::size_t rows_over_lists(std::size_t n_rows) const noexcept;

  ListCosts costs_;
  std::bitset<kTableSize> zeros_;
  std::string kernel_;
  mutable std::once_flag made_;
  mutable SparseCodebook lists_;
  mutable kernels::CodebookSparseParams params_{};  // without lists until they are made
};

}  // namespace tac
