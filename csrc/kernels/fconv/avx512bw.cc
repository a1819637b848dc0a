// conv_f32, AVX-512: one register holds the 16 output channels of a block; a tile of P pixels x B
// blocks keeps its sums in P * B = 24 registers, so each step (one tap, one input channel) is B
// weight loads, P broadcasts and 24 FMAs:
//
//               block 0   block 1   block 2   block 3       P x B: 6 x 4, 8 x 3, 12 x 2, 12 x 1
//     pixel 0   += w0*x0  += w1*x0  += w2*x0  += w3*x0
//     ...
//     pixel 5   += w0*x5  ...
//
// Pixels that see every tap of a kernel row are tiled. Pixels at the left and right border, which
// see fewer taps, go one by one. The rows of a pointwise convolution are one long row.
// Accumulation: bias first, then taps in (ky, kx, channel) order,
// one FMA each, whatever the tile. 3x224x224 -> 64, 7x7 stride 2: 56 GMAC/s on one core of a Zen 4
// EPYC that can do 59.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/fconv/fconv.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512bw {
namespace {

// Where the taps of a tile lie: n_rows kernel rows, each n_runs pieces of run_len values that are
// contiguous both in the input and in the weights (all of a kernel row, where dilation and groups
// leave no gaps). Steps are in floats.
struct Runs {
  std::size_t n_rows, n_runs, run_len;
  std::size_t x_row_step, x_run_step, x_pixel_step;
  std::size_t w_row_step, w_run_step, w_block_step;
};

template <int P, int B>
static inline void tile(const Runs& r, const float* x, const float* w, const float* bias,
                        __mmask16 last_mask, float* out, std::size_t out_stride) {
  __m512 acc[P][B];
#pragma GCC unroll 4
  for (int b = 0; b < B; ++b) {
    const __m512 start = _mm512_loadu_ps(bias + b * kConvBlock);
#pragma GCC unroll 12
    for (int i = 0; i < P; ++i) acc[i][b] = start;
  }
  for (std::size_t row = 0; row < r.n_rows; ++row) {
    for (std::size_t run = 0; run < r.n_runs; ++run) {
      const float* xr = x + row * r.x_row_step + run * r.x_run_step;
      const float* wr = w + row * r.w_row_step + run * r.w_run_step;
      for (std::size_t k = 0; k < r.run_len; ++k) {
        __m512 wv[B];
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) wv[b] = _mm512_load_ps(wr + b * r.w_block_step);
#pragma GCC unroll 12
        for (int i = 0; i < P; ++i) {
          const __m512 xv = _mm512_set1_ps(xr[i * r.x_pixel_step]);
#pragma GCC unroll 4
          for (int b = 0; b < B; ++b) acc[i][b] = _mm512_fmadd_ps(wv[b], xv, acc[i][b]);
        }
        wr += kConvBlock;
        ++xr;
      }
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < P; ++i) {
#pragma GCC unroll 4
    for (int b = 0; b < B - 1; ++b)
      _mm512_storeu_ps(out + i * out_stride + b * kConvBlock, acc[i][b]);
    _mm512_mask_storeu_ps(out + i * out_stride + (B - 1) * kConvBlock, last_mask, acc[i][B - 1]);
  }
}

// tile<size, B>; size is 1..P.
template <int P, int B>
static inline void tile_of(std::size_t size, const Runs& r, const float* x, const float* w,
                           const float* bias, __mmask16 last_mask, float* out,
                           std::size_t out_stride) {
  if constexpr (P > 1) {
    if (size < static_cast<std::size_t>(P)) {
      return tile_of<P - 1, B>(size, r, x, w, bias, last_mask, out, out_stride);
    }
  }
  tile<P, B>(r, x, w, bias, last_mask, out, out_stride);
}

// The pixels [0, n_pixels) that share one Runs, in tiles of about equal size: 14 pixels are 5 + 5 +
// 4 and not 6 + 6 + 2.
template <int P, int B>
static inline void tiles(const Runs& r, const float* x, std::size_t n_pixels, const float* w,
                         const float* bias, __mmask16 last_mask, float* out,
                         std::size_t out_stride) {
  for (std::size_t left = local_ceil_div(n_pixels, P), size; left > 0; --left) {
    size = local_ceil_div(n_pixels, left);
    tile_of<P, B>(size, r, x, w, bias, last_mask, out, out_stride);
    x += size * r.x_pixel_step;
    out += size * out_stride;
    n_pixels -= size;
  }
}

template <int P, int B>
static void row(const ConvParams& p, const float* input, std::size_t oy, std::size_t block,
                float* out, std::size_t out_stride) {
  const std::ptrdiff_t iy0 =
      static_cast<std::ptrdiff_t>(oy * p.stride_h) - static_cast<std::ptrdiff_t>(p.pad_top);
  const LocalTapRange ky =
      local_tap_range(iy0, p.kernel_h, p.dilation_h, 0, static_cast<std::ptrdiff_t>(p.in_h));
  const std::size_t tap_step = p.in_channels * kConvBlock;
  Runs r;
  r.n_rows = ky.end - ky.begin;
  r.x_row_step = p.dilation_h * p.in_w * p.pixel_stride;
  r.x_run_step = p.dilation_w * p.pixel_stride;
  r.x_pixel_step = p.stride_w * p.pixel_stride;
  r.w_row_step = p.kernel_w * tap_step;
  r.w_run_step = tap_step;
  r.w_block_step = p.kernel_h * p.kernel_w * tap_step;
  const bool contiguous = p.dilation_w == 1 && p.pixel_stride == p.in_channels;

  const float* w = p.weights + block * r.w_block_step + ky.begin * r.w_row_step;
  const float* bias = p.bias + block * kConvBlock;
  const std::size_t last_channels =
      local_min(kConvBlock, p.out_channels - (block + B - 1) * kConvBlock);
  const __mmask16 last_mask = static_cast<__mmask16>((1U << last_channels) - 1U);
  out += block * kConvBlock;

  // First row of taps; without any (n_rows 0) the pointer stays at the map and is not read.
  const float* x_row =
      r.n_rows == 0 ? input
                    : input + static_cast<std::size_t>(
                                  iy0 + static_cast<std::ptrdiff_t>(ky.begin * p.dilation_h)) *
                                  p.in_w * p.pixel_stride;
  const std::size_t reach = (p.kernel_w - 1) * p.dilation_w;
  const std::size_t inner_begin = local_min(p.out_w, local_ceil_div(p.pad_left, p.stride_w));
  const std::size_t inner_end = local_max(
      inner_begin, p.in_w + p.pad_left > reach
                       ? local_min(p.out_w, local_ceil_div(p.in_w + p.pad_left - reach, p.stride_w))
                       : 0);
  for (std::size_t ox = 0; ox < p.out_w;) {
    const std::ptrdiff_t ix0 =
        static_cast<std::ptrdiff_t>(ox * p.stride_w) - static_cast<std::ptrdiff_t>(p.pad_left);
    const bool inner = ox >= inner_begin && ox < inner_end;
    const LocalTapRange kx =
        local_tap_range(ix0, p.kernel_w, p.dilation_w, 0, static_cast<std::ptrdiff_t>(p.in_w));
    const std::size_t n_taps = kx.end - kx.begin;
    r.n_runs = contiguous ? (n_taps > 0 ? 1 : 0) : n_taps;
    r.run_len = contiguous ? n_taps * p.in_channels : p.in_channels;
    const float* x = n_taps == 0
                         ? x_row
                         : x_row + static_cast<std::size_t>(
                                       ix0 + static_cast<std::ptrdiff_t>(kx.begin * p.dilation_w)) *
                                       p.pixel_stride;
    const std::size_t n_pixels = inner ? inner_end - inner_begin : 1;
    tiles<P, B>(r, x, n_pixels, w + kx.begin * r.w_run_step, bias, last_mask, out + ox * out_stride,
                out_stride);
    ox += n_pixels;
  }
}

template <int P, int B>
static void rows_of_blocks(const ConvParams& params, const float* input, std::size_t oy_begin,
                           std::size_t oy_end, std::size_t block, float* out,
                           std::size_t out_stride) {
  for (std::size_t oy = oy_begin; oy < oy_end; ++oy) {
    row<P, B>(params, input, oy, block, out, out_stride);
    out += params.out_w * out_stride;
  }
}

static void rows(const ConvParams& params, const float* input, std::size_t oy_begin,
                 std::size_t oy_end, std::size_t block_begin, std::size_t block_end, float* out,
                 std::size_t out_stride) {
  std::size_t block = block_begin;
  while (block < block_end) {
    const std::size_t left = block_end - block;
    if (left == 3 || left == 5 || left == 6) {
      rows_of_blocks<8, 3>(params, input, oy_begin, oy_end, block, out, out_stride);
      block += 3;
    } else if (left >= 4) {
      rows_of_blocks<6, 4>(params, input, oy_begin, oy_end, block, out, out_stride);
      block += 4;
    } else if (left == 2) {
      rows_of_blocks<12, 2>(params, input, oy_begin, oy_end, block, out, out_stride);
      block += 2;
    } else {
      rows_of_blocks<12, 1>(params, input, oy_begin, oy_end, block, out, out_stride);
      block += 1;
    }
  }
}

}  // namespace

void conv_f32(const ConvParams& params, const float* input, std::size_t oy_begin,
              std::size_t oy_end, std::size_t block_begin, std::size_t block_end, float* out,
              std::size_t out_stride) {
  const bool is_pointwise = params.kernel_h == 1 && params.kernel_w == 1 && params.stride_h == 1 &&
                            params.stride_w == 1 && params.pad_top == 0 && params.pad_left == 0 &&
                            params.out_w == params.in_w && oy_end <= params.in_h;
  if (is_pointwise) {
    ConvParams flat = params;
    flat.in_h = 1;
    flat.in_w = flat.out_w = (oy_end - oy_begin) * params.out_w;
    input += oy_begin * params.in_w * params.pixel_stride;
    rows(flat, input, 0, 1, block_begin, block_end, out, out_stride);
  } else {
    rows(params, input, oy_begin, oy_end, block_begin, block_end, out, out_stride);
  }
}

}  // namespace tac::kernels::avx512bw
