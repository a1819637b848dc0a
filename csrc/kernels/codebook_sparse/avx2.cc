// Codebook layers from lists, AVX2. The inputs of 16 or 32 samples are turned around, a chunk at a
// time, so that an input of 16 samples is one register of 16-bit or two of 32-bit values; for each
// entry of a list those are multiplied by its weight. Nothing is done for zero weights.
//
// Floats: 4 outputs of 16 samples or 2 of 32 at a time, 8 sums, so that an FMA does not wait for
// the one before; bound by loads. Integers: two entries make pairs (q of the one, q of the other)
// for vpmaddwd, whose factor is the pair of levels:
//
//   x0 [a0 a1 .. a7 | a8 .. a15]   unpacklo [a0 b0 .. a3 b3 | a8 b8 .. a11 b11]
//   x1 [b0 b1 .. b7 | b8 .. b15]   unpackhi [a4 b4 .. a7 b7 | a12 b12 .. a15 b15]
//
// A sum of pairs may fill 32 bits. `low` adds them up and wraps, `high` adds up their upper halves:
// the sum is high * 65536 and what low has beyond that, which is below 2^32 for fewer than 2^16
// terms.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/codebook_sparse/codebook_sparse.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {

#include "kernels/codebook_sparse/lists.inc"

namespace {

// kRows outputs of a piece from `row` on; sums [kRows][8 * kVectors].
template <std::size_t kRows, std::size_t kVectors>
static inline void float_rows(const CodebookSparseParams& p, const float* table, std::size_t piece,
                              std::size_t row, const float* xs, bool first, float* sums) {
  constexpr std::size_t kSamples = 8 * kVectors;
  __m256 acc[kRows][kVectors];
#pragma GCC unroll 4
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVectors; ++v)
      acc[r][v] = first ? _mm256_setzero_ps() : _mm256_load_ps(sums + kSamples * r + 8 * v);
  }
  std::size_t n_groups = 0;
  for (std::size_t r = row; r < row + kRows; ++r)
    n_groups = local_max(n_groups, p.counts[piece * kSparseTile + r]);
  const std::size_t at = p.begins[piece] * kSparseTile + row;
  const std::uint16_t* places = p.places + at * kSparseGroup;
  const std::uint8_t* codes = p.codes + at * 2;
  for (std::size_t g = 0; g < n_groups; ++g) {
#pragma GCC unroll 4
    for (std::size_t e = 0; e < kSparseGroup; ++e) {
#pragma GCC unroll 4
      for (std::size_t r = 0; r < kRows; ++r) {
        const float* x = xs + places[kSparseGroup * r + e] * kSamples / kSparseStep;
        const std::uint8_t pair = codes[2 * r + e / 2];
        const __m256 w = _mm256_broadcast_ss(table + (e % 2 == 0 ? pair & 0xFU : pair >> 4U));
#pragma GCC unroll 4
        for (std::size_t v = 0; v < kVectors; ++v)
          acc[r][v] = _mm256_fmadd_ps(w, _mm256_load_ps(x + 8 * v), acc[r][v]);
      }
    }
    places += kSparseTile * kSparseGroup;
    codes += kSparseTile * 2;
  }
#pragma GCC unroll 4
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (std::size_t v = 0; v < kVectors; ++v)
      _mm256_store_ps(sums + kSamples * r + 8 * v, acc[r][v]);
  }
}

// kSamples = 16 or 32
template <std::size_t kSamples>
static void float_sums(const CodebookSparseParams& p, const float* table, const float* x,
                       std::size_t batch, std::size_t x_stride, std::size_t tile_begin,
                       std::size_t tile_end, float* xs, float* sums) {
  constexpr std::size_t kRows = 64 / kSamples;
  const std::size_t n_tiles = local_ceil_div(p.out_features, kSparseTile);
  for (std::size_t k = 0; k < p.in_features; k += kSparseChunk) {
    turn_chunk<kSamples>(x + k, batch, x_stride, local_min(kSparseChunk, p.in_features - k), xs);
    for (std::size_t t = tile_begin; t < tile_end; ++t) {
      for (std::size_t row = 0; row < kSparseTile; row += kRows) {
        float_rows<kRows, kSamples / 8>(p, table, k / kSparseChunk * n_tiles + t, row, xs, k == 0,
                                        sums + ((t - tile_begin) * kSparseTile + row) * kSamples);
      }
    }
  }
}

