// Codebook layer in integers, AVX2. Dense form: the table is two registers of bytes, the lower and
// the upper halves of its 16 levels, repeated in both lanes. 32 bytes of codes are 64 weights;
// vpshufb looks both halves up, interleaving them makes 16 levels in the order of the inputs, and
// vpmaddwd multiplies and adds pairs.
//
//   codes    lane 0 [c0 .. c7 | c16 .. c23]   lane 1 [c8 .. c15 | c24 .. c31]
//   unpacklo lane 0 [w0 .. w7]                lane 1 [w8 .. w15]
//
// A 32-bit sum holds the products of a run of inputs, as long as the weights of the row allow. Then
// it is added up twice: as it is, whatever overflows, and its upper half alone. What the latter
// lacks, below 2^16 for each of at most 2^12 runs, is the difference of both modulo 2^32. 8192 ->
// 1024 with 75 % zeros on one core of a Zen 3 EPYC: batch 1 0.27 ms.
//
// Form of bytes: vpshufb picks lower and upper bytes of two inputs of each of 16 lanes, and of
// their levels in the same way; both are interleaved to words, and vpmaddwd multiplies. Where 75 %
// of a layer are zeros, three of four entries are weights and the others fill up: 0.16 ms. For
// batches 32 steps at a time are looked up in the table once, and every sample goes over them.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/codebook_i16/codebook_i16.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {
namespace {

struct Table {
  __m256i low, high;  // bytes of the levels
};

static inline Table load_table(const std::int16_t* levels) {
  const __m256i bytes = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2,
                                         4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  // Each lane: 8 low bytes, 8 high bytes of levels 0..7 and 8..15.
  const __m256i split =
      _mm256_shuffle_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(levels)), bytes);
  Table t;
  t.low = _mm256_permute4x64_epi64(split, 0x88);
  t.high = _mm256_permute4x64_epi64(split, 0xDD);
  return t;
}

// 32 levels of 32 codes, in the order of the inputs.
static inline void levels_of(const Table& t, __m256i codes, __m256i& first, __m256i& second) {
  const __m256i low = _mm256_shuffle_epi8(t.low, codes);
  const __m256i high = _mm256_shuffle_epi8(t.high, codes);
  first = _mm256_unpacklo_epi8(low, high);
  second = _mm256_unpackhi_epi8(low, high);
}

// Among other bits, by a multiplication: a shift would wait where the shuffles do.
static inline __m256i upper_nibbles(__m256i bytes) {
  return _mm256_mulhi_epu16(bytes, _mm256_set1_epi16(1 << 12));
}

static inline __m256i load_q(const std::int16_t* q) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
}

// The sum of all lanes of upper * 65536 + (low - upper * 65536) mod 2^32.
static inline std::int64_t total(__m256i low, __m256i upper) {
  const __m256i rest = _mm256_sub_epi32(low, _mm256_slli_epi32(upper, 16));
  const __m256i pairs = _mm256_hadd_epi32(upper, rest);
  const __m256i fours = _mm256_hadd_epi32(pairs, pairs);
  const __m128i sums =
      _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
  return std::int64_t{_mm_cvtsi128_si32(sums)} * 65536 +
         std::int64_t{static_cast<std::uint32_t>(_mm_extract_epi32(sums, 1))};
}

