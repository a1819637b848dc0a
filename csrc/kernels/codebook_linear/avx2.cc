// codebook_linear_f32, AVX2: vpshufb looks codes up in four registers, the bytes 0..3 of the 16
// floats of the table; interleaving what it finds makes floats. 32 bytes, the dwords of 8 outputs,
// are 64 weights for 24 shuffles, two in a cycle. The floats of a lane belong to one dword:
//
//   codes of a lane    a0 a1 a2 a3   b0 b1 b2 b3   c0 c1 c2 c3   d0 d1 d2 d3
//   vpshufb, 4 tables  their bytes 0   their bytes 1   their bytes 2   their bytes 3
//   vpunpck*bw, *wd    [a0 a1 a2 a3] [b0 b1 b2 b3] [c0 c1 c2 c3] [d0 d1 d2 d3]
//
// One sample goes over a list of its inputs that are not zero, with the 64 sums of half a block in
// 8 registers, in this order; they are transposed where they are loaded and stored. Elsewhere one
// more shuffle sorts the codes first, a0 b0 c0 d0 a1 .., and the floats are consecutive outputs. A
// batch is multiplied by panels of decoded weights, 3 samples x 32 outputs at a time. K is cut into
// chunks; the sums wait in y. No sum crosses lanes. 8192 -> 1024 on one core of a Zen 3 EPYC: batch
// 1 0.78 ms, 0.44 ms with half of the inputs 0; the dense layer takes 1.2 ms.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/codebook_linear/codebook_linear.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {
namespace {

constexpr std::size_t kLine = 64;        // bytes: one input, or 8 / J of a block of J nibbles
constexpr std::size_t kListChunk = 512;  // inputs
constexpr std::size_t kPrefetch = 16;    // lines ahead
constexpr std::size_t kPanelChunk = 64;  // lines
constexpr std::size_t kPanelSamples = 3;

struct Block {
  const std::uint8_t* codes;
  const std::uint8_t* mask;  // nullptr: none
  std::size_t n_inputs, n_outputs;
};

// Byte b of the 16 values, in both lanes.
struct Table {
  __m256i bytes[4];
};

static inline Table load_table(const float* values) {
  alignas(32) std::uint8_t bytes[4][32];
  for (std::size_t i = 0; i < 16; ++i) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, values + i, sizeof bits);
    for (std::size_t b = 0; b < 4; ++b)
      bytes[b][i] = bytes[b][16 + i] = static_cast<std::uint8_t>(bits >> (8 * b));
  }
  Table t;
  for (std::size_t b = 0; b < 4; ++b)
    t.bytes[b] = _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes[b]));
  return t;
}

static inline void look_up(const Table& t, __m256i codes, __m256 w[4]) {
  const __m256i b0 = _mm256_shuffle_epi8(t.bytes[0], codes);
  const __m256i b1 = _mm256_shuffle_epi8(t.bytes[1], codes);
  const __m256i b2 = _mm256_shuffle_epi8(t.bytes[2], codes);
  const __m256i b3 = _mm256_shuffle_epi8(t.bytes[3], codes);
  const __m256i low01 = _mm256_unpacklo_epi8(b0, b1), high01 = _mm256_unpackhi_epi8(b0, b1);
  const __m256i low23 = _mm256_unpacklo_epi8(b2, b3), high23 = _mm256_unpackhi_epi8(b2, b3);
  w[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low01, low23));
  w[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low01, low23));
  w[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(high01, high23));
  w[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(high01, high23));
}

// Byte b of dword t of a lane, at 4 t + b, goes to 4 b + t: its own inverse.
static inline __m256i sorted(__m256i bytes) {
  const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4,
                                         8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm256_shuffle_epi8(bytes, order);
}

// All ones in the bytes, unsorted, of the masked weights among nibbles p of a half.
template <int J>
static inline __m256i masked_bytes(const Block& b, std::size_t line, std::size_t half, int p) {
  // Whether dword 8 * half + i has a weight in nibble n: bit i of byte 2 * n + half.
  constexpr std::size_t kInputs = 8 / J;
  const std::size_t end = local_min((line + 1) * kInputs, b.n_inputs);
  alignas(16) std::uint8_t mask[16] = {};
  for (std::size_t k = line * kInputs; k < end; ++k)
    __builtin_memcpy(mask + k % kInputs * 2 * J, b.mask + 16 * k, 2 * J);
  const __m256i both =
      _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(mask)));
  const __m256i byte = _mm256_set1_epi32(0x0C080400);
  const __m256i bit = _mm256_setr_epi32(0x01010101, 0x02020202, 0x04040404, 0x08080808, 0x10101010,
                                        0x20202020, 0x40404040, static_cast<int>(0x80808080));
  const __m256i of_nibbles = _mm256_set1_epi8(static_cast<char>(2 * p + static_cast<int>(half)));
  const __m256i bits = _mm256_shuffle_epi8(both, _mm256_add_epi8(byte, of_nibbles));
  return _mm256_cmpeq_epi8(_mm256_and_si256(bits, bit), _mm256_setzero_si256());
}

