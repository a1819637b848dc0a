// pool_f32, AVX-512: 16 channels at a time, up to 64 where there are as many; the last channels are
// masked. Same operations in the same order as scalar, so the same bits.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/kernel_table.h"
#include "kernels/pool/pool.h"

namespace tac::kernels::avx512 {
namespace {

constexpr std::size_t kLanes = 16;
using Mask = __mmask16;

static inline Mask mask_of(std::size_t n_lanes) {
  return static_cast<Mask>((1U << n_lanes) - 1U);
}
static inline __m512 load(const float* x, Mask mask) {
  return _mm512_maskz_loadu_ps(mask, x);
}
static inline void store(float* y, Mask mask, __m512 v) {
  _mm512_mask_storeu_ps(y, mask, v);
}

// The larger value; the first of equals, and NaN wins.
static inline __m512 max_or_nan(__m512 best, __m512 v) {
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_mask_mov_ps(_mm512_max_ps(v, best), nan, v);
}

// The taps of one output pixel inside the map: `x` is the first, rows and taps are that many floats
// apart.
struct Taps {
  const float* x;
  std::size_t n_rows, n_cols, row_step, col_step;
  float divisor;
};

// V registers of channels; all lanes but the last register's are full.
template <bool kAverage, int V>
static inline void pixel(const Taps& t, std::size_t channel, Mask last, float* out) {
  const Mask full = mask_of(kLanes);
  __m512 acc[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) acc[v] = _mm512_set1_ps(kAverage ? 0.0F : -__builtin_inff());
  for (std::size_t ky = 0; ky < t.n_rows; ++ky) {
    const float* x = t.x + ky * t.row_step + channel;
    for (std::size_t kx = 0; kx < t.n_cols; ++kx) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const __m512 value = load(x + v * kLanes, v == V - 1 ? last : full);
        acc[v] = kAverage ? _mm512_add_ps(acc[v], value) : max_or_nan(acc[v], value);
      }
      x += t.col_step;
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    if (kAverage) acc[v] = _mm512_div_ps(acc[v], _mm512_set1_ps(t.divisor));
    store(out + channel + v * kLanes, v == V - 1 ? last : full, acc[v]);
  }
}

template <bool kAverage>
static void row(const PoolParams& p, const float* input, std::size_t oy, float* out) {
  const auto in_h = static_cast<std::ptrdiff_t>(p.in_h);
  const auto in_w = static_cast<std::ptrdiff_t>(p.in_w);
  const auto pad_top = static_cast<std::ptrdiff_t>(p.pad_top);
  const auto pad_left = static_cast<std::ptrdiff_t>(p.pad_left);
  const std::ptrdiff_t iy0 = static_cast<std::ptrdiff_t>(oy * p.stride_h) - pad_top;
  const LocalTapRange ky = local_tap_range(iy0, p.kernel_h, p.dilation_h, 0, in_h);
  const LocalTapRange ky_counted =
      p.count_include_pad ? local_tap_range(iy0, p.kernel_h, p.dilation_h, -pad_top,
                                            in_h + static_cast<std::ptrdiff_t>(p.pad_bottom))
                          : ky;
  Taps t;
  t.n_rows = ky.end - ky.begin;
  t.row_step = p.dilation_h * p.in_w * p.channels;
  t.col_step = p.dilation_w * p.channels;
  for (std::size_t ox = 0; ox < p.out_w; ++ox) {
    const std::ptrdiff_t ix0 = static_cast<std::ptrdiff_t>(ox * p.stride_w) - pad_left;
    const LocalTapRange kx = local_tap_range(ix0, p.kernel_w, p.dilation_w, 0, in_w);
    const LocalTapRange kx_counted =
        p.count_include_pad ? local_tap_range(ix0, p.kernel_w, p.dilation_w, -pad_left,
                                              in_w + static_cast<std::ptrdiff_t>(p.pad_right))
                            : kx;
    t.n_cols = kx.end - kx.begin;
    t.divisor = static_cast<float>((ky_counted.end - ky_counted.begin) *
                                   (kx_counted.end - kx_counted.begin));
    t.x = input;  // not read where the window has no tap inside
    if (t.n_rows != 0 && t.n_cols != 0) {
      const std::ptrdiff_t iy = iy0 + static_cast<std::ptrdiff_t>(ky.begin * p.dilation_h);
      const std::ptrdiff_t ix = ix0 + static_cast<std::ptrdiff_t>(kx.begin * p.dilation_w);
      t.x += static_cast<std::size_t>(iy * in_w + ix) * p.channels;
    }
    std::size_t c = 0;
    for (; c + 4 * kLanes <= p.channels; c += 4 * kLanes)
      pixel<kAverage, 4>(t, c, mask_of(kLanes), out);
    for (; c < p.channels; c += kLanes)
      pixel<kAverage, 1>(t, c, mask_of(local_min(kLanes, p.channels - c)), out);
    out += p.channels;
  }
}

}  // namespace

void pool_f32(const PoolParams& params, const float* input, std::size_t oy, float* out) {
  if (params.average) {
    row<true>(params, input, oy, out);
  } else {
    row<false>(params, input, oy, out);
  }
}

}  // namespace tac::kernels::avx512
