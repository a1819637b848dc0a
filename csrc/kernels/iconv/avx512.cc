// conv_i16, AVX-512 with VNNI: one register holds pairs of weights of the 16 output channels of a
// block, and vpdpwssd multiplies them by a broadcast pair of inputs and adds both to the sums. A
// tile of P pixels x B blocks keeps its sums in P * B = 24 registers, as float convolutions do
// (fconv/avx512.cc), with twice as many multiplications an instruction. Sums of 32 bits are added
// up as floats in y. Pixels of a row are tiled; rows that lie in the map as if they were one are
// one.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/iconv/iconv.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512 {
namespace {

using Pair [[gnu::aligned(2), gnu::may_alias]] = int;

template <int P, int B>
static inline void tile(const IconvParams& p, const std::int16_t* x, const std::int16_t* w,
                        float* y, std::size_t y_stride) {
  const std::size_t block_weights = p.n_runs * p.run_pairs * kIconvBlock * 2;
  for (std::size_t run = 0; run < p.n_runs;) {
    const bool is_first = run == 0;
    const std::size_t end = local_min(p.n_runs, run + p.runs_per_sum);
    __m512i sums[P][B];
#pragma GCC unroll 12
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) sums[i][b] = _mm512_setzero_si512();
    }
    for (; run < end; ++run) {
      const std::int16_t* xr = x + p.run_offsets[run];
      for (std::size_t k = 0; k < p.run_pairs; ++k) {
        __m512i wv[B];
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) wv[b] = _mm512_load_si512(w + b * block_weights);
#pragma GCC unroll 12
        for (int i = 0; i < P; ++i) {
          const __m512i xv =
              _mm512_set1_epi32(*reinterpret_cast<const Pair*>(xr + i * p.pixel_step));
#pragma GCC unroll 4
          for (int b = 0; b < B; ++b) {
            sums[i][b] = _mm512_dpwssd_epi32(sums[i][b], wv[b], xv);
            asm("" : "+v"(sums[i][b]));  // GCC 12 would move most sums through the stack
          }
        }
        w += kIconvBlock * 2;
        xr += 2;
      }
    }
#pragma GCC unroll 12
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) {
        float* to = y + i * y_stride + b * kIconvBlock;
        __m512 f = _mm512_cvtepi32_ps(sums[i][b]);
        if (!is_first) f = _mm512_add_ps(_mm512_loadu_ps(to), f);
        _mm512_storeu_ps(to, f);
      }
    }
  }
}

// tile<size, B>; size is 1..P.
template <int P, int B>
static inline void tile_of(std::size_t size, const IconvParams& p, const std::int16_t* x,
                           const std::int16_t* w, float* y, std::size_t y_stride) {
  if constexpr (P > 1) {
    if (size < static_cast<std::size_t>(P)) return tile_of<P - 1, B>(size, p, x, w, y, y_stride);
  }
  tile<P, B>(p, x, w, y, y_stride);
}

// n_rows rows of n_pixels, each in tiles of about equal size: 14 pixels are 5 + 5 + 4 and not 6 + 6
// + 2.
template <int P, int B>
static void rows_of_blocks(const IconvParams& p, const std::int16_t* map, std::size_t n_rows,
                           std::size_t n_pixels, const std::int16_t* w, float* y,
                           std::size_t y_stride) {
  for (std::size_t row = 0; row < n_rows; ++row) {
    const std::int16_t* x = map + row * p.line_step;
    std::size_t pixels = n_pixels;
    for (std::size_t left = local_ceil_div(pixels, P); left > 0; --left) {
      const std::size_t size = local_ceil_div(pixels, left);
      tile_of<P, B>(size, p, x, w, y, y_stride);
      x += size * p.pixel_step;
      y += size * y_stride;
      pixels -= size;
    }
  }
}

}  // namespace

void conv_i16(const IconvParams& params, const std::int16_t* map, std::size_t oy_begin,
              std::size_t oy_end, std::size_t block_begin, std::size_t block_end, float* y,
              std::size_t y_stride) {
  const std::size_t block_weights = params.n_runs * params.run_pairs * kIconvBlock * 2;
  std::size_t n_rows = oy_end - oy_begin, n_pixels = params.out_w;
  map += oy_begin * params.line_step;
  if (params.line_step == params.out_w * params.pixel_step) {
    n_pixels *= n_rows;
    n_rows = 1;
  }
  for (std::size_t block = block_begin, n; block < block_end; block += n) {
    const std::size_t left = block_end - block;
    const std::int16_t* w = params.weights + block * block_weights;
    float* to = y + (block - block_begin) * kIconvBlock;
    n = left == 3 || left == 5 || left == 6 ? 3 : left >= 4 ? 4 : left;
    switch (n) {
      case 4: rows_of_blocks<6, 4>(params, map, n_rows, n_pixels, w, to, y_stride); break;
      case 3: rows_of_blocks<8, 3>(params, map, n_rows, n_pixels, w, to, y_stride); break;
      case 2: rows_of_blocks<12, 2>(params, map, n_rows, n_pixels, w, to, y_stride); break;
      default: rows_of_blocks<12, 1>(params, map, n_rows, n_pixels, w, to, y_stride); break;
    }
  }
}

}  // namespace tac::kernels::avx512