// The weights of a half of a line. Sorted, w[p][i] has those of nibble 2 * i + p, lanes 8 * half
// on; otherwise those of dwords i and 4 + i of the half, nibbles p, p + 2, p + 4 and p + 6 of each.
template <int J, bool kMasked, bool kSorted>
static inline void decode(const Table& t, const Block& b, std::size_t line, std::size_t half,
                          __m256 w[2][4]) {
  const __m256i nibble = _mm256_set1_epi8(0xF);
  __m256i bytes =
      _mm256_load_si256(reinterpret_cast<const __m256i*>(b.codes + line * kLine + 32 * half));
  if constexpr (kSorted) bytes = sorted(bytes);
#pragma GCC unroll 2
  for (int p = 0; p < 2; ++p) {
    // The upper nibbles by a multiplication: a shift would wait where the shuffles do.
    __m256i codes = _mm256_and_si256(
        nibble, p == 0 ? bytes : _mm256_mulhi_epu16(bytes, _mm256_set1_epi16(1 << 12)));
    if constexpr (kMasked) {
      // vpshufb finds 0 where the highest bit is set.
      const __m256i masked = masked_bytes<J>(b, line, half, p);
      codes = _mm256_or_si256(codes, kSorted ? sorted(masked) : masked);
    }
    look_up(t, codes, w[p]);
  }
}

// Its own inverse.
static inline void transpose_lanes(__m256& v0, __m256& v1, __m256& v2, __m256& v3) {
  const __m256 low01 = _mm256_unpacklo_ps(v0, v1), high01 = _mm256_unpackhi_ps(v0, v1);
  const __m256 low23 = _mm256_unpacklo_ps(v2, v3), high23 = _mm256_unpackhi_ps(v2, v3);
  v0 = _mm256_shuffle_ps(low01, low23, 0x44);
  v1 = _mm256_shuffle_ps(low01, low23, 0xEE);
  v2 = _mm256_shuffle_ps(high01, high23, 0x44);
  v3 = _mm256_shuffle_ps(high01, high23, 0xEE);
}

// Sign bits of the lanes below n_outputs.
static inline __m256i lanes_of(std::size_t n_outputs) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n_outputs)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Sums of outputs [at, at + 8); those from n_outputs on are left alone.
static inline __m256 load_sums(const float* y, std::size_t at, std::size_t n_outputs) {
  if (at + 8 <= n_outputs) return _mm256_loadu_ps(y + at);
  if (at >= n_outputs) return _mm256_setzero_ps();
  return _mm256_maskload_ps(y + at, lanes_of(n_outputs - at));
}
static inline void store_sums(float* y, std::size_t at, std::size_t n_outputs, __m256 sums) {
  if (at + 8 <= n_outputs) {
    _mm256_storeu_ps(y + at, sums);
  } else if (at < n_outputs) {
    _mm256_maskstore_ps(y + at, lanes_of(n_outputs - at), sums);
  }
}

// Lines in which not all inputs are 0 (NaN is not), or all lines, with their 8 / J inputs.
struct List {
  std::size_t size;
  std::uint32_t lines[kListChunk];
  float x[kListChunk];
};

// Inputs [k_begin, k_end), k_begin the first of a line.
template <int J>
static inline void fill(List& list, const float* x, std::size_t k_begin, std::size_t k_end,
                        bool skip_zeros) {
  constexpr std::size_t kInputs = 8 / J;
  list.size = 0;
  for (std::size_t k = k_begin; k < k_end; k += kInputs) {
    std::size_t wanted = static_cast<std::size_t>(!skip_zeros);
    for (std::size_t i = 0; i < kInputs; ++i) {
      const float xi = k + i < k_end ? x[k + i] : 0.0F;
      list.x[list.size * kInputs + i] = xi;
      wanted |= static_cast<std::size_t>(xi != 0.0F);
    }
    list.lines[list.size] = static_cast<std::uint32_t>(k / kInputs);
    list.size += wanted;
  }
}