// One row for N samples; a sum holds R times 16 inputs.
template <int N, int R>
static inline void row_of(const CodebookDenseParams& p, const Table& table, std::size_t row,
                          const std::int16_t* q, std::size_t q_stride, const double* units,
                          float* y, std::size_t y_stride) {
  const std::uint8_t* codes = p.codes + row * (p.k_padded / 2);
  const __m256i nibble = _mm256_set1_epi8(0xF);
  __m256i low[N];
  __m256i upper[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) low[n] = upper[n] = _mm256_setzero_si256();
  const auto add = [&](int n, __m256i sum) __attribute__((always_inline)) {
    low[n] = _mm256_add_epi32(low[n], sum);
    upper[n] = _mm256_add_epi32(upper[n], _mm256_srai_epi32(sum, 16));
  };
  __m256i run[N];
  // The 64 inputs from k on, which begin or end a run.
  const auto step = [&](std::size_t k, bool begins, bool ends) __attribute__((always_inline)) {
    const __m256i pairs = _mm256_load_si256(reinterpret_cast<const __m256i*>(codes + k / 2));
    __m256i w[4];
    levels_of(table, _mm256_and_si256(pairs, nibble), w[0], w[1]);
    levels_of(table, _mm256_and_si256(upper_nibbles(pairs), nibble), w[2], w[3]);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const std::int16_t* qn = q + static_cast<std::size_t>(n) * q_stride + k;
      __m256i products[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) products[i] = _mm256_madd_epi16(w[i], load_q(qn + 16 * i));
      if constexpr (R == 1) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) add(n, products[i]);
        continue;
      }
      const __m256i first = _mm256_add_epi32(products[0], products[1]);
      const __m256i second = _mm256_add_epi32(products[2], products[3]);
      if constexpr (R == 2) {
        add(n, first);
        add(n, second);
        continue;
      }
      const __m256i sum = _mm256_add_epi32(first, second);
      run[n] = begins ? sum : _mm256_add_epi32(run[n], sum);
      if (ends) add(n, run[n]);
    }
  };
  std::size_t k = 0;
  if constexpr (R == 8) {
    for (; k + 128 <= p.k_padded; k += 128) {
      step(k, true, false);
      step(k + 64, false, true);
    }
  }
  for (; k < p.k_padded; k += 64) step(k, true, true);
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    const auto sum = static_cast<double>(total(low[n], upper[n]));
    y[static_cast<std::size_t>(n) * y_stride + row] =
        p.bias[row] + static_cast<float>(sum * units[n]);
  }
}

template <int N>
static inline void row_of(const CodebookDenseParams& p, const Table& table, std::size_t row,
                          const std::int16_t* q, std::size_t q_stride, const double* units,
                          float* y, std::size_t y_stride) {
  switch (p.runs[row]) {
    case 8: row_of<N, 8>(p, table, row, q, q_stride, units, y, y_stride); break;
    case 4: row_of<N, 4>(p, table, row, q, q_stride, units, y, y_stride); break;
    case 2: row_of<N, 2>(p, table, row, q, q_stride, units, y, y_stride); break;
    default: row_of<N, 1>(p, table, row, q, q_stride, units, y, y_stride); break;
  }
}

// Form of bytes.

// What a step does with any sample.
struct Step {
  __m256i positions;      // of the inputs in their window
  __m256i first, second;  // levels of lanes 0..3 and 8..11, and of the others
};

static inline Step load_step(const Table& t, const std::uint8_t* entries) {
  const __m256i nibble = _mm256_set1_epi8(0xF);
  const __m256i packed = _mm256_load_si256(reinterpret_cast<const __m256i*>(entries));
  Step step;
  levels_of(t, _mm256_and_si256(packed, nibble), step.first, step.second);
  step.positions = _mm256_and_si256(upper_nibbles(packed), nibble);
  return step;
}

static inline __m256i load_window(const std::uint8_t* bytes) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// Sums of a tile as above: low as it is, whatever overflows, and upper halves. Each of at most 2^16
// groups leaves less than 2^16 between them.
struct TileSums {
  __m256i low[2], upper[2];
};

