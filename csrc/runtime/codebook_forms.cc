#include "runtime/codebook_forms.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/codebook_i16/codebook_i16.h"
#include "runtime/layout.h"

namespace tac {

namespace {

constexpr std::size_t kRowsOfDenseItem = 16;

constexpr ListCosts kCostsBesideDense{7, 14.5};
constexpr ListCosts kCostsBesideSliced{18, 25};
constexpr ListCosts kCostsBesideBytes{12, 24};

class DenseForm final : public CodebookForm {
 public:
  DenseForm(DenseCodebook dense, std::size_t in_features, std::size_t out_features,
            const std::int16_t* table, const PrepareContext& ctx)
      : CodebookForm(KernelId::codebook_linear_i16, ceil_div(out_features, kRowsOfDenseItem)),
        dense_(std::move(dense)),
        out_features_(out_features),
        params_{in_features,         round_up(in_features, kernels::kCodebookDenseAlign),
                dense_.codes.data(), table,
                dense_.runs.data(),  nullptr},
        kernel_(ctx.kernels().codebook_linear_i16) {}

  std::size_t bytes() const noexcept override { return dense_.bytes(); }
  ListCosts list_costs(std::size_t n_entries) const noexcept override {
    return scaled(kCostsBesideDense, n_entries, out_features_ * params_.in_features);
  }
  void read_rows(const UseRow& use) const override {
    std::vector<std::uint8_t> codes(params_.k_padded);
    for (std::size_t row = 0; row < out_features_; ++row) {
      read_dense_row(params_.codes + row * params_.k_padded / 2, params_.k_padded, codes.data());
      use(row, codes.data());
    }
  }
  void multiply(std::size_t item, const Inputs& inputs, const float* bias,
                float* y) const noexcept override {
    kernels::CodebookDenseParams params = params_;
    params.bias = bias;
    const std::size_t first = item * kRowsOfDenseItem;
    kernel_(params, inputs.q, inputs.n, inputs.q_stride, inputs.units, first,
            std::min(first + kRowsOfDenseItem, out_features_), y, out_features_);
  }

 private:
  DenseCodebook dense_;
  std::size_t out_features_;
  kernels::CodebookDenseParams params_;
  kernels::codebook_linear_i16_fn kernel_;
};

// What the forms without zeros share: tiles of outputs.
template <class Codebook>
class TilesForm : public CodebookForm {
 public:
  std::size_t bytes() const noexcept final { return codebook_.bytes(); }
  void read_rows(const UseRow& use) const final {
    const std::size_t stride = round_up(in_features_, kReadAlign);
    std::vector<std::uint8_t> codes(kernels::kCodebookTile * stride);
    for (std::size_t tile = 0; tile < n_items(); ++tile) {
      std::ranges::fill(codes, kNoCode);
      read_tile(codebook_, tile, {table_, kTableSize}, stride, codes.data());
      for (std::size_t l = 0; l < kernels::kCodebookTile; ++l) {
        const std::size_t row = codebook_.rows[tile * kernels::kCodebookTile + l];
        if (row < out_features_) use(row, codes.data() + l * stride);
      }
    }
  }

 protected:
  TilesForm(KernelId kernel_id, Codebook codebook, std::size_t in_features,
            std::size_t out_features, const std::int16_t* table)
      : CodebookForm(kernel_id, codebook.rows.size() / kernels::kCodebookTile),
        codebook_(std::move(codebook)),
        in_features_(in_features),
        out_features_(out_features),
        table_(table) {}

  Codebook codebook_;
  std::size_t in_features_, out_features_;
  const std::int16_t* table_;
};

class SlicedForm final : public TilesForm<SlicedCodebook> {
 public:
  SlicedForm(SlicedCodebook sliced, std::size_t in_features, std::size_t out_features,
             const std::int16_t* table, const PrepareContext& ctx)
      : TilesForm(KernelId::codebook_linear_i16_sliced, std::move(sliced), in_features,
                  out_features, table),
        kernel_(ctx.kernels().codebook_linear_i16_sliced) {}