// One sample and a half of a block. Sums have the order of weights: unsorted where J is 8.
template <int J, bool kMasked>
static inline void listed(const Table& table, const Block& b, std::size_t half, const List& list,
                          bool first, float* y) {
  constexpr std::size_t kInputs = 8 / J;
  constexpr bool kSorted = J != 8;
  __m256 acc[J];
  const auto transpose = [&]() __attribute__((always_inline)) {
    if constexpr (!kSorted) {
      transpose_lanes(acc[0], acc[2], acc[4], acc[6]);
      transpose_lanes(acc[1], acc[3], acc[5], acc[7]);
    }
  };
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) {
    acc[j] = first ? _mm256_setzero_ps()
                   : load_sums(y, 16 * static_cast<std::size_t>(j) + 8 * half, b.n_outputs);
  }
  transpose();
  for (std::size_t entry = 0; entry < list.size; ++entry) {
    const std::size_t line = list.lines[entry];
    if (half == 0) {  // no pattern of lines that the hardware would foresee
      const std::size_t next = list.lines[local_min(entry + kPrefetch, list.size - 1)];
      _mm_prefetch(reinterpret_cast<const char*>(b.codes + next * kLine), _MM_HINT_T0);
    }
    __m256 w[2][4];
    decode<J, kMasked, kSorted>(table, b, line, half, w);
#pragma GCC unroll 8
    for (int n = 0; n < 8; ++n) {
      const std::size_t i = static_cast<std::size_t>(n / J);
      // Nothing is known about the weights behind the last input.
      if (kInputs > 1 && line * kInputs + i >= b.n_inputs) break;
      const __m256 x = _mm256_set1_ps(list.x[entry * kInputs + i]);
      acc[n % J] = _mm256_fmadd_ps(w[n % 2][n / 2], x, acc[n % J]);
    }
  }
  transpose();
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j)
    store_sums(y, 16 * static_cast<std::size_t>(j) + 8 * half, b.n_outputs, acc[j]);
}

static inline Block block_of(const CodebookLinearParams& p, std::size_t block) {
  return {p.codes + block * p.in_features * kLine,
          p.mask == nullptr ? nullptr : p.mask + block * p.in_features * 16, p.in_features,
          local_min(p.out_features - block * kCodebookBlock, kCodebookBlock)};
}

// One sample, blocks of J nibbles an input.
template <int J, bool kMasked>
static void single(const CodebookLinearParams& p, const Table& table, const float* x,
                   std::size_t block_begin, std::size_t block_end, float* y) {
  List list;
  for (std::size_t k = 0; k < p.in_features; k += kListChunk) {
    fill<J>(list, x, k, local_min(k + kListChunk, p.in_features), p.skip_zeros);
    for (std::size_t block = block_begin; block < block_end; ++block) {
      for (std::size_t half = 0; half < 2; ++half) {
        listed<J, kMasked>(table, block_of(p, block), half, list, k == 0,
                           y + block * kCodebookBlock);
      }
    }
  }
}

// N samples x 8 * R outputs of a panel.
template <int N, int R>
static inline void tile(const float* panel, std::size_t width, std::size_t n_inputs, const float* x,
                        std::size_t x_stride, bool first, std::size_t n_outputs, float* y,
                        std::size_t y_stride) {
  __m256 acc[N][R];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      acc[n][r] = first ? _mm256_setzero_ps()
                        : load_sums(y + static_cast<std::size_t>(n) * y_stride,
                                    8 * static_cast<std::size_t>(r), n_outputs);
    }
  }
  for (std::size_t k = 0; k < n_inputs; ++k) {
    __m256 xk[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
      xk[n] = _mm256_set1_ps(x[static_cast<std::size_t>(n) * x_stride + k]);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m256 w = _mm256_load_ps(panel + k * width + 8 * static_cast<std::size_t>(r));
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[n][r] = _mm256_fmadd_ps(w, xk[n], acc[n][r]);
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      store_sums(y + static_cast<std::size_t>(n) * y_stride, 8 * static_cast<std::size_t>(r),
                 n_outputs, acc[n][r]);
    }
  }
}

// N samples x all outputs of a panel of J nibbles an input.
template <int J, int N>
static inline void samples(const float* panel, std::size_t n_inputs, const float* x,
                           std::size_t x_stride, bool first, std::size_t n_outputs, float* y,
                           std::size_t y_stride) {
  constexpr int kRegisters = J == 1 ? 2 : 4;
  for (std::size_t o = 0; o < n_outputs; o += 8 * kRegisters) {
    tile<N, kRegisters>(panel + o, 16 * J, n_inputs, x, x_stride, first, n_outputs - o, y + o,
                        y_stride);
  }
}

