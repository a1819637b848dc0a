// codebook_linear_f32, AVX2: the codebook is two registers of 8 values. The 16 dwords of an input
// are two registers; shifted right by 4j, the low 3 bits of a lane index both halves of the
// codebook (vpermps ignores the higher bits), and bit 3, shifted to the sign, chooses between the
// two. Outputs are lanes, so no sum crosses lanes.
//
// One sample goes over a list of its inputs that are not zero, with 64 sums in 8 registers, first
// for lanes 0..7 of all nibbles, then for 8..15. A batch goes over all inputs in tiles of 4 samples
// x 2 nibbles, which share the decoded weights. K is cut into chunks; the sums wait in y.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/codebook_linear/codebook_linear.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {
namespace {

constexpr std::size_t kChunk = 512;

struct Block {
  const std::uint8_t* codes;
  const std::uint8_t* mask;  // nullptr: none
  std::size_t n_outputs;
  const float* table;
};

// Sign bits of the lanes [first, first + 8) that are below n_outputs.
static inline __m256i lanes_of(std::size_t n_outputs, std::size_t first) {
  const int left = n_outputs > first ? static_cast<int>(local_min(n_outputs - first, 8)) : 0;
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(left), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The 8 weights of input k in nibble j, lanes 8 * half on; `codes` are their dwords, with the
// input's nibbles at the bottom.
template <bool kMasked>
static inline __m256 weights(const Block& b, std::size_t k, __m256i codes, int j, std::size_t half,
                             __m256 table_low, __m256 table_high) {
  const __m256i index = _mm256_srli_epi32(codes, 4 * j);
  const __m256i choice = _mm256_slli_epi32(codes, 28 - 4 * j);
  const __m256 w =
      _mm256_blendv_ps(_mm256_permutevar8x32_ps(table_low, index),
                       _mm256_permutevar8x32_ps(table_high, index), _mm256_castsi256_ps(choice));
  if constexpr (!kMasked) return w;
  const __m256i bits =
      _mm256_sllv_epi32(_mm256_set1_epi32(b.mask[16 * k + 2 * static_cast<std::size_t>(j) + half]),
                        _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24));
  return _mm256_blendv_ps(_mm256_setzero_ps(), w, _mm256_castsi256_ps(bits));
}

template <int J>
static inline __m256i load_codes(const std::uint8_t* codes, std::size_t k, std::size_t half) {
  constexpr std::size_t kInputs = 8 / J;
  const __m256i dwords =
      _mm256_load_si256(reinterpret_cast<const __m256i*>(codes + k / kInputs * 64 + 32 * half));
  if constexpr (J == 8) return dwords;
  return _mm256_srlv_epi32(dwords, _mm256_set1_epi32(static_cast<int>(k % kInputs * 4 * J)));
}

// One sample, its inputs in a list.
template <int J, bool kMasked>
static inline void listed(const Block& b, std::size_t half, const std::uint32_t* ks,
                          const float* xs, std::size_t n_listed, bool first, float* y) {
  const __m256 table_low = _mm256_load_ps(b.table);
  const __m256 table_high = _mm256_load_ps(b.table + 8);
  __m256 acc[J];
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) {
    const std::size_t at = 16 * static_cast<std::size_t>(j) + 8 * half;
    acc[j] = first ? _mm256_setzero_ps() : _mm256_maskload_ps(y + at, lanes_of(b.n_outputs, at));
  }
  for (std::size_t i = 0; i < n_listed; ++i) {
    const std::size_t k = ks[i];
    const __m256i codes = load_codes<J>(b.codes, k, half);
    const __m256 x = _mm256_set1_ps(xs[i]);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      acc[j] =
          _mm256_fmadd_ps(weights<kMasked>(b, k, codes, j, half, table_low, table_high), x, acc[j]);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) {
    const std::size_t at = 16 * static_cast<std::size_t>(j) + 8 * half;
    _mm256_maskstore_ps(y + at, lanes_of(b.n_outputs, at), acc[j]);
  }
}

