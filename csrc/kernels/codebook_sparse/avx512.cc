// Codebook layers from lists, AVX-512. As avx2.cc, whose registers have half the width: an input of
// 32 samples is one register of 16-bit or two of 32-bit values. Integers: vpmaddwd and vpdpwssd
// leave the products of four entries in 32 bits, one more vpdpwssd, with the pair 0, 1, adds up
// their upper halves.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/codebook_sparse/codebook_sparse.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512 {

#include "kernels/codebook_sparse/lists.inc"

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

// The registers of 16 and of 32 samples.
struct Half {
  using Vec = __m256i;
  static Vec zero() { return _mm256_setzero_si256(); }
  static Vec load(const void* at) { return _mm256_load_si256(static_cast<const Vec*>(at)); }
  static void store(void* at, Vec v) { _mm256_store_si256(static_cast<Vec*>(at), v); }
  static Vec set(std::uint32_t v) { return _mm256_set1_epi32(static_cast<int>(v)); }
  static Vec low(Vec a, Vec b) { return _mm256_unpacklo_epi16(a, b); }
  static Vec high(Vec a, Vec b) { return _mm256_unpackhi_epi16(a, b); }
  static Vec add(Vec a, Vec b) { return _mm256_add_epi32(a, b); }
  static Vec multiply(Vec a, Vec b) { return _mm256_madd_epi16(a, b); }
  static Vec multiply_add(Vec sum, Vec a, Vec b) { return _mm256_dpwssd_epi32(sum, a, b); }
};
struct Whole {
  using Vec = __m512i;
  static Vec zero() { return _mm512_setzero_si512(); }
  static Vec load(const void* at) { return _mm512_load_si512(at); }
  static void store(void* at, Vec v) { _mm512_store_si512(at, v); }
  static Vec set(std::uint32_t v) { return _mm512_set1_epi32(static_cast<int>(v)); }
  static Vec low(Vec a, Vec b) { return _mm512_unpacklo_epi16(a, b); }
  static Vec high(Vec a, Vec b) { return _mm512_unpackhi_epi16(a, b); }
  static Vec add(Vec a, Vec b) { return _mm512_add_epi32(a, b); }
  static Vec multiply(Vec a, Vec b) { return _mm512_madd_epi16(a, b); }
  static Vec multiply_add(Vec sum, Vec a, Vec b) { return _mm512_dpwssd_epi32(sum, a, b); }
};

// An output of a piece; sums: low and high of samples 0..3, 8..11 and so on, low and high of the
// others. kSmall: |levels| <= 16383, so two sums of pairs fit 32 bits.
template <bool kSmall, class Ops>
static inline void integer_row(const CodebookSparseParams& p, const std::uint32_t* pairs,
                               std::size_t piece, std::size_t row, const std::int16_t* xs,
                               bool first, std::int32_t* sums) {
  using Vec = typename Ops::Vec;
  constexpr std::size_t kLanes = sizeof(Vec) / 4;
  Vec acc[4];
#pragma GCC unroll 4
  for (std::size_t i = 0; i < 4; ++i) acc[i] = first ? Ops::zero() : Ops::load(sums + kLanes * i);
  const Vec upper_half = Ops::set(0x10000);
  const auto add = [&](std::size_t i, Vec x0, Vec x1, Vec w0, Vec w1)
                       __attribute__((always_inline)) {
                         if constexpr (kSmall) {
                           const Vec sum = Ops::multiply_add(Ops::multiply(x0, w0), x1, w1);
                           acc[i] = Ops::add(acc[i], sum);
                           acc[i + 1] = Ops::multiply_add(acc[i + 1], sum, upper_half);
                         } else {
                           for (const Vec sum : {Ops::multiply(x0, w0), Ops::multiply(x1, w1)}) {
                             acc[i] = Ops::add(acc[i], sum);
                             acc[i + 1] = Ops::multiply_add(acc[i + 1], sum, upper_half);
                           }
                         }
                       };
  const std::size_t at = std::size_t{p.begins[piece]} * kSparseTile + row;
  const std::uint16_t* places = p.places + at * kSparseGroup;
  const std::uint8_t* codes = p.codes + at * 2;
  for (std::size_t g = p.counts[piece * kSparseTile + row]; g > 0; --g) {
    const Vec w0 = Ops::set(pairs[codes[0]]);
    const Vec w1 = Ops::set(pairs[codes[1]]);
    const auto load = [&](std::size_t e) __attribute__((always_inline)) {
      const std::size_t bytes = std::size_t{places[e]} * (sizeof(Vec) / kSparseStep);
      return Ops::load(reinterpret_cast<const char*>(xs) + bytes);
    };
    const Vec x0 = load(0);
    const Vec x1 = load(1);
    const Vec x2 = load(2);
    const Vec x3 = load(3);
    add(0, Ops::low(x0, x1), Ops::low(x2, x3), w0, w1);
    add(2, Ops::high(x0, x1), Ops::high(x2, x3), w0, w1);
    places += kSparseTile * kSparseGroup;
    codes += kSparseTile * 2;
  }
#pragma GCC unroll 4
  for (std::size_t i = 0; i < 4; ++i) Ops::store(sums + kLanes * i, acc[i]);
}

template <bool kSmall, class Ops>
static void integer_sums(const CodebookSparseParams& p, const std::uint32_t* pairs,
                         const std::int16_t* q, std::size_t batch, std::size_t q_stride,
                         std::size_t tile_begin, std::size_t tile_end, std::int16_t* xs,
                         std::int32_t* sums) {
  constexpr std::size_t kSamples = sizeof(typename Ops::Vec) / 2;
  const std::size_t n_tiles = local_ceil_div(p.out_features, kSparseTile);
  for (std::size_t k = 0; k < p.in_features; k += kSparseChunk) {
    turn_chunk<kSamples>(q + k, batch, q_stride, local_min(kSparseChunk, p.in_features - k), xs);
    for (std::size_t t = tile_begin; t < tile_end; ++t) {
      for (std::size_t row = 0; row < kSparseTile; ++row) {
        integer_row<kSmall, Ops>(p, pairs, k / kSparseChunk * n_tiles + t, row, xs, k == 0,
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
  const auto sum = n_samples == 32
                       ? (small ? integer_sums<true, Whole> : integer_sums<false, Whole>)
                       : (small ? integer_sums<true, Half> : integer_sums<false, Half>);
  sum(params, pairs, q, batch, q_stride, tile_begin, tile_end, xs, sums);
  const auto place = [&](std::size_t n) { return n % 8 / 4 * n_samples + n / 8 * 4 + n % 4; };
  write_integers(params, sums, 2 * n_samples, n_samples / 2, place, units, batch, tile_begin,
                 tile_end, y, y_stride);
}

}  // namespace tac::kernels::avx512
