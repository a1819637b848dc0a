// Codebook layers from lists, AVX-512; integers without VNNI. As avx2.cc, whose registers have half
// the width: an input of 32 samples is two registers of 32-bit values.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/codebook_sparse/codebook_sparse.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512bw {

#include "kernels/backend_dot_avx512bw.inc"
#include "kernels/codebook_sparse/lists.inc"
#include "kernels/codebook_sparse/lists_avx512.inc"

namespace {

// 4 outputs of a piece; sums [4][16 * kVectors].
template <std::size_t kVectors>
static inline void float_tile(const CodebookSparseParams& p, const float* table, std::size_t piece,
                              const float* xs, bool first, float* sums) {
  constexpr std::size_t kSamples = 16 * kVectors;
  __m512 acc[kSparseTile][kVectors];
#pragma GCC unroll 4
  for (std::size_t r = 0; r < kSparseTile; ++r) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVectors; ++v)
      acc[r][v] = first ? _mm512_setzero_ps() : _mm512_load_ps(sums + kSamples * r + 16 * v);
  }
  std::size_t n_groups = 0;
  for (std::size_t r = 0; r < kSparseTile; ++r)
    n_groups = local_max(n_groups, p.counts[piece * kSparseTile + r]);
  const std::size_t at = std::size_t{p.begins[piece]} * kSparseTile;
  const std::uint16_t* places = p.places + at * kSparseGroup;
  const std::uint8_t* codes = p.codes + at * 2;
  for (std::size_t g = 0; g < n_groups; ++g) {
#pragma GCC unroll 4
    for (std::size_t e = 0; e < kSparseGroup; ++e) {
#pragma GCC unroll 4
      for (std::size_t r = 0; r < kSparseTile; ++r) {
        const float* x = xs + places[kSparseGroup * r + e] * kSamples / kSparseStep;
        const std::uint8_t pair = codes[2 * r + e / 2];
        const __m512 w = _mm512_set1_ps(table[e % 2 == 0 ? pair & 0xFU : pair >> 4U]);
#pragma GCC unroll 2
        for (std::size_t v = 0; v < kVectors; ++v)
          acc[r][v] = _mm512_fmadd_ps(w, _mm512_load_ps(x + 16 * v), acc[r][v]);
      }
    }
    places += kSparseTile * kSparseGroup;
    codes += kSparseTile * 2;
  }
#pragma GCC unroll 4
  for (std::size_t r = 0; r < kSparseTile; ++r) {
#pragma GCC unroll 2
    for (std::size_t v = 0; v < kVectors; ++v)
      _mm512_store_ps(sums + kSamples * r + 16 * v, acc[r][v]);
  }
}

template <std::size_t kSamples>
static void float_sums(const CodebookSparseParams& p, const float* table, const float* x,
                       std::size_t batch, std::size_t x_stride, std::size_t tile_begin,
                       std::size_t tile_end, float* xs, float* sums) {
  const std::size_t n_tiles = local_ceil_div(p.out_features, kSparseTile);
  for (std::size_t k = 0; k < p.in_features; k += kSparseChunk) {
    turn_chunk<kSamples>(x + k, batch, x_stride, local_min(kSparseChunk, p.in_features - k), xs);
    for (std::size_t t = tile_begin; t < tile_end; ++t) {
      float_tile<kSamples / 16>(p, table, k / kSparseChunk * n_tiles + t, xs, k == 0,
                                sums + (t - tile_begin) * kSparseTile * kSamples);
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

}  // namespace tac::kernels::avx512bw
