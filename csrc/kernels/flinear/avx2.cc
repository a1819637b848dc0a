// linear_f32, AVX2: two registers hold the 16 outputs of a block; a tile of up to 6 samples keeps
// its sums in 12 registers, so each k is 2 weight loads, 6 broadcasts and 12 FMAs. K is cut into
// chunks so that the weights of a block stay in the level-1 cache while all samples pass over them;
// the partial sums wait in y. One sample alone takes four blocks at a time, whose 8 sums hide the
// latency of the FMAs. Accumulation: bias first, then k ascending, one FMA each, whatever the tile
// and the chunk.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/flinear/flinear.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {
namespace {

constexpr std::size_t kChunk = 256;  // 16 KiB of weights
// The first tile over a chunk waits for memory, the others do not: 8192 -> 1024, batch 8, takes 1.4
// instead of 2.1 ms on a Zen 5 with it. May point past the weights; a prefetch there does nothing.
constexpr std::size_t kPrefetch = 64 * kLinearBlock;
constexpr std::size_t kMaxSamples = 6;

struct Tile {
  const float* w;  // block 0, first k of the chunk
  std::size_t w_block_step, n_k, x_stride, y_stride;
  const float* bias;  // first chunk only, else nullptr: go on from y
  std::size_t last_outputs;
};

static inline void load_sums(const float* y, std::size_t n_outputs, __m256& low, __m256& high) {
  alignas(32) float values[kLinearBlock] = {};
  for (std::size_t i = 0; i < n_outputs; ++i) values[i] = y[i];
  low = _mm256_load_ps(values);
  high = _mm256_load_ps(values + 8);
}

static inline void store_sums(__m256 low, __m256 high, std::size_t n_outputs, float* y) {
  if (n_outputs == kLinearBlock) {
    _mm256_storeu_ps(y, low);
    _mm256_storeu_ps(y + 8, high);
    return;
  }
  alignas(32) float values[kLinearBlock];
  _mm256_store_ps(values, low);
  _mm256_store_ps(values + 8, high);
  for (std::size_t i = 0; i < n_outputs; ++i) y[i] = values[i];
}

template <int P, int B>
static inline void tile(const Tile& t, const float* x, float* y) {
  __m256 low[P][B];
  __m256 high[P][B];
#pragma GCC unroll 4
  for (int b = 0; b < B; ++b) {
#pragma GCC unroll 6
    for (int i = 0; i < P; ++i) {
      if (t.bias != nullptr) {
        low[i][b] = _mm256_loadu_ps(t.bias + b * kLinearBlock);
        high[i][b] = _mm256_loadu_ps(t.bias + b * kLinearBlock + 8);
      } else {
        load_sums(y + i * t.y_stride + b * kLinearBlock, b == B - 1 ? t.last_outputs : kLinearBlock,
                  low[i][b], high[i][b]);
      }
    }
  }
  const float* w = t.w;
  for (std::size_t k = 0; k < t.n_k; ++k) {
    if constexpr (B == 1) _mm_prefetch(w + kPrefetch, _MM_HINT_T0);
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
      const __m256 w0 = _mm256_load_ps(w + b * t.w_block_step);
      const __m256 w1 = _mm256_load_ps(w + b * t.w_block_step + 8);
#pragma GCC unroll 6
      for (int i = 0; i < P; ++i) {
        const __m256 xv = _mm256_broadcast_ss(x + i * t.x_stride + k);
        low[i][b] = _mm256_fmadd_ps(w0, xv, low[i][b]);
        high[i][b] = _mm256_fmadd_ps(w1, xv, high[i][b]);
      }
    }
    w += kLinearBlock;
  }
#pragma GCC unroll 4
  for (int b = 0; b < B; ++b) {
#pragma GCC unroll 6
    for (int i = 0; i < P; ++i) {
      store_sums(low[i][b], high[i][b], b == B - 1 ? t.last_outputs : kLinearBlock,
                 y + i * t.y_stride + b * kLinearBlock);
    }
  }
}

template <int B>
static void blocks(const LinearParams& params, std::size_t block, const float* x, std::size_t batch,
                   std::size_t x_stride, float* y, std::size_t y_stride) {
  Tile t;
  t.w_block_step = params.in_features * kLinearBlock;
  t.x_stride = x_stride;
  t.y_stride = y_stride;
  t.last_outputs = local_min(kLinearBlock, params.out_features - (block + B - 1) * kLinearBlock);
  // A batch that fits one tile has nothing to gain from chunks.
  const std::size_t chunk = batch <= kMaxSamples ? params.in_features : kChunk;
  for (std::size_t k = 0; k < params.in_features; k += chunk) {
    t.w = params.weights + block * t.w_block_step + k * kLinearBlock;
    t.n_k = local_min(chunk, params.in_features - k);
    t.bias = k == 0 ? params.bias + block * kLinearBlock : nullptr;
    const float* xk = x + k;
    float* yb = y + block * kLinearBlock;
    if constexpr (B > 1) {
      tile<1, B>(t, xk, yb);
    } else {
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
}

}  // namespace

void linear_f32(const LinearParams& params, const float* x, std::size_t batch, std::size_t x_stride,
                std::size_t block_begin, std::size_t block_end, float* y, std::size_t y_stride) {
  std::size_t block = block_begin;
  if (batch == 1) {
    for (; block + 4 <= block_end; block += 4)
      blocks<4>(params, block, x, batch, x_stride, y, y_stride);
  }
  for (; block < block_end; ++block) blocks<1>(params, block, x, batch, x_stride, y, y_stride);
}

}  // namespace tac::kernels::avx2
