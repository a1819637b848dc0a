// conv_f32, AVX2: two registers hold the 16 output channels of a block; a tile of P pixels x B
// blocks keeps its sums in P * B * 2 registers, so each step (one tap, one input channel) of the
// largest, 6 x 1, is 2 weight loads, 6 broadcasts and 12 FMAs. Pixels are tiled together where they
// see the same taps, whatever their row:
//
//     f t t t t t t g      top row: 6 pixels t make a tile, f and g are alone
//     l a a a a a a r
//     l a a a a a a r      18 pixels a make 3 tiles, the columns l and r one each
//     l a a a a a a r
//
// Up to 3 pixels take several blocks at a time, so that 8 sums and more hide the latency of the
// FMAs. Accumulation: bias first, then taps in (ky, kx, channel) order, one FMA each, whatever the
// tile. 3x3 128 -> 128 at 16 x 16: 44 GMAC/s on one core of a Zen 3 EPYC that can do 45.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/fconv/fconv.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {
namespace {

// Output pixels that see the same taps, n_columns of a row each, and where these taps lie: n_rows
// kernel rows, each n_runs pieces of run_len values that are contiguous both in the input and in
// the weights (all of a kernel row, where dilation and groups leave no gaps). Steps are in floats.
struct Region {
  std::size_t n_pixels, n_columns;
  std::size_t x_column_step, x_line_step, out_column_step, out_line_step;
  std::size_t n_rows, n_runs, run_len;
  std::size_t x_row_step, x_run_step, w_row_step, w_run_step, w_block_step;
};

// Alone in its function, or else the pointers are not kept in registers.
template <int P, int B>
[[gnu::noinline]] static void tile(const Region& r, const float* const* x, const float* w,
                                   const float* bias, std::size_t last_channels,
                                   float* const* out) {
  __m256 low[P][B];
  __m256 high[P][B];
#pragma GCC unroll 4
  for (int b = 0; b < B; ++b) {
#pragma GCC unroll 6
    for (int i = 0; i < P; ++i) {
      low[i][b] = _mm256_loadu_ps(bias + b * kConvBlock);
      high[i][b] = _mm256_loadu_ps(bias + b * kConvBlock + 8);
    }
  }
  const std::size_t run_len = r.run_len;
  for (std::size_t row = 0; row < r.n_rows; ++row) {
    for (std::size_t run = 0; run < r.n_runs; ++run) {
      const float* wr = w + row * r.w_row_step + run * r.w_run_step;
      const float* xr[P];
#pragma GCC unroll 6
      for (int i = 0; i < P; ++i) xr[i] = x[i] + row * r.x_row_step + run * r.x_run_step;
// Where the core's other hardware thread takes half of the issue slots, each instruction saved
// counts.
#pragma GCC unroll 4
      for (std::size_t k = 0; k < run_len; ++k) {
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) {
          const __m256 w0 = _mm256_load_ps(wr + b * r.w_block_step);
          const __m256 w1 = _mm256_load_ps(wr + b * r.w_block_step + 8);
#pragma GCC unroll 6
          for (int i = 0; i < P; ++i) {
            const __m256 xv = _mm256_broadcast_ss(xr[i] + k);
            low[i][b] = _mm256_fmadd_ps(w0, xv, low[i][b]);
            high[i][b] = _mm256_fmadd_ps(w1, xv, high[i][b]);
          }
        }
        wr += kConvBlock;
      }
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < P; ++i) {
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
      float* y = out[i] + b * kConvBlock;
      if (b < B - 1 || last_channels == kConvBlock) {
        _mm256_storeu_ps(y, low[i][b]);
        _mm256_storeu_ps(y + 8, high[i][b]);
      } else {
        alignas(32) float values[kConvBlock];
        _mm256_store_ps(values, low[i][b]);
        _mm256_store_ps(values + 8, high[i][b]);
        for (std::size_t c = 0; c < last_channels; ++c) y[c] = values[c];
      }
    }
  }
}

// tile<size, B>; size is 1..P.
template <int P, int B>
static inline void tile_of(std::size_t size, const Region& r, const float* const* x, const float* w,
                           const float* bias, std::size_t last_channels, float* const* out) {
  if constexpr (P > 1) {
    if (size < static_cast<std::size_t>(P)) {
      return tile_of<P - 1, B>(size, r, x, w, bias, last_channels, out);
    }
  }
  tile<P, B>(r, x, w, bias, last_channels, out);
}

// The pixels of a region, from the first taps `x` of its first pixel, in tiles of about equal size:
// 14 pixels are 5 + 5 + 4 and not 6 + 6 + 2.
template <int P, int B>
static void tiles(const Region& r, const float* x, const float* w, const float* bias,
                  std::size_t last_channels, float* out) {
  std::size_t n_pixels = r.n_pixels, column = 0;
  for (std::size_t left = local_ceil_div(n_pixels, P); left > 0; --left) {
    const std::size_t size = local_ceil_div(n_pixels, left);
    const float* xs[P];
    float* outs[P];
    for (std::size_t i = 0; i < size; ++i) {
      xs[i] = x + column * r.x_column_step;
      outs[i] = out + column * r.out_column_step;
      if (++column == r.n_columns) {
        column = 0;
        x += r.x_line_step;
        out += r.out_line_step;
      }
    }
    tile_of<P, B>(size, r, xs, w, bias, last_channels, outs);
    n_pixels -= size;
  }
}