// N samples x nibbles [kFirst, kFirst + J) x lanes 8 * half on; kNibbles are those of the block.
template <int kNibbles, int kFirst, int J, int N, bool kMasked>
static inline void tile(const Block& b, std::size_t half, const float* x, std::size_t x_stride,
                        std::size_t k_begin, std::size_t k_end, float* y, std::size_t y_stride) {
  const __m256 table_low = _mm256_load_ps(b.table);
  const __m256 table_high = _mm256_load_ps(b.table + 8);
  __m256 acc[N][J];
#pragma GCC unroll 2
  for (int j = 0; j < J; ++j) {
    const std::size_t at = 16 * static_cast<std::size_t>(kFirst + j) + 8 * half;
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      acc[n][j] = k_begin == 0 ? _mm256_setzero_ps()
                               : _mm256_maskload_ps(y + static_cast<std::size_t>(n) * y_stride + at,
                                                    lanes_of(b.n_outputs, at));
    }
  }
  for (std::size_t k = k_begin; k < k_end; ++k) {
    const __m256i codes = load_codes<kNibbles>(b.codes, k, half);
    __m256 w[J];
#pragma GCC unroll 2
    for (int j = 0; j < J; ++j)
      w[j] = weights<kMasked>(b, k, codes, kFirst + j, half, table_low, table_high);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const __m256 xn = _mm256_set1_ps(x[static_cast<std::size_t>(n) * x_stride + k]);
#pragma GCC unroll 2
      for (int j = 0; j < J; ++j) acc[n][j] = _mm256_fmadd_ps(w[j], xn, acc[n][j]);
    }
  }
#pragma GCC unroll 2
  for (int j = 0; j < J; ++j) {
    const std::size_t at = 16 * static_cast<std::size_t>(kFirst + j) + 8 * half;
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      _mm256_maskstore_ps(y + static_cast<std::size_t>(n) * y_stride + at,
                          lanes_of(b.n_outputs, at), acc[n][j]);
    }
  }
}

template <int J, int N, bool kMasked>
static inline void samples(const Block& b, std::size_t half, const float* x, std::size_t x_stride,
                           std::size_t k_begin, std::size_t k_end, float* y, std::size_t y_stride) {
  constexpr int kStep = J == 1 ? 1 : 2;
  tile<J, 0, kStep, N, kMasked>(b, half, x, x_stride, k_begin, k_end, y, y_stride);
  if constexpr (J > 2) tile<J, 2, 2, N, kMasked>(b, half, x, x_stride, k_begin, k_end, y, y_stride);
  if constexpr (J > 4) {
    tile<J, 4, 2, N, kMasked>(b, half, x, x_stride, k_begin, k_end, y, y_stride);
    tile<J, 6, 2, N, kMasked>(b, half, x, x_stride, k_begin, k_end, y, y_stride);
  }
}

template <int J, bool kMasked>
static void batch_of(const Block& b, const float* x, std::size_t batch, std::size_t x_stride,
                     std::size_t k_begin, std::size_t k_end, float* y, std::size_t y_stride) {
  for (std::size_t n = 0; n < batch;) {
    // Tiles of about equal size: 5 samples are 3 + 2, not 4 + 1.
    const std::size_t left = batch - n;
    const std::size_t size = local_ceil_div(left, local_ceil_div(left, 4));
    const float* xn = x + n * x_stride;
    float* yn = y + n * y_stride;
    for (std::size_t half = 0; half < 2; ++half) {
      switch (size) {
        case 4: samples<J, 4, kMasked>(b, half, xn, x_stride, k_begin, k_end, yn, y_stride); break;
        case 3: samples<J, 3, kMasked>(b, half, xn, x_stride, k_begin, k_end, yn, y_stride); break;
        case 2: samples<J, 2, kMasked>(b, half, xn, x_stride, k_begin, k_end, yn, y_stride); break;
        default: samples<J, 1, kMasked>(b, half, xn, x_stride, k_begin, k_end, yn, y_stride); break;
      }
    }
    n += size;
  }
}

