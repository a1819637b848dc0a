// codebook_linear_f32, scalar: decodes one code at a time, k ascending. The oracle of the other
// backends.
#include "kernels/backend_local.h"
#include "kernels/codebook_linear/codebook_linear.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {
namespace {

// Nibble j of dword d of a run holds k = 16 * j + d; a dword is stored little end first.
static inline std::size_t code_of(const std::uint8_t* row_codes, std::size_t k) {
  const std::size_t j = k % 128 / 16;
  const std::size_t d = k % 16;
  const std::uint8_t pair = row_codes[k / 128 * 64 + 4 * d + j / 2];
  return j % 2 == 0 ? pair & 0xFU : pair >> 4U;
}

}  // namespace

void codebook_linear_f32(const CodebookLinearParams& params, const float* x, std::size_t batch,
                         std::size_t x_stride, std::size_t row_begin, std::size_t row_end, float* y,
                         std::size_t y_stride) {
  for (std::size_t n = 0; n < batch; ++n) {
    for (std::size_t row = row_begin; row < row_end; ++row) {
      const std::uint8_t* codes = params.codes + row * (params.k_padded / 2);
      const std::uint32_t* mask =
          params.mask == nullptr ? nullptr : params.mask + row * (params.k_padded / 32);
      float sum = params.bias[row];
      for (std::size_t k = 0; k < params.in_features; ++k) {
        const bool zero = mask != nullptr && (mask[k / 32] >> (k % 32) & 1U) == 0;
        sum += (zero ? 0.0F : params.table[code_of(codes, k)]) * x[n * x_stride + k];
      }
      y[n * y_stride + row] = sum;
    }
  }
}

}  // namespace tac::kernels::scalar
