// conv_i16, AVX2: two registers hold pairs of weights of the 16 output channels of a block. A step
// is one pair of inputs, broadcast: vpmaddwd multiplies both and adds them, vpaddd adds to the sum.
// A tile of P pixels x B blocks keeps its sums in P * B * 2 registers; the largest, 6 x 1, does 192
// multiplications in 2 loads, 6 broadcasts, 12 vpmaddwd and 12 vpaddd, where float32 needs 12 FMAs
// for 96. Sums of 32 bits are added up as floats in y. Pixels are tiled whatever their row. Up to 3
// pixels take several blocks at a time, so that the sums do not wait for each other.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/iconv/iconv.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {
namespace {

using Pair [[gnu::aligned(2), gnu::may_alias]] = int;

// Alone in its function, or else the pointers are not kept in registers.
template <int P, int B>
[[gnu::noinline]] static void tile(const IconvParams& p, const std::int16_t* const* x,
                                   const std::int16_t* w, float* const* y) {
  const std::size_t n_pairs = p.run_pairs;
  const std::size_t block_weights = p.n_runs * n_pairs * kIconvBlock * 2;
  for (std::size_t run = 0; run < p.n_runs;) {
    const bool is_first = run == 0;
    const std::size_t end = local_min(p.n_runs, run + p.runs_per_sum);
    __m256i low[P][B];
    __m256i high[P][B];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
#pragma GCC unroll 6
      for (int i = 0; i < P; ++i) low[i][b] = high[i][b] = _mm256_setzero_si256();
    }
    for (; run < end; ++run) {
      const Pair* xr[P];
#pragma GCC unroll 6
      for (int i = 0; i < P; ++i) xr[i] = reinterpret_cast<const Pair*>(x[i] + p.run_offsets[run]);
#pragma GCC unroll 4
      for (std::size_t k = 0; k < n_pairs; ++k) {
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
          const auto* wb = reinterpret_cast<const __m256i*>(w + b * block_weights);
          const __m256i w0 = _mm256_load_si256(wb);
          const __m256i w1 = _mm256_load_si256(wb + 1);
#pragma GCC unroll 6
          for (int i = 0; i < P; ++i) {
            const __m256i xv = _mm256_set1_epi32(xr[i][k]);
            low[i][b] = _mm256_add_epi32(low[i][b], _mm256_madd_epi16(w0, xv));
            high[i][b] = _mm256_add_epi32(high[i][b], _mm256_madd_epi16(w1, xv));
          }
        }
        w += kIconvBlock * 2;
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < P; ++i) {
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) {
        float* to = y[i] + b * kIconvBlock;
        __m256 f0 = _mm256_cvtepi32_ps(low[i][b]);
        __m256 f1 = _mm256_cvtepi32_ps(high[i][b]);
        if (!is_first) {
          f0 = _mm256_add_ps(_mm256_loadu_ps(to), f0);
          f1 = _mm256_add_ps(_mm256_loadu_ps(to + 8), f1);
        }
        _mm256_storeu_ps(to, f0);
        _mm256_storeu_ps(to + 8, f1);
      }
    }
  }
}

// tile<size, B>; size is 1..P.
template <int P, int B>
static inline void tile_of(std::size_t size, const IconvParams& p, const std::int16_t* const* x,
                           const std::int16_t* w, float* const* y) {
  if constexpr (P > 1) {
    if (size < static_cast<std::size_t>(P)) return tile_of<P - 1, B>(size, p, x, w, y);
  }
  tile<P, B>(p, x, w, y);
}

// n_pixels from the one at `map` on, which begins a row, in tiles of about equal size: 14 pixels
// are 5 + 5 + 4 and not 6 + 6 + 2.
template <int P, int B>
static void tiles(const IconvParams& p, const std::int16_t* map, std::size_t n_pixels,
                  const std::int16_t* w, float* y, std::size_t y_stride) {
  std::size_t column = 0;
  for (std::size_t left = local_ceil_div(n_pixels, P); left > 0; --left) {
    const std::size_t size = local_ceil_div(n_pixels, left);
    const std::int16_t* xs[P];
    float* ys[P];
    for (std::size_t i = 0; i < size; ++i) {
      xs[i] = map + column * p.pixel_step;
      ys[i] = y;
      y += y_stride;
      if (++column == p.out_w) {
        column = 0;
        map += p.line_step;
      }
    }
    tile_of<P, B>(size, p, xs, w, ys);
    n_pixels -= size;
  }
}

}  // namespace

void conv_i16(const IconvParams& params, const std::int16_t* map, std::size_t oy_begin,
              std::size_t oy_end, std::size_t block_begin, std::size_t block_end, float* y,
              std::size_t y_stride) {
  const std::size_t n_pixels = (oy_end - oy_begin) * params.out_w;
  const std::size_t block_weights = params.n_runs * params.run_pairs * kIconvBlock * 2;
  map += oy_begin * params.line_step;
  std::size_t n = 0;
  for (std::size_t block = block_begin; block < block_end; block += n) {
    const std::size_t left = block_end - block;
    const std::int16_t* w = params.weights + block * block_weights;
    float* to = y + (block - block_begin) * kIconvBlock;
    n = n_pixels == 1 && left >= 4 ? 4 : n_pixels <= 3 && left >= 2 ? 2 : 1;
    switch (n) {
      case 4: tiles<1, 4>(params, map, n_pixels, w, to, y_stride); break;
      case 2: tiles<3, 2>(params, map, n_pixels, w, to, y_stride); break;
      default: tiles<6, 1>(params, map, n_pixels, w, to, y_stride); break;
    }
  }
}

}  // namespace tac::kernels::avx2
