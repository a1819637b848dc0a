// linear_f32, AVX-512: one register holds the 16 outputs of a block; a tile of P samples x B blocks
// keeps P * B sums in registers, so each k is B weight loads, P broadcasts and P * B FMAs (6 x 4 or
// fewer; x 1 for odd blocks). K is cut into chunks so that the weights of a tile stay in
// the level-2 cache while all samples pass over them; the partial sums wait in y. Fewer than 6
// samples read every weight once, at memory speed. Accumulation: bias first, then k ascending, one
// FMA each, whatever the tile and the chunk.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/flinear/flinear.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512bw {
namespace {

constexpr std::size_t kChunk = 1024;  // 4 blocks: 256 KiB of weights
constexpr std::size_t kMaxSamples = 6;

struct Tile {
  const float* w;  // block 0, first k of the chunk
  std::size_t w_block_step, n_k, x_stride, y_stride;
  const float* bias;  // first chunk only, else nullptr: go on from y
  __mmask16 last_mask;
};

template <int P, int B>
static inline void tile(const Tile& t, const float* x, float* y) {
  __m512 acc[P][B];
#pragma GCC unroll 4
  for (int b = 0; b < B; ++b) {
    const __mmask16 mask = b == B - 1 ? t.last_mask : static_cast<__mmask16>(0xFFFF);
#pragma GCC unroll 6
    for (int i = 0; i < P; ++i) {
      acc[i][b] = t.bias != nullptr
                      ? _mm512_loadu_ps(t.bias + b * kLinearBlock)
                      : _mm512_maskz_loadu_ps(mask, y + i * t.y_stride + b * kLinearBlock);
    }
  }
  const float* w = t.w;
  for (std::size_t k = 0; k < t.n_k; ++k) {
    __m512 wv[B];
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) wv[b] = _mm512_load_ps(w + b * t.w_block_step);
#pragma GCC unroll 6
    for (int i = 0; i < P; ++i) {
      const __m512 xv = _mm512_set1_ps(x[i * t.x_stride + k]);
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) acc[i][b] = _mm512_fmadd_ps(wv[b], xv, acc[i][b]);
    }
    w += kLinearBlock;
  }
#pragma GCC unroll 4
  for (int b = 0; b < B; ++b) {
    const __mmask16 mask = b == B - 1 ? t.last_mask : static_cast<__mmask16>(0xFFFF);
#pragma GCC unroll 6
    for (int i = 0; i < P; ++i)
      _mm512_mask_storeu_ps(y + i * t.y_stride + b * kLinearBlock, mask, acc[i][b]);
  }
}

template <int B>
static void blocks(const LinearParams& params, std::size_t block, const float* x, std::size_t batch,
                   std::size_t x_stride, float* y, std::size_t y_stride) {
  Tile t;
  t.w_block_step = params.in_features * kLinearBlock;
  t.x_stride = x_stride;
  t.y_stride = y_stride;
  const std::size_t last =
      local_min(kLinearBlock, params.out_features - (block + B - 1) * kLinearBlock);
  t.last_mask = static_cast<__mmask16>((1U << last) - 1U);
  // A batch that fits one tile has nothing to gain from chunks.
  const std::size_t chunk = batch <= kMaxSamples ? params.in_features : kChunk;
  for (std::size_t k = 0; k < params.in_features; k += chunk) {
    t.w = params.weights + block * t.w_block_step + k * kLinearBlock;
    t.n_k = local_min(chunk, params.in_features - k);
    t.bias = k == 0 ? params.bias + block * kLinearBlock : nullptr;
    const float* xk = x + k;
    float* yb = y + block * kLinearBlock;
    for (std::size_t n = 0; n < batch;) {
      // Tiles of about equal size: 8 samples are 4 + 4, not 6 + 2.
      const std::size_t left = batch - n;
      const std::size_t size = local_ceil_div(left, local_ceil_div(left, kMaxSamples));
      const float* xn = xk + n * x_stride;
      float* yn = yb + n * y_stride;
      switch (size) {
        case 6: tile<6, B>(t, xn, yn); break;
        case 5: tile<5, B>(t, xn, yn); break;
        case 4: tile<4, B>(t, xn, yn); break;
        case 3: tile<3, B>(t, xn, yn); break;
        case 2: tile<2, B>(t, xn, yn); break;
        default: tile<1, B>(t, xn, yn); break;
      }
      n += size;
    }
  }
}

}  // namespace

void linear_f32(const LinearParams& params, const float* x, std::size_t batch, std::size_t x_stride,
                std::size_t block_begin, std::size_t block_end, float* y, std::size_t y_stride) {
  std::size_t block = block_begin;
  for (; block + 4 <= block_end; block += 4)
    blocks<4>(params, block, x, batch, x_stride, y, y_stride);
  for (; block < block_end; ++block) blocks<1>(params, block, x, batch, x_stride, y, y_stride);
}

}  // namespace tac::kernels::avx512bw
