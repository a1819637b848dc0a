#include "runtime/codebook_lists.h"

#include <optional>
#include <utility>

namespace tac {

ListCosts scaled(const ListCosts& costs, std::size_t n_entries, std::size_t n_weights) noexcept {
  const double share = static_cast<double>(n_entries) / static_cast<double>(n_weights);
  return costs * ((share + 0.02) / 0.27);
}

std::size_t bytes_of_tile(const ListCosts& costs, std::size_t n_entries) noexcept {
  return costs.narrow < ListCosts::kNarrow ? n_entries * 5 / 2 : 0;
}

SparseLists::SparseLists(const ListCosts& costs, std::size_t in_features, std::size_t out_features,
                         const std::bitset<kTableSize>& zeros, std::size_t n_values,
                         const float* bias, std::string kernel)
    : costs_(costs),
      zeros_(zeros | std::bitset<kTableSize>().set() << n_values),
      kernel_(std::move(kernel)) {
  params_.in_features = in_features;
  params_.out_features = out_features;
  params_.bias = bias;
}

void SparseLists::make_for(std::size_t n_rows, const ReadRows& read) const {
  if (rows_over_lists(n_rows) == 0) return;
  std::call_once(made_, [&] {
    std::optional<SparseCodebook> lists =
        sparse_codebook(read, params_.out_features, params_.in_features, zeros_);
    if (!lists) return;
    lists_ = std::move(*lists);
    params_.places = lists_.places.data();
    params_.codes = lists_.codes.data();
    params_.begins = lists_.begins.data();
    params_.counts = lists_.counts.data();
  });
}

std::size_t SparseLists::rows_taken(std::size_t n_rows) const noexcept {
  const std::size_t n_sparse = rows_over_lists(n_rows);
  return n_sparse != 0 && params_.begins != nullptr ? n_sparse : 0;
}

std::string SparseLists::kernels_for(std::size_t n_rows, const std::string& other) const {
  const std::size_t n_sparse = rows_taken(n_rows);
  if (n_sparse == 0) return other;
  return n_sparse == n_rows ? kernel_ : kernel_ + ", " + other;
}

std::size_t SparseLists::rows_over_lists(std::size_t n_rows) const noexcept {
  const std::size_t left = n_rows % kernels::kSparseSamples;
  const std::size_t narrow = std::min(left, ListCosts::kNarrow);
  const double without = static_cast<double>(left);
  const double with_narrow = costs_.narrow + static_cast<double>(left - narrow);
  if (costs_.wide < std::min(without, with_narrow)) return n_rows;
  return n_rows - left + (with_narrow < without ? narrow : 0);
}

}  // namespace tac