static void region(const ConvParams& p, const Region& r, const float* x, std::size_t first_tap,
                   std::size_t block_begin, std::size_t block_end, float* out) {
  std::size_t n = 0;
  for (std::size_t block = block_begin; block < block_end; block += n) {
    const std::size_t left = block_end - block;
    const float* w = p.weights + block * r.w_block_step + first_tap * p.in_channels * kConvBlock;
    const float* bias = p.bias + block * kConvBlock;
    float* y = out + block * kConvBlock;
    n = r.n_pixels == 1 && left >= 4 ? 4 : r.n_pixels <= 3 && left >= 2 ? 2 : 1;
    const std::size_t last_channels =
        local_min(kConvBlock, p.out_channels - (block + n - 1) * kConvBlock);
    switch (n) {
      case 4: tiles<1, 4>(r, x, w, bias, last_channels, y); break;
      case 2: tiles<3, 2>(r, x, w, bias, last_channels, y); break;
      default: tiles<6, 1>(r, x, w, bias, last_channels, y); break;
    }
  }
}

static LocalTapRange taps_of_row(const ConvParams& p, std::size_t oy) {
  return local_tap_range(
      static_cast<std::ptrdiff_t>(oy * p.stride_h) - static_cast<std::ptrdiff_t>(p.pad_top),
      p.kernel_h, p.dilation_h, 0, static_cast<std::ptrdiff_t>(p.in_h));
}

// n_lines output rows from oy on, which see the kernel rows ky.
static void lines(const ConvParams& p, const float* input, std::size_t oy, std::size_t n_lines,
                  LocalTapRange ky, std::size_t block_begin, std::size_t block_end, float* out,
                  std::size_t out_stride) {
  const std::size_t tap_step = p.in_channels * kConvBlock;
  Region r;
  r.x_column_step = p.stride_w * p.pixel_stride;
  r.x_line_step = p.stride_h * p.in_w * p.pixel_stride;
  r.out_column_step = out_stride;
  r.out_line_step = p.out_w * out_stride;
  r.n_rows = ky.end - ky.begin;
  r.x_row_step = p.dilation_h * p.in_w * p.pixel_stride;
  r.x_run_step = p.dilation_w * p.pixel_stride;
  r.w_row_step = p.kernel_w * tap_step;
  r.w_run_step = tap_step;
  r.w_block_step = p.kernel_h * p.kernel_w * tap_step;
  const bool contiguous = p.dilation_w == 1 && p.pixel_stride == p.in_channels;

  // First row of taps; without any (n_rows 0) the pointer stays at the map and is not read.
  const float* x_row = r.n_rows == 0
                           ? input
                           : input + (oy * p.stride_h + ky.begin * p.dilation_h - p.pad_top) *
                                         p.in_w * p.pixel_stride;
  const LocalTapRange full =
      local_full_windows(p.out_w, p.stride_w, p.pad_left, p.dilation_w, p.kernel_w, p.in_w);
  for (std::size_t ox = 0; ox < p.out_w; ox += r.n_columns) {
    const std::ptrdiff_t ix0 =
        static_cast<std::ptrdiff_t>(ox * p.stride_w) - static_cast<std::ptrdiff_t>(p.pad_left);
    const LocalTapRange kx =
        local_tap_range(ix0, p.kernel_w, p.dilation_w, 0, static_cast<std::ptrdiff_t>(p.in_w));
    const std::size_t n_taps = kx.end - kx.begin;
    r.n_runs = contiguous ? (n_taps > 0 ? 1 : 0) : n_taps;
    r.run_len = contiguous ? n_taps * p.in_channels : p.in_channels;
    r.n_columns = ox >= full.begin && ox < full.end ? full.end - ox : 1;
    r.n_pixels = n_lines * r.n_columns;
    const float* x =
        n_taps == 0
            ? x_row
            : x_row + (ox * p.stride_w + kx.begin * p.dilation_w - p.pad_left) * p.pixel_stride;
    region(p, r, x, ky.begin * p.kernel_w + kx.begin, block_begin, block_end,
           out + ox * out_stride);
  }
}

}  // namespace

void conv_f32(const ConvParams& params, const float* input, std::size_t oy_begin,
              std::size_t oy_end, std::size_t block_begin, std::size_t block_end, float* out,
              std::size_t out_stride) {
  for (std::size_t oy = oy_begin; oy < oy_end;) {
    const LocalTapRange ky = taps_of_row(params, oy);
    std::size_t n_lines = 1;
    for (; oy + n_lines < oy_end; ++n_lines) {
      const LocalTapRange next = taps_of_row(params, oy + n_lines);
      if (next.begin != ky.begin || next.end != ky.end) break;
    }
    lines(params, input, oy, n_lines, ky, block_begin, block_end, out, out_stride);
    oy += n_lines;
    out += n_lines * params.out_w * out_stride;
  }
}

}  // namespace tac::kernels::avx2