// Inputs of [k_begin, k_end) that are not 0 (NaN is not), or all.
static inline std::size_t list_inputs(const float* x, std::size_t k_begin, std::size_t k_end,
                                      bool skip_zeros, std::uint32_t* ks, float* xs) {
  std::size_t n = 0;
  for (std::size_t k = k_begin; k < k_end; ++k) {
    ks[n] = static_cast<std::uint32_t>(k);
    xs[n] = x[k];
    n += static_cast<std::size_t>(x[k] != 0.0F) | static_cast<std::size_t>(!skip_zeros);
  }
  return n;
}

template <int J, bool kMasked>
static void chunk_of(const Block& b, const float* x, std::size_t batch, std::size_t x_stride,
                     std::size_t k_begin, std::size_t k_end, const std::uint32_t* ks,
                     const float* xs, std::size_t n_listed, float* y, std::size_t y_stride) {
  if (batch == 1) {
    for (std::size_t half = 0; half < 2; ++half)
      listed<J, kMasked>(b, half, ks, xs, n_listed, k_begin == 0, y);
  } else {
    batch_of<J, kMasked>(b, x, batch, x_stride, k_begin, k_end, y, y_stride);
  }
}

template <bool kMasked>
static void blocks(const CodebookLinearParams& p, const float* x, std::size_t batch,
                   std::size_t x_stride, std::size_t block_begin, std::size_t block_end, float* y,
                   std::size_t y_stride) {
  alignas(32) std::uint32_t ks[kChunk];
  alignas(32) float xs[kChunk];
  for (std::size_t k = 0; k < p.in_features; k += kChunk) {
    const std::size_t k_end = local_min(k + kChunk, p.in_features);
    const std::size_t n = batch == 1 ? list_inputs(x, k, k_end, p.skip_zeros, ks, xs) : 0;
    for (std::size_t block = block_begin; block < block_end; ++block) {
      const std::size_t output = block * kCodebookBlock;
      Block b;
      b.codes = p.codes + block * p.in_features * 64;
      b.mask = kMasked ? p.mask + block * p.in_features * 16 : nullptr;
      b.n_outputs = local_min(p.out_features - output, kCodebookBlock);
      b.table = p.table;
      float* yb = y + output;
      if (b.n_outputs > 64) {
        chunk_of<8, kMasked>(b, x, batch, x_stride, k, k_end, ks, xs, n, yb, y_stride);
      } else if (b.n_outputs > 32) {
        chunk_of<4, kMasked>(b, x, batch, x_stride, k, k_end, ks, xs, n, yb, y_stride);
      } else if (b.n_outputs > 16) {
        chunk_of<2, kMasked>(b, x, batch, x_stride, k, k_end, ks, xs, n, yb, y_stride);
      } else {
        chunk_of<1, kMasked>(b, x, batch, x_stride, k, k_end, ks, xs, n, yb, y_stride);
      }
    }
  }
}

}  // namespace

void codebook_linear_f32(const CodebookLinearParams& params, const float* x, std::size_t batch,
                         std::size_t x_stride, std::size_t block_begin, std::size_t block_end,
                         float* y, std::size_t y_stride) {
  if (params.mask == nullptr) {
    blocks<false>(params, x, batch, x_stride, block_begin, block_end, y, y_stride);
  } else {
    blocks<true>(params, x, batch, x_stride, block_begin, block_end, y, y_stride);
  }
  const std::size_t begin = block_begin * kCodebookBlock;
  const std::size_t end = local_min(block_end * kCodebookBlock, params.out_features);
  for (std::size_t n = 0; n < batch; ++n)
    for (std::size_t o = begin; o < end; ++o)
      y[n * y_stride + o] = params.bias[o] + y[n * y_stride + o];
}

}  // namespace tac::kernels::avx2