// An output of a piece; sums of 16 samples: low and high of samples 0..3 and 8..11, low and high of
// 4..7 and 12..15; of 32 the same twice. kSmall: |levels| <= 16383, so two sums of pairs fit 32
// bits.
template <bool kSmall, int kSamples>
static inline void integer_row(const CodebookSparseParams& p, const std::uint32_t* pairs,
                               std::size_t piece, std::size_t row, const std::int16_t* xs,
                               bool first, std::int32_t* sums) {
  constexpr int kSums = kSamples / 4;
  constexpr int kHalves = kSamples == 32 ? 2 : 1;
  auto* at = reinterpret_cast<__m256i*>(sums);
  __m256i acc[kSums];
#pragma GCC unroll 8
  for (int i = 0; i < kSums; ++i)
    acc[i] = first ? _mm256_setzero_si256() : _mm256_load_si256(at + i);
  const auto add = [&](int i, __m256i sum) __attribute__((always_inline)) {
    acc[i] = _mm256_add_epi32(acc[i], sum);
    acc[i + 1] = _mm256_add_epi32(acc[i + 1], _mm256_srai_epi32(sum, 16));
  };
  const auto add_both = [&](int i, __m256i sum, __m256i other) __attribute__((always_inline)) {
    if constexpr (kSmall) {
      add(i, _mm256_add_epi32(sum, other));
    } else {
      add(i, sum);
      add(i, other);
    }
  };
  const std::uint16_t* places = p.places + (p.begins[piece] * kSparseTile + row) * kSparseGroup;
  const std::uint8_t* codes = p.codes + (p.begins[piece] * kSparseTile + row) * 2;
  for (std::size_t g = p.counts[piece * kSparseTile + row]; g > 0; --g) {
    const __m256i w0 = _mm256_set1_epi32(static_cast<int>(pairs[codes[0]]));
    const __m256i w1 = _mm256_set1_epi32(static_cast<int>(pairs[codes[1]]));
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      const auto load = [&](std::size_t e) __attribute__((always_inline)) {
        const std::size_t bytes = std::size_t{places[e]} * kHalves * 32 / kSparseStep;
        return _mm256_load_si256(
            reinterpret_cast<const __m256i*>(reinterpret_cast<const char*>(xs) + bytes + 32 * h));
      };
      const __m256i x0 = load(0);
      const __m256i x1 = load(1);
      const __m256i x2 = load(2);
      const __m256i x3 = load(3);
      add_both(4 * h, _mm256_madd_epi16(_mm256_unpacklo_epi16(x0, x1), w0),
               _mm256_madd_epi16(_mm256_unpacklo_epi16(x2, x3), w1));
      add_both(4 * h + 2, _mm256_madd_epi16(_mm256_unpackhi_epi16(x0, x1), w0),
               _mm256_madd_epi16(_mm256_unpackhi_epi16(x2, x3), w1));
    }
    places += kSparseTile * kSparseGroup;
    codes += kSparseTile * 2;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kSums; ++i) _mm256_store_si256(at + i, acc[i]);
}

template <bool kSmall, int kSamples>
static void integer_sums(const CodebookSparseParams& p, const std::uint32_t* pairs,
                         const std::int16_t* q, std::size_t batch, std::size_t q_stride,
                         std::size_t tile_begin, std::size_t tile_end, std::int16_t* xs,
                         std::int32_t* sums) {
  const std::size_t n_tiles = local_ceil_div(p.out_features, kSparseTile);
  for (std::size_t k = 0; k < p.in_features; k += kSparseChunk) {
    turn_chunk<kSamples>(q + k, batch, q_stride, local_min(kSparseChunk, p.in_features - k), xs);
    for (std::size_t t = tile_begin; t < tile_end; ++t) {
      for (std::size_t row = 0; row < kSparseTile; ++row) {
        integer_row<kSmall, kSamples>(p, pairs, k / kSparseChunk * n_tiles + t, row, xs, k == 0,
                                      sums + ((t - tile_begin) * kSparseTile + row) * 2 * kSamples);
      }
    }
  }
}

}  // namespace

void codebook_sparse_f32(const CodebookSparseParams& params, const float* table, const float* x,
                         std::size_t batch, std::size_t x_stride, std::size_t tile_begin,
                         std::size_t tile_end, std::byte* scratch, float* y, std::size_t y_stride) {
  auto* xs = reinterpret_cast<float*>(scratch);
  float* sums = xs + (kSparseChunk + 1) * kSparseSamples;
  const bool wide = batch > 16;
  const auto sum = wide ? float_sums<32> : float_sums<16>;
  sum(params, table, x, batch, x_stride, tile_begin, tile_end, xs, sums);
  write_floats(params, sums, wide ? 32 : 16, batch, tile_begin, tile_end, y, y_stride);
}

void codebook_sparse_i16(const CodebookSparseParams& params, const std::uint32_t* pairs,
                         std::int32_t max_level, const std::int16_t* q, std::size_t batch,
                         std::size_t q_stride, const double* units, std::size_t tile_begin,
                         std::size_t tile_end, std::byte* scratch, float* y, std::size_t y_stride) {
  auto* xs = reinterpret_cast<std::int16_t*>(scratch);
  auto* sums = reinterpret_cast<std::int32_t*>(scratch + (kSparseChunk + 1) * kSparseSamples *
                                                             sizeof(std::int16_t));
  const bool small = max_level <= 16383;
  const std::size_t n_samples = batch > 16 ? 32 : 16;
  const auto sum = n_samples == 32 ? (small ? integer_sums<true, 32> : integer_sums<false, 32>)
                                   : (small ? integer_sums<true, 16> : integer_sums<false, 16>);
  sum(params, pairs, q, batch, q_stride, tile_begin, tile_end, xs, sums);
  const auto place = [](std::size_t n) {
    return n / 16 * 32 + n % 8 / 4 * 16 + n % 16 / 8 * 4 + n % 4;
  };
  write_integers(params, sums, 2 * n_samples, 8, place, units, batch, tile_begin, tile_end, y,
                 y_stride);
}

}  // namespace tac::kernels::avx2
