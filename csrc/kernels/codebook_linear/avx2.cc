// codebook_linear_f32, AVX2: the codebook is two registers of 8 values. Of a 64-byte run of codes
// each 32-byte half holds 8 dwords of 8 codes; shifted right by 4j, the low 3 bits of lane d index
// both halves of the codebook (vpermps ignores the higher bits), and bit 3, shifted to the sign,
// chooses between the two:
//
//   half h, nibble j, lane d:  k = 16j + 8h + d
//
// A tile of R rows x N samples keeps R * N registers of partial sums. The last run, where K is no
// multiple of 128, reads x from a zero-padded copy and has its weights past K forced to 0.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/codebook_linear/codebook_linear.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {
namespace {

constexpr std::size_t kChunkBytes = 256 * 1024;
constexpr std::size_t kRunBytes = kCodebookKAlign / 2;
constexpr std::size_t kRunMaskWords = kCodebookKAlign / 32;

struct Rows {
  const std::uint8_t* codes;
  const std::uint32_t* mask;
  std::size_t code_step, mask_step, in_features;
  const float* table;
};

// w where bit first_bit + d of `word` is set for lane d, else 0: the bit is shifted to the lane's
// sign, which chooses.
static inline __m256 keep_where_set(__m256 w, std::uint32_t word, int first_bit) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i bits = _mm256_sllv_epi32(_mm256_set1_epi32(static_cast<int>(word)),
                                         _mm256_sub_epi32(_mm256_set1_epi32(31 - first_bit), lane));
  return _mm256_blendv_ps(_mm256_setzero_ps(), w, _mm256_castsi256_ps(bits));
}

// `x` is that of the run's first k.
template <int R, int N, bool kMasked, bool kTail>
static inline void add_run(const Rows& r, std::size_t run, __m256 table_low, __m256 table_high,
                           const float* x, std::size_t x_stride, __m256 (&acc)[R][N]) {
  for (int h = 0; h < 2; ++h) {
    __m256i codes[R];
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      codes[i] = _mm256_load_si256(
          reinterpret_cast<const __m256i*>(r.codes + i * r.code_step + run * kRunBytes + 32 * h));
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const std::size_t k_in_run =
          16 * static_cast<std::size_t>(j) + 8 * static_cast<std::size_t>(h);
      __m256 xv[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) xv[n] = _mm256_loadu_ps(x + n * x_stride + k_in_run);
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        const __m256i index = j == 0 ? codes[i] : _mm256_srli_epi32(codes[i], 4 * j);
        const __m256i choice = j == 7 ? codes[i] : _mm256_slli_epi32(codes[i], 28 - 4 * j);
        __m256 w = _mm256_blendv_ps(_mm256_permutevar8x32_ps(table_low, index),
                                    _mm256_permutevar8x32_ps(table_high, index),
                                    _mm256_castsi256_ps(choice));
        if constexpr (kMasked) {
          const std::uint32_t* mask = r.mask + i * r.mask_step + run * kRunMaskWords;
          w = keep_where_set(w, mask[j / 2], 16 * (j % 2) + 8 * h);
        }
        if constexpr (kTail) {
          const std::size_t k = run * kCodebookKAlign + k_in_run;
          const std::size_t left = local_min(8, r.in_features > k ? r.in_features - k : 0);
          w = keep_where_set(w, (1U << left) - 1U, 0);
        }
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) acc[i][n] = _mm256_fmadd_ps(w, xv[n], acc[i][n]);
      }
    }
  }
}

static inline float sum_of_lanes(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

template <int R, int N, bool kMasked>
static inline void tile(const Rows& r, const float* bias, const float* x, std::size_t x_stride,
                        const float* x_tail, float* y, std::size_t y_stride) {
  __m256 acc[R][N];
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[i][n] = _mm256_setzero_ps();
  }
  const __m256 table_low = _mm256_load_ps(r.table);
  const __m256 table_high = _mm256_load_ps(r.table + 8);
  const std::size_t n_full_runs = r.in_features / kCodebookKAlign;
  for (std::size_t run = 0; run < n_full_runs; ++run) {
    add_run<R, N, kMasked, false>(r, run, table_low, table_high, x + run * kCodebookKAlign,
                                  x_stride, acc);
  }
  if (r.in_features % kCodebookKAlign != 0) {
    add_run<R, N, kMasked, true>(r, n_full_runs, table_low, table_high, x_tail, kCodebookKAlign,
                                 acc);
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) y[n * y_stride + i] = bias[i] + sum_of_lanes(acc[i][n]);
  }
}

template <int R, int N, bool kMasked>
static void rows(const CodebookLinearParams& p, std::size_t& row, std::size_t row_end,
                 const float* x, std::size_t x_stride, const float* x_tail, float* y,
                 std::size_t y_stride) {
  Rows r;
  r.code_step = p.k_padded / 2;
  r.mask_step = p.k_padded / 32;
  r.in_features = p.in_features;
  r.table = p.table;
  for (; row + R <= row_end; row += R) {
    r.codes = p.codes + row * r.code_step;
    r.mask = kMasked ? p.mask + row * r.mask_step : nullptr;
    tile<R, N, kMasked>(r, p.bias + row, x, x_stride, x_tail, y + row, y_stride);
  }
}

template <int R, int N, bool kMasked>
static void all_rows(const CodebookLinearParams& p, const float* x, std::size_t x_stride,
                     std::size_t row_begin, std::size_t row_end, float* y, std::size_t y_stride) {
  alignas(32) float x_tail[N * kCodebookKAlign] = {};
  const std::size_t n_tail = p.in_features % kCodebookKAlign;
  for (std::size_t n = 0; n < N; ++n) {
    for (std::size_t k = 0; k < n_tail; ++k) {
      x_tail[n * kCodebookKAlign + k] = x[n * x_stride + p.in_features - n_tail + k];
    }
  }
  std::size_t row = row_begin;
  rows<R, N, kMasked>(p, row, row_end, x, x_stride, x_tail, y, y_stride);
  if constexpr (R > 1) rows<1, N, kMasked>(p, row, row_end, x, x_stride, x_tail, y, y_stride);
}

template <bool kMasked>
static void samples(const CodebookLinearParams& p, const float* x, std::size_t batch,
                    std::size_t x_stride, std::size_t row_begin, std::size_t row_end, float* y,
                    std::size_t y_stride) {
  std::size_t n = 0;
  for (; n + 4 <= batch; n += 4) {
    all_rows<2, 4, kMasked>(p, x + n * x_stride, x_stride, row_begin, row_end, y + n * y_stride,
                            y_stride);
  }
  for (; n < batch; ++n) {
    all_rows<4, 1, kMasked>(p, x + n * x_stride, x_stride, row_begin, row_end, y + n * y_stride,
                            y_stride);
  }
}

}  // namespace

void codebook_linear_f32(const CodebookLinearParams& params, const float* x, std::size_t batch,
                         std::size_t x_stride, std::size_t row_begin, std::size_t row_end, float* y,
                         std::size_t y_stride) {
  // All samples pass over the codes of a chunk of rows while the level-2 cache holds them.
  const std::size_t chunk = local_max(4, kChunkBytes / (params.k_padded / 2) / 4 * 4);
  for (std::size_t row = row_begin; row < row_end; row += chunk) {
    const std::size_t chunk_end = local_min(row + chunk, row_end);
    if (params.mask == nullptr) {
      samples<false>(params, x, batch, x_stride, row, chunk_end, y, y_stride);
    } else {
      samples<true>(params, x, batch, x_stride, row, chunk_end, y, y_stride);
    }
  }
}

}  // namespace tac::kernels::avx2