// Adds a group of N samples, the first of which has its lower bytes at `bytes`.
template <std::size_t N>
static inline void add_group(const Step* steps, const std::uint16_t* starts,
                             const std::uint8_t* bytes, std::size_t stride, TileSums (&sums)[N]) {
  __m256i group[N][2];
#pragma GCC unroll 2
  for (std::size_t i = 0; i < kCodebookBytesGroup; ++i) {
    const Step step = steps[i];
    const std::uint8_t* window = bytes + starts[i];
#pragma GCC unroll 2
    for (std::size_t n = 0; n < N; ++n, window += 2 * stride) {
      const __m256i low = _mm256_shuffle_epi8(load_window(window), step.positions);
      const __m256i high = _mm256_shuffle_epi8(load_window(window + stride), step.positions);
      const __m256i first = _mm256_madd_epi16(_mm256_unpacklo_epi8(low, high), step.first);
      const __m256i second = _mm256_madd_epi16(_mm256_unpackhi_epi8(low, high), step.second);
      group[n][0] = i == 0 ? first : _mm256_add_epi32(group[n][0], first);
      group[n][1] = i == 0 ? second : _mm256_add_epi32(group[n][1], second);
    }
  }
#pragma GCC unroll 2
  for (std::size_t n = 0; n < N; ++n) {
#pragma GCC unroll 2
    for (std::size_t h = 0; h < 2; ++h) {
      sums[n].low[h] = _mm256_add_epi32(sums[n].low[h], group[n][h]);
      sums[n].upper[h] = _mm256_add_epi32(sums[n].upper[h], _mm256_srai_epi32(group[n][h], 16));
    }
  }
}

static inline void write_tile(const CodebookBytesParams& p, std::size_t tile, const TileSums& sums,
                              double unit, float* y) {
  alignas(32) std::int32_t low[16];
  alignas(32) std::int32_t upper[16];
#pragma GCC unroll 2
  for (std::size_t h = 0; h < 2; ++h) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(low + 8 * h), sums.low[h]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(upper + 8 * h), sums.upper[h]);
  }
  for (std::size_t lane = 0; lane < kCodebookTile; ++lane) {
    const std::size_t row = p.rows[tile * kCodebookTile + lane];
    if (row >= p.out_features) continue;
    const std::size_t at = lane % 8 / 4 * 8 + lane / 8 * 4 + lane % 4;
    const auto sum = static_cast<double>(local_sum_of_halves(low[at], upper[at]));
    y[row] = p.bias[row] + static_cast<float>(sum * unit);
  }
}

// Steps and samples of a batch that are kept at a time.
constexpr std::size_t kStepsAtOnce = 32;
constexpr std::size_t kSamplesAtOnce = 16;
static_assert(kStepsAtOnce % kCodebookBytesGroup == 0);

// N samples, few enough for every step to be looked up where it is used.
template <std::size_t N>
static void tile_of_few(const CodebookBytesParams& p, const Table& table, std::size_t tile,
                        const std::uint8_t* bytes, std::size_t stride, const double* units,
                        float* y, std::size_t y_stride) {
  static_assert(kCodebookBytesGroup == 2);
  const std::size_t end = p.tiles[tile + 1];
  TileSums sums[N]{};
  for (std::size_t s = p.tiles[tile]; s < end; s += 2) {
    const Step steps[] = {load_step(table, p.entries + s * 32),
                          load_step(table, p.entries + (s + 1) * 32)};
    add_group(steps, p.starts + s, bytes, stride, sums);
  }
  for (std::size_t n = 0; n < N; ++n) write_tile(p, tile, sums[n], units[n], y + n * y_stride);
}

template <std::size_t N>
static inline void add_steps(const Step* steps, std::size_t n_steps, const std::uint16_t* starts,
                             const std::uint8_t* bytes, std::size_t stride, TileSums* sums) {
  TileSums in_registers[N];
#pragma GCC unroll 2
  for (std::size_t n = 0; n < N; ++n) in_registers[n] = sums[n];
  for (std::size_t i = 0; i < n_steps; i += kCodebookBytesGroup)
    add_group(steps + i, starts + i, bytes, stride, in_registers);
#pragma GCC unroll 2
  for (std::size_t n = 0; n < N; ++n) sums[n] = in_registers[n];
}