// Several samples. A line is 16 floats for each nibble, so a panel [inputs][16 * J outputs].
template <int J, bool kMasked>
static void several(const Table& table, const Block& b, const float* x, std::size_t batch,
                    std::size_t x_stride, float* y, std::size_t y_stride) {
  constexpr std::size_t kInputs = 8 / J;
  alignas(64) float panel[kPanelChunk * 128];
  for (std::size_t k = 0; k < b.n_inputs; k += kPanelChunk * kInputs) {
    const std::size_t n_inputs = local_min(b.n_inputs - k, kPanelChunk * kInputs);
    for (std::size_t line = 0; line < local_ceil_div(n_inputs, kInputs); ++line) {
#pragma GCC unroll 2
      for (std::size_t half = 0; half < 2; ++half) {
        __m256 w[2][4];
        decode<J, kMasked, true>(table, b, k / kInputs + line, half, w);
#pragma GCC unroll 8
        for (std::size_t n = 0; n < 8; ++n)
          _mm256_store_ps(panel + line * 128 + 16 * n + 8 * half, w[n % 2][n / 2]);
      }
    }
    for (std::size_t n = 0; n < batch;) {
      // Tiles of about equal size: 4 samples are 2 + 2, not 3 + 1.
      const std::size_t left = batch - n;
      const std::size_t size = local_ceil_div(left, local_ceil_div(left, kPanelSamples));
      const float* xn = x + n * x_stride + k;
      float* yn = y + n * y_stride;
      if (size == 3) {
        samples<J, 3>(panel, n_inputs, xn, x_stride, k == 0, b.n_outputs, yn, y_stride);
      } else {
        samples<J, 2>(panel, n_inputs, xn, x_stride, k == 0, b.n_outputs, yn, y_stride);
      }
      n += size;
    }
  }
}

// Blocks of J nibbles an input.
template <int J, bool kMasked>
static void blocks(const CodebookLinearParams& p, const float* x, std::size_t batch,
                   std::size_t x_stride, std::size_t block_begin, std::size_t block_end, float* y,
                   std::size_t y_stride) {
  const Table table = load_table(p.table);
  if (batch == 1) {
    single<J, kMasked>(p, table, x, block_begin, block_end, y);
  } else if (batch > 1) {
    for (std::size_t block = block_begin; block < block_end; ++block) {
      several<J, kMasked>(table, block_of(p, block), x, batch, x_stride, y + block * kCodebookBlock,
                          y_stride);
    }
  }
}

template <bool kMasked>
static void all_blocks(const CodebookLinearParams& p, const float* x, std::size_t batch,
                       std::size_t x_stride, std::size_t block_begin, std::size_t block_end,
                       float* y, std::size_t y_stride) {
  // Only the last block of the layer may be small.
  const std::size_t last = p.out_features / kCodebookBlock;
  const std::size_t n_last = p.out_features % kCodebookBlock;
  const bool small = n_last != 0 && n_last <= 64 && block_begin <= last && last < block_end;
  if (block_begin < block_end - small)
    blocks<8, kMasked>(p, x, batch, x_stride, block_begin, block_end - small, y, y_stride);
  if (!small) return;
  if (n_last > 32) {
    blocks<4, kMasked>(p, x, batch, x_stride, last, block_end, y, y_stride);
  } else if (n_last > 16) {
    blocks<2, kMasked>(p, x, batch, x_stride, last, block_end, y, y_stride);
  } else {
    blocks<1, kMasked>(p, x, batch, x_stride, last, block_end, y, y_stride);
  }
}

}  // namespace

void codebook_linear_f32(const CodebookLinearParams& params, const float* x, std::size_t batch,
                         std::size_t x_stride, std::size_t block_begin, std::size_t block_end,
                         float* y, std::size_t y_stride) {
  if (params.mask == nullptr) {
    all_blocks<false>(params, x, batch, x_stride, block_begin, block_end, y, y_stride);
  } else {
    all_blocks<true>(params, x, batch, x_stride, block_begin, block_end, y, y_stride);
  }
  const std::size_t begin = block_begin * kCodebookBlock;
  const std::size_t end = local_min(block_end * kCodebookBlock, params.out_features);
  for (std::size_t n = 0; n < batch; ++n)
    for (std::size_t o = begin; o < end; ++o)
      y[n * y_stride + o] = params.bias[o] + y[n * y_stride + o];
}

}  // namespace tac::kernels::avx2
