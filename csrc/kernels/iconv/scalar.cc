// conv_i16, scalar: one output value at a time. The oracle of the other backends.
#include "kernels/backend_local.h"
#include "kernels/iconv/iconv.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {
namespace {

static float sum_of(const IconvParams& p, const std::int16_t* x, const std::int16_t* w) {
  float total = 0.0F;
  std::int32_t sum = 0;
  for (std::size_t run = 0; run < p.n_runs; ++run) {
    const std::int16_t* xr = x + p.run_offsets[run];
    for (std::size_t pair = 0; pair < p.run_pairs; ++pair) {
      sum += w[0] * xr[2 * pair] + w[1] * xr[2 * pair + 1];
      w += kIconvBlock * 2;
    }
    if ((run + 1) % p.runs_per_sum == 0 || run + 1 == p.n_runs) {
      total += static_cast<float>(sum);
      sum = 0;
    }
  }
  return total;
}

}  // namespace

void conv_i16(const IconvParams& params, const std::int16_t* map, std::size_t oy_begin,
              std::size_t oy_end, std::size_t block_begin, std::size_t block_end, float* y,
              std::size_t y_stride) {
  const std::size_t block_weights = params.n_runs * params.run_pairs * kIconvBlock * 2;
  for (std::size_t oy = oy_begin; oy < oy_end; ++oy) {
    for (std::size_t ox = 0; ox < params.out_w; ++ox) {
      const std::int16_t* x = map + oy * params.line_step + ox * params.pixel_step;
      for (std::size_t block = block_begin; block < block_end; ++block) {
        for (std::size_t i = 0; i < kIconvBlock; ++i) {
          y[(block - block_begin) * kIconvBlock + i] =
              sum_of(params, x, params.weights + block * block_weights + 2 * i);
        }
      }
      y += y_stride;
    }
  }
}

}  // namespace tac::kernels::scalar
