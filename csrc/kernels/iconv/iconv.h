// Contract of conv_i16: direct convolution of 16-bit integers, vectorized over output channels. The
// same bits on every backend.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tac::kernels {

inline constexpr std::size_t kIconvBlock = 16;

// One group. The map has its padding in memory, so that every output pixel is alike: it reads
// n_runs pieces of 2 * run_pairs values, piece r from run_offsets[r] values behind its first.
//   first value of pixel (oy, ox)   map + oy * line_step + ox * pixel_step
//   weights [out_channels / 16 blocks][n_runs][run_pairs][16][2], 64-byte aligned: the pairs of the
//     16 channels of a block, 0 in channels that there are not and where a run has no value
// For output rows [oy_begin, oy_end) and the channels of blocks [block_begin, block_end), all 16 of
// each:
//   y[((oy - oy_begin) * out_w + ox) * y_stride + oc - 16 * block_begin] =
//       float(c[0]) + float(c[1]) + ...   from left to right, one rounding each
// where c[i] is the exact sum of w * x over runs_per_sum runs, the last one over what is left. Of
// the runs of a c[i], sum of |w| * max |x| <= 2^31 - 1, so that no order of adding leaves 32 bits;
// |w| <= 32767.
struct IconvParams {
  std::size_t out_w;
  std::size_t pixel_step, line_step;
  std::size_t n_runs, run_pairs, runs_per_sum;
  const std::size_t* run_offsets;
  const std::int16_t* weights;
};
using conv_i16_fn = void (*)(const IconvParams& params, const std::int16_t* map,
                             std::size_t oy_begin, std::size_t oy_end, std::size_t block_begin,
                             std::size_t block_end, float* y, std::size_t y_stride);

}  // namespace tac::kernels