static void tile_of_many(const CodebookBytesParams& p, const Table& table, std::size_t tile,
                         const std::uint8_t* bytes, std::size_t batch, std::size_t stride,
                         const double* units, float* y, std::size_t y_stride) {
  const std::size_t end = p.tiles[tile + 1];
  TileSums sums[kSamplesAtOnce];
  for (std::size_t n = 0; n < batch; ++n) sums[n] = {};
  for (std::size_t begin = p.tiles[tile]; begin < end; begin += kStepsAtOnce) {
    const std::size_t n_steps = local_min(kStepsAtOnce, end - begin);
    Step steps[kStepsAtOnce];
    for (std::size_t i = 0; i < n_steps; ++i)
      steps[i] = load_step(table, p.entries + (begin + i) * 32);
    // Two samples share what is loaded of a step.
    const std::uint16_t* starts = p.starts + begin;
    std::size_t n = 0;
    for (; n + 2 <= batch; n += 2)
      add_steps<2>(steps, n_steps, starts, bytes + n * 2 * stride, stride, sums + n);
    if (n < batch) add_steps<1>(steps, n_steps, starts, bytes + n * 2 * stride, stride, sums + n);
  }
  for (std::size_t n = 0; n < batch; ++n) write_tile(p, tile, sums[n], units[n], y + n * y_stride);
}

}  // namespace

void codebook_linear_i16_bytes(const CodebookBytesParams& params, const std::uint8_t* bytes,
                               std::size_t batch, std::size_t stride, const double* units,
                               std::size_t tile_begin, std::size_t tile_end, float* y,
                               std::size_t y_stride) {
  const Table table = load_table(params.levels);
  for (std::size_t tile = tile_begin; tile < tile_end; ++tile) {
    for (std::size_t n = 0; n < batch; n += kSamplesAtOnce) {
      const std::size_t count = local_min(kSamplesAtOnce, batch - n);
      const std::uint8_t* from = bytes + n * 2 * stride;
      float* to = y + n * y_stride;
      if (count == 1) {
        tile_of_few<1>(params, table, tile, from, stride, units + n, to, y_stride);
      } else if (count == 2) {
        tile_of_few<2>(params, table, tile, from, stride, units + n, to, y_stride);
      } else {
        tile_of_many(params, table, tile, from, count, stride, units + n, to, y_stride);
      }
    }
  }
}

void split_i16_u8(const std::int16_t* q, std::size_t count, std::uint8_t* lower,
                  std::uint8_t* upper) {
  const __m256i low_byte = _mm256_set1_epi16(0xFF);
  // vpackuswb packs within lanes.
  const auto store = [](std::uint8_t* to, __m256i a, __m256i b) __attribute__((always_inline)) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xD8));
  };
  for (std::size_t k = 0; k < count; k += 32) {
    const __m256i a = load_q(q + k);
    const __m256i b = load_q(q + k + 16);
    store(lower + k, _mm256_and_si256(a, low_byte), _mm256_and_si256(b, low_byte));
    store(upper + k, _mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
  }
}

void codebook_linear_i16(const CodebookDenseParams& params, const std::int16_t* q,
                         std::size_t batch, std::size_t q_stride, const double* units,
                         std::size_t row_begin, std::size_t row_end, float* y,
                         std::size_t y_stride) {
  const Table table = load_table(params.levels);
  for (std::size_t row = row_begin; row < row_end; ++row) {
    std::size_t n = 0;
    for (; n + 4 <= batch; n += 4) {
      row_of<4>(params, table, row, q + n * q_stride, q_stride, units + n, y + n * y_stride,
                y_stride);
    }
    for (; n < batch; ++n) {
      row_of<1>(params, table, row, q + n * q_stride, q_stride, units + n, y + n * y_stride,
                y_stride);
    }
  }
}

}  // namespace tac::kernels::avx2
