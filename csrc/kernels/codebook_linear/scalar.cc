// codebook_linear_f32, scalar: decodes one code at a time, k ascending. The oracle of the other
// backends.
#include "kernels/backend_local.h"
#include "kernels/codebook_linear/codebook_linear.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {

void codebook_linear_f32(const CodebookLinearParams& params, const float* x, std::size_t batch,
                         std::size_t x_stride, std::size_t block_begin, std::size_t block_end,
                         float* y, std::size_t y_stride) {
  const std::size_t n_inputs = params.in_features;
  const std::size_t end = local_min(block_end * kCodebookBlock, params.out_features);
  for (std::size_t n = 0; n < batch; ++n) {
    for (std::size_t o = block_begin * kCodebookBlock; o < end; ++o) {
      const std::size_t block = o / kCodebookBlock;
      const std::size_t used = local_min(params.out_features - block * kCodebookBlock, 128);
      const std::size_t nibbles = used <= 16 ? 1 : used <= 32 ? 2 : used <= 64 ? 4 : 8;
      const std::size_t per_dword = 8 / nibbles;
      const std::size_t j = o % kCodebookBlock / 16;
      const std::size_t d = o % 16;
      const std::uint8_t* codes = params.codes + block * n_inputs * 64;
      float sum = 0.0F;
      for (std::size_t k = 0; k < n_inputs; ++k) {
        const float xk = x[n * x_stride + k];
        if (xk == 0.0F && params.skip_zeros) continue;
        const std::size_t nibble = k % per_dword * nibbles + j;
        const std::uint8_t pair = codes[k / per_dword * 64 + 4 * d + nibble / 2];
        float w = params.table[nibble % 2 == 0 ? pair & 0xFU : pair >> 4U];
        if (params.mask != nullptr) {
          const std::uint8_t* bits = params.mask + (block * n_inputs + k) * 16;
          if ((bits[2 * j + d / 8] >> (d % 8) & 1U) == 0) w = 0.0F;
        }
        sum += w * xk;
      }
      y[n * y_stride + o] = params.bias[o] + sum;
    }
  }
}

}  // namespace tac::kernels::scalar
