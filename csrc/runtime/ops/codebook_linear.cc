// Fully connected layers whose weights are codes into a small table.
#include "kernels/codebook_linear/codebook_linear.h"

#include <algorithm>

#include "runtime/layout.h"
#include "runtime/step.h"

namespace tac {

namespace {

constexpr std::size_t kTableSize = 16;
// Cut of the work, the same for any number of threads.
constexpr std::size_t kOutputsPerItem = 32;
constexpr std::size_t kRowsPerItem = 32;

// Position of feature k in the kernel's nibbles: dword k % 16 of its run of 128, nibble k / 16 % 8.
void set_code(std::uint8_t* row, std::size_t k, std::uint8_t code) noexcept {
  const std::size_t nibble = k % 128 / 16;
  row[k / 128 * 64 + k % 16 * 4 + nibble / 2] |=
      static_cast<std::uint8_t>(code << (nibble % 2 * 4));
}

class CodebookLinearStep final : public Step {
 public:
  CodebookLinearStep(const CodebookLinear& op, const PrepareContext& ctx)
      : input_(op.input), output_(op.output), kernel_(ctx.kernels().codebook_linear_f32) {
    const auto [rows, in_features] = rows_of(ctx.tensor(op.input));
    rows_ = rows;
    out_features_ = rows_of(ctx.tensor(op.output)).channels;
    const std::size_t k_padded = round_up(in_features, kernels::kCodebookKAlign);
    codes_ = AlignedBuffer<std::uint8_t>(out_features_ * k_padded / 2);
    table_ = AlignedBuffer<float>(kTableSize);
    std::copy_n(op.codebook.data(), op.codebook.size(), table_.data());
    const bool sparse = op.bitmap.size() != 0;
    // The table is zero-filled, so a free entry stands for zero; without one a mask says where the
    // zeros are.
    const bool masked = sparse && op.codebook.size() == kTableSize;
    const auto zero_code = static_cast<std::uint8_t>(masked ? 0 : op.codebook.size());
    if (masked) mask_ = AlignedBuffer<std::uint32_t>(out_features_ * k_padded / kWordBits);

    const auto code_bits = static_cast<std::size_t>(op.code_bits);
    const std::size_t bitmap_words = ceil_div(in_features, kWordBits);
    std::size_t position = 0;  // in the file's codes, in bits
    for (std::size_t o = 0; o < out_features_; ++o) {
      std::uint8_t* row = codes_.data() + o * k_padded / 2;
      for (std::size_t k = 0; k < in_features; ++k) {
        if (sparse &&
            (op.bitmap.data()[o * bitmap_words + k / kWordBits] >> (k % kWordBits) & 1) == 0) {
          set_code(row, k, zero_code);
          continue;
        }
        const unsigned byte = op.codes.data()[position / 8];
        set_code(row, k,
                 static_cast<std::uint8_t>(byte >> (position % 8) & ((1U << code_bits) - 1)));
        position += code_bits;
        if (masked) mask_[(o * k_padded + k) / kWordBits] |= 1U << (k % kWordBits);
      }
    }
    bias_ = expand(op.bias, out_features_);
    params_ = {in_features,   k_padded,    codes_.data(), masked ? mask_.data() : nullptr,
               table_.data(), bias_.data()};
    kernel = ctx.kernel_label(KernelId::codebook_linear_f32);
    macs = rows * in_features * out_features_;
    param_bytes = codes_.bytes() + mask_.bytes() + table_.bytes() + bias_.bytes();
  }

  void run(const RunContext& ctx) const noexcept override {
    const float* x = ctx.read<float>(input_);
    float* y = ctx.write<float>(output_);
    const std::size_t n_rows = ctx.n_samples * rows_,
                      chunks = ceil_div(out_features_, kOutputsPerItem);
    ctx.pool->parallel_for(
        ceil_div(n_rows, kRowsPerItem) * chunks,
        [&](std::size_t begin, std::size_t end, std::size_t) {
          for (std::size_t i = begin; i < end; ++i) {
            const std::size_t row = i / chunks * kRowsPerItem, first = i % chunks * kOutputsPerItem;
            kernel_(params_, x + row * params_.in_features, std::min(kRowsPerItem, n_rows - row),
                    params_.in_features, first, std::min(first + kOutputsPerItem, out_features_),
                    y + row * out_features_, out_features_);
          }
        });
  }

 private:
  TensorId input_, output_;
  std::size_t rows_ = 0, out_features_ = 0;
  AlignedBuffer<std::uint8_t> codes_;
  AlignedBuffer<std::uint32_t> mask_;
  AlignedBuffer<float> table_, bias_;
  kernels::CodebookLinearParams params_{};
  kernels::codebook_linear_f32_fn kernel_;
};

}  // namespace

std::unique_ptr<Step> prepare(const CodebookLinear& op, const PrepareContext& ctx) {
  return std::make_unique<CodebookLinearStep>(op, ctx);
}

}  // namespace tac