  ListCosts list_costs(std::size_t /*n_entries*/) const noexcept override {
    return kCostsBesideSliced;
  }
  void multiply(std::size_t item, const Inputs& inputs, const float* bias,
                float* y) const noexcept override {
    const kernels::CodebookSlicedParams params{out_features_,
                                               codebook_.group_steps,
                                               codebook_.words.data(),
                                               codebook_.codes.data(),
                                               codebook_.starts.data(),
                                               codebook_.tiles.data(),
                                               codebook_.rows.data(),
                                               table_,
                                               bias};
    kernel_(params, inputs.q, inputs.n, inputs.q_stride, inputs.units, item, item + 1, y,
            out_features_);
  }

 private:
  kernels::codebook_linear_i16_sliced_fn kernel_;
};

class BytesForm final : public TilesForm<BytesCodebook> {
 public:
  BytesForm(BytesCodebook bytes, std::size_t in_features, std::size_t out_features,
            const std::int16_t* table, const PrepareContext& ctx)
      : TilesForm(KernelId::codebook_linear_i16_bytes, std::move(bytes), in_features, out_features,
                  table),
        stride_(round_up(in_features + kernels::kCodebookBytesWindow, kernels::kSplitAlign)),
        split_(ctx.kernels().split_i16_u8),
        kernel_(ctx.kernels().codebook_linear_i16_bytes) {
    static_assert(kernels::kCodebookBytesWindow + kernels::kSplitAlign <= kernels::kCodebookWindow);
  }

  ListCosts list_costs(std::size_t n_entries) const noexcept override {
    // Lists take time for their entries, this form for its own, of which some only fill up, and
    // both for every output.
    const auto n_weights = static_cast<double>(out_features_ * in_features_);
    const double of_lists = static_cast<double>(n_entries) / n_weights;
    const double of_form =
        static_cast<double>(codebook_.starts.size() * 2 * kernels::kCodebookTile) / n_weights;
    return kCostsBesideBytes * ((of_lists + 0.05) / 0.3 / ((of_form + 0.02) / 0.354));
  }
  std::size_t row_bytes() const noexcept override { return 2 * stride_; }
  void prepare_row(const std::int16_t* q, std::byte* row) const noexcept override {
    auto* lower = reinterpret_cast<std::uint8_t*>(row);
    split_(q, stride_, lower, lower + stride_);
  }
  void multiply(std::size_t item, const Inputs& inputs, const float* bias,
                float* y) const noexcept override {
    const kernels::CodebookBytesParams params{out_features_,
                                              codebook_.entries.data(),
                                              codebook_.starts.data(),
                                              codebook_.tiles.data(),
                                              codebook_.rows.data(),
                                              table_,
                                              bias};
    kernel_(params, reinterpret_cast<const std::uint8_t*>(inputs.prepared), inputs.n, stride_,
            inputs.units, item, item + 1, y, out_features_);
  }

 private:
  std::size_t stride_;  // of lower and of upper bytes
  kernels::split_i16_u8_fn split_;
  kernels::codebook_linear_i16_bytes_fn kernel_;
};

}  // namespace

std::unique_ptr<CodebookForm> make_codebook_form(const CodebookRows& weights,
                                                 std::size_t in_features, std::size_t out_features,
                                                 std::span<const std::int32_t> levels,
                                                 const std::int16_t* table,
                                                 const PrepareContext& ctx) {
  // The forms without zeros are for registers that look inputs up; scalar's kernels are oracles.
  if (!ctx.served_by("scalar", KernelId::codebook_linear_i16_sliced)) {
    auto sliced = slice_codebook(weights, out_features, in_features, levels);
    if (sliced)
      return std::make_unique<SlicedForm>(std::move(*sliced), in_features, out_features, table,
                                          ctx);
  } else if (!ctx.served_by("scalar", KernelId::codebook_linear_i16_bytes)) {
    auto bytes = slice_codebook_to_bytes(weights, out_features, in_features, levels);
    if (bytes)
      return std::make_unique<BytesForm>(std::move(*bytes), in_features, out_features, table, ctx);
  }
  // A free code stands for zero, whose level the table is filled with.
  return std::make_unique<DenseForm>(dense_codebook(weights, out_features, in_features, levels),
                                     in_features, out_features, table, ctx);
}

}  // namespace tac
