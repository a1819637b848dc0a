// bconv_b1_i32 and bconv_b1_bits without a popcount instruction (bconv.h has the contract).
//
// No bit is counted at run time. The activations choose a table of 16 bytes, popcount(a ^ n) for
// their nibble a and every n; the weights, one nibble a byte, look it up for 32 output channels:
//
//   acc_u8x32[pixel] += vpshufb(table[a[pixel]], w_u8x32)      2 instructions for 128 MACs
//
// Tables come in pairs, one pair per byte of activations: 8 KB, and one address for two lookups.
// A byte counter gains at most 4 per nibble, so bytes are widened to 16 bits after 7 words, and
// 16 bits to 32 after 292 times that. Packed weights, for a group of 32 channels and each word of
// a row:
//
//   [nibble 0..7 of the word][lane 0..7] -> | channel lane + 24 | + 16 | + 8 | lane |   one byte
//   each
//
// so the bytes of a 32-bit lane widen, with masks and shifts alone, to four registers of 8
// channels in order. A tile of 4 pixels x 64 channels keeps 8 counters and 2 weights in registers.
// Pixels of a tile see the same taps. All sums are modulo 2^32; the result is exact where it fits
// int32.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/bconv/bconv.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {
namespace {

constexpr std::size_t kTilePixels = 4;
constexpr std::size_t kTileGroups = 2;
constexpr std::size_t kGroupBlocks = 2;  // blocks in a register
constexpr std::size_t kLanes = 8;
constexpr std::size_t kNibbles = 8;                   // in a word
constexpr std::size_t kWordStep = kNibbles * kLanes;  // packed words per word of a row
constexpr std::size_t kWordsPerByteCount = 7;         // 7 * 8 * 4 <= 255
constexpr std::size_t kWidensPerShortCount = 65535 / (kWordsPerByteCount * 32);

struct TablePairs {
  alignas(64) std::uint8_t counts[256][2][16];  // [byte][its low, high nibble][other nibble]
};
constexpr TablePairs make_table_pairs() {
  TablePairs pairs{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    for (unsigned half = 0; half < 2; ++half) {
      for (unsigned other = 0; other < 16; ++other) {
        for (unsigned bits = (byte >> 4 * half & 15U) ^ other; bits != 0; bits >>= 1) {
          pairs.counts[byte][half][other] += bits & 1U;
        }
      }
    }
  }
  return pairs;
}
constexpr TablePairs kTablePairs = make_table_pairs();

// The taps that the pixels of a tile see, as n_rows x n_runs runs of words contiguous in both input
// and weights.
struct Runs {
  std::size_t n_rows, n_runs, run_words;
  std::size_t piece;                  // words of a run that are counted at a time
  std::size_t x_row, x_run, x_pixel;  // distances in the input
  std::size_t w_row, w_run, w_group;  // distances in the weights
};

struct Output {
  const std::int32_t* previous;  // base row, or what the sums before have left
  std::size_t previous_stride;   // 0: pixels that see the same taps have one base row
  std::int32_t* y;
  std::size_t stride;
  std::size_t block_begin, block_end;  // of the tile's blocks, those written: y begins at the first
  std::int32_t factor;                 // 2 * coef
  int shift;
  // Where bits are written instead, a pixel's words `stride` apart: `previous` are the limits.
  std::uint32_t* bits;
  const std::uint32_t* flip;
};

inline __m256i load(const void* p) {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}
inline void store(void* p, __m256i v) {
  _mm256_store_si256(static_cast<__m256i*>(p), v);
}

// What a tile has counted so far.
template <std::size_t kPixels, std::size_t kGroups>
struct Counts {
  alignas(32) std::uint8_t bytes[kPixels][kGroups][32];
  alignas(32) std::uint16_t sums[kPixels][kGroups][2][16];  // of bytes 0 and 2 of a lane, 1 and 3
};

template <std::size_t kPixels, std::size_t kGroups>
inline void clear(Counts<kPixels, kGroups>& counts) {
#pragma GCC unroll 4
  for (std::size_t p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (std::size_t g = 0; g < kGroups; ++g) {
      store(counts.bytes[p][g], _mm256_setzero_si256());
      store(counts.sums[p][g][0], _mm256_setzero_si256());
      store(counts.sums[p][g][1], _mm256_setzero_si256());
    }
  }
}

// Counts n_words words of one run, then widens where the bytes have no room for as much again. Not
// inlined: GCC 12 then keeps the registers for this loop.
template <std::size_t kPixels, std::size_t kGroups>
[[gnu::noinline]] void count(const std::uint32_t* x, std::size_t x_pixel, const std::uint32_t* w,
                             std::size_t w_group, std::size_t n_words, bool widens,
                             Counts<kPixels, kGroups>& counts) {
  __m256i acc_u8x32[kPixels][kGroups];
#pragma GCC unroll 4
  for (std::size_t p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (std::size_t g = 0; g < kGroups; ++g) acc_u8x32[p][g] = load(counts.bytes[p][g]);
  }
  const auto* x_byte = reinterpret_cast<const std::uint8_t*>(x);
  x_pixel *= sizeof(std::uint32_t);
  for (const std::uint8_t* end = x_byte + n_words * sizeof(std::uint32_t); x_byte != end;
       ++x_byte, w += 2 * kLanes) {
    const std::uint8_t (*tables[kPixels])[16];
#pragma GCC unroll 4
    for (std::size_t p = 0; p < kPixels; ++p) {
      tables[p] = kTablePairs.counts[x_byte[p * x_pixel]];
    }
#pragma GCC unroll 2
    for (std::size_t half = 0; half < 2; ++half) {
      __m256i w_u8x32[kGroups];
#pragma GCC unroll 2
      for (std::size_t g = 0; g < kGroups; ++g) w_u8x32[g] = load(w + g * w_group + half * kLanes);
#pragma GCC unroll 4
      for (std::size_t p = 0; p < kPixels; ++p) {
        const __m256i table = _mm256_broadcastsi128_si256(
            _mm_load_si128(reinterpret_cast<const __m128i*>(tables[p][half])));
#pragma GCC unroll 2
        for (std::size_t g = 0; g < kGroups; ++g) {
          acc_u8x32[p][g] =
              _mm256_add_epi8(acc_u8x32[p][g], _mm256_shuffle_epi8(table, w_u8x32[g]));
          // Pins the counter to its register; GCC 12 otherwise moves or spills counters.
          asm("" : "+x"(acc_u8x32[p][g]));
        }
      }
    }
  }
  const __m256i low_u16x16 = _mm256_set1_epi16(0xFF);
#pragma GCC unroll 4
  for (std::size_t p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (std::size_t g = 0; g < kGroups; ++g) {
      if (!widens) {
        store(counts.bytes[p][g], acc_u8x32[p][g]);
        continue;
      }
      auto* sums = counts.sums[p][g];
      const __m256i even = _mm256_and_si256(acc_u8x32[p][g], low_u16x16);
      const __m256i odd = _mm256_srli_epi16(acc_u8x32[p][g], 8);
      store(sums[0], _mm256_add_epi16(load(sums[0]), even));
      store(sums[1], _mm256_add_epi16(load(sums[1]), odd));
      store(counts.bytes[p][g], _mm256_setzero_si256());
    }
  }
}

// Counts of the channels of a register, 8 at a time.
struct Wide {
  __m256i i32x8[4];
};
template <std::size_t kPixels, std::size_t kGroups>
inline Wide wide(const Counts<kPixels, kGroups>& counts, std::size_t p, std::size_t g) {
  const __m256i low_u16x16 = _mm256_set1_epi16(0xFF), low_u32x8 = _mm256_set1_epi32(0xFFFF);
  const __m256i bytes = load(counts.bytes[p][g]);
  const __m256i even =
      _mm256_add_epi16(load(counts.sums[p][g][0]), _mm256_and_si256(bytes, low_u16x16));
  const __m256i odd = _mm256_add_epi16(load(counts.sums[p][g][1]), _mm256_srli_epi16(bytes, 8));
  return {{_mm256_and_si256(even, low_u32x8), _mm256_and_si256(odd, low_u32x8),
           _mm256_srli_epi32(even, 16), _mm256_srli_epi32(odd, 16)}};
}

// y = (previous - factor * counts) >> shift
template <std::size_t kPixels, std::size_t kGroups>
inline void write(const Counts<kPixels, kGroups>& counts, const Output& output, int shift_by) {
  const __m256i factor_i32x8 = _mm256_set1_epi32(output.factor);
  const __m128i shift = _mm_cvtsi32_si128(shift_by);
  for (std::size_t p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (std::size_t g = 0; g < kGroups; ++g) {
      const Wide count = wide(counts, p, g);
#pragma GCC unroll 2
      for (std::size_t b = 0; b < kGroupBlocks; ++b) {
        const std::size_t block = g * kGroupBlocks + b;
        if (block < output.block_begin || block >= output.block_end) continue;
        const std::size_t at = (block - output.block_begin) * kBconvBlock;
        const std::int32_t* previous = output.previous + p * output.previous_stride + at;
        std::int32_t* y = output.y + p * output.stride + at;
#pragma GCC unroll 2
        for (std::size_t i = 0; i < kBconvBlock / kLanes; ++i) {
          const __m256i product = _mm256_mullo_epi32(count.i32x8[2 * b + i], factor_i32x8);
          const __m256i sum = _mm256_sub_epi32(load(previous + i * kLanes), product);
          store(y + i * kLanes, _mm256_sra_epi32(sum, shift));
        }
      }
    }
  }
}

// Whole registers: limits of channels that do not exist are -1. `earlier`, if not null, is what the
// sums before have counted.
template <std::size_t kPixels, std::size_t kGroups>
inline void write_bits(const Counts<kPixels, kGroups>& counts, const Output& output,
                       const std::int32_t* earlier) {
  for (std::size_t p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (std::size_t g = 0; g < kGroups; ++g) {
      Wide count = wide(counts, p, g);
      std::uint32_t above = 0;
#pragma GCC unroll 4
      for (std::size_t i = 0; i < 4; ++i) {
        if (earlier != nullptr) {
          count.i32x8[i] = _mm256_add_epi32(count.i32x8[i],
                                            load(earlier + ((p * kGroups + g) * 4 + i) * kLanes));
        }
        const __m256i limit = load(output.previous + (g * 4 + i) * kLanes);
        const int mask =
            _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(count.i32x8[i], limit)));
        above |= static_cast<std::uint32_t>(mask) << i * kLanes;
      }
      output.bits[p * output.stride + g] = ~above ^ output.flip[g];
    }
  }
}

template <std::size_t kPixels, std::size_t kGroups>
inline void tile(const Runs& runs, const std::uint32_t* x, const std::uint32_t* w, Output& output) {
  Counts<kPixels, kGroups> counts;
  clear(counts);
  alignas(32) std::int32_t earlier[kPixels * kGroups * 4 * kLanes];  // where bits are written
  bool has_earlier = false;
  std::size_t room = kWordsPerByteCount, widens_left = kWidensPerShortCount;
  for (std::size_t row = 0; row < runs.n_rows; ++row) {
    for (std::size_t run = 0; run < runs.n_runs; ++run) {
      const std::uint32_t* x_word = x + row * runs.x_row + run * runs.x_run;
      const std::uint32_t* w_word = w + row * runs.w_row + run * runs.w_run;
      for (std::size_t left = runs.run_words; left != 0;) {
        const std::size_t n_words = local_min(left, runs.piece);
        const bool widens = room - n_words < runs.piece;
        count(x_word, runs.x_pixel, w_word, runs.w_group, n_words, widens, counts);
        left -= n_words;
        room -= n_words;
        x_word += n_words;
        w_word += n_words * kWordStep;
        if (!widens) continue;
        room = kWordsPerByteCount;
        if (--widens_left != 0) continue;
        if (output.bits == nullptr) {
          write(counts, output, 0);
          output.previous = output.y;
          output.previous_stride = output.stride;
        } else {
          for (std::size_t i = 0; i < kPixels * kGroups; ++i) {
            const Wide count = wide(counts, i / kGroups, i % kGroups);
            for (std::size_t j = 0; j < 4; ++j) {
              std::int32_t* sum = earlier + (i * 4 + j) * kLanes;
              store(sum,
                    has_earlier ? _mm256_add_epi32(load(sum), count.i32x8[j]) : count.i32x8[j]);
            }
          }
          has_earlier = true;
        }
        clear(counts);
        widens_left = kWidensPerShortCount;
      }
    }
  }
  if (output.bits == nullptr) {
    write(counts, output, output.shift);
  } else {
    write_bits(counts, output, has_earlier ? earlier : nullptr);
  }
}

// Sums, or bits.
struct Destination {
  std::int32_t* sums;
  std::uint32_t* bits;
  const std::uint32_t* flip;
  std::size_t stride;
};

inline void convolve(const BconvParams& p, const std::uint32_t* input, std::size_t oy,
                     std::size_t block_begin, std::size_t block_end, const Destination& out) {
  TAC_DCHECK(block_begin <= block_end && block_end <= p.n_blocks);
  const auto iy0 =
      static_cast<std::ptrdiff_t>(oy * p.stride_h) - static_cast<std::ptrdiff_t>(p.pad_top);
  const LocalTapRange ky =
      local_tap_range(iy0, p.kernel_h, p.dilation_h, 0, static_cast<std::ptrdiff_t>(p.in_h));
  const LocalTapRange full =
      local_full_windows(p.out_w, p.stride_w, p.pad_left, p.dilation_w, p.kernel_w, p.in_w);
  const std::size_t iy = oy * p.stride_h + ky.begin * p.dilation_h - p.pad_top;
  const std::size_t w_tap = p.words * kWordStep;
  // Neighbouring taps read neighbouring words when nothing lies between their channels.
  const bool taps_touch = p.dilation_w == 1 && p.pixel_words == p.words;

  Runs runs;
  runs.x_row = p.dilation_h * p.in_w * p.pixel_words;
  runs.x_run = p.dilation_w * p.pixel_words;
  runs.x_pixel = p.stride_w * p.pixel_words;
  runs.w_row = p.kernel_w * w_tap;
  runs.w_run = w_tap;
  runs.w_group = p.kernel_h * runs.w_row;

  const std::size_t base_row =
      (out.bits == nullptr ? p.n_blocks : local_ceil_div(p.n_blocks, 2) * 2) * kBconvBlock;
  const std::size_t n_pairs = p.n_in_planes * p.n_w_planes;
  const std::size_t group_end = local_ceil_div(block_end, kGroupBlocks);
  for (std::size_t group = block_begin / kGroupBlocks; group < group_end; group += kTileGroups) {
    const bool two_groups = group_end - group > 1;
    const std::size_t tile_block = group * kGroupBlocks;  // may lie in front of block_begin
    const std::size_t first_block = local_max(tile_block, block_begin);
    for (std::size_t ox = 0, n_pixels; ox < p.out_w; ox += n_pixels) {
      LocalTapRange kx{0, p.kernel_w};
      n_pixels = 1;
      if (ox >= full.begin && ox < full.end) {
        n_pixels = local_min(kTilePixels, full.end - ox);
      } else {
        const auto ix0 =
            static_cast<std::ptrdiff_t>(ox * p.stride_w) - static_cast<std::ptrdiff_t>(p.pad_left);
        kx = local_tap_range(ix0, p.kernel_w, p.dilation_w, 0, static_cast<std::ptrdiff_t>(p.in_w));
      }
      const std::size_t n_kx = kx.end - kx.begin;
      runs.n_runs = taps_touch ? 1 : n_kx;
      runs.run_words = taps_touch ? n_kx * p.words : p.words;
      // Pieces of one length, so that none is short.
      const std::size_t n_pieces = local_ceil_div(runs.run_words, kWordsPerByteCount);
      runs.piece = local_ceil_div(runs.run_words, local_max(n_pieces, 1));
      runs.n_rows = n_kx == 0 ? 0 : ky.end - ky.begin;
      const std::size_t ix = ox * p.stride_w + kx.begin * p.dilation_w - p.pad_left;
      const std::size_t x_offset = runs.n_rows == 0 ? 0 : (iy * p.in_w + ix) * p.pixel_words;
      const std::size_t w_offset =
          runs.n_rows == 0 ? 0 : group * runs.w_group + ky.begin * runs.w_row + kx.begin * w_tap;

      const std::size_t first = first_block - block_begin;
      Output output;
      output.y = out.bits == nullptr ? out.sums + ox * out.stride + first * kBconvBlock : nullptr;
      output.bits = out.bits == nullptr ? nullptr : out.bits + ox * out.stride + first / 2;
      output.flip = out.bits == nullptr ? nullptr : out.flip + first_block / 2;
      output.stride = out.stride;
      output.block_begin = first_block - tile_block;
      output.block_end = block_end - tile_block;
      output.previous =
          p.base + (p.row_class[oy] + p.col_class[ox]) * base_row + first_block * kBconvBlock;
      output.previous_stride = 0;
      for (std::size_t pair = 0; pair < n_pairs; ++pair) {
        if (out.bits == nullptr) {
          output.factor = static_cast<std::int32_t>(2U * static_cast<std::uint32_t>(p.coef[pair]));
          output.shift = pair + 1 == n_pairs ? p.shift : 0;
        }
        const std::uint32_t* x = input + pair / p.n_w_planes * p.in_plane_words + x_offset;
        const std::uint32_t* w = p.weights + pair % p.n_w_planes * p.w_plane_words + w_offset;
        switch (two_groups ? n_pixels : kTilePixels + n_pixels) {
          case 1: tile<1, 2>(runs, x, w, output); break;
          case 2: tile<2, 2>(runs, x, w, output); break;
          case 3: tile<3, 2>(runs, x, w, output); break;
          case 4: tile<4, 2>(runs, x, w, output); break;
          case 5: tile<1, 1>(runs, x, w, output); break;
          case 6: tile<2, 1>(runs, x, w, output); break;
          case 7: tile<3, 1>(runs, x, w, output); break;
          default: tile<4, 1>(runs, x, w, output); break;
        }
        output.previous = output.y;
        output.previous_stride = out.stride;
      }
    }
  }
}

}  // namespace

std::size_t bconv_b1_pack(const std::uint32_t* rows, std::size_t n_channels, std::size_t row_words,
                          std::uint32_t* packed) {
  const std::size_t n_groups = local_ceil_div(n_channels, kGroupBlocks * kBconvBlock);
  const std::size_t n_packed = n_groups * row_words * kWordStep;
  if (packed == nullptr) return n_packed;
  for (std::size_t group = 0; group < n_groups; ++group) {
    for (std::size_t word = 0; word < row_words; ++word, packed += kWordStep) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        std::uint32_t bits[4];
        for (std::size_t i = 0; i < 4; ++i) {
          const std::size_t channel = group * kGroupBlocks * kBconvBlock + i * kLanes + lane;
          bits[i] = channel < n_channels ? rows[channel * row_words + word] : 0;
        }
        for (std::size_t nibble = 0; nibble < kNibbles; ++nibble) {
          std::uint32_t bytes = 0;
          for (std::size_t i = 0; i < 4; ++i) bytes |= (bits[i] >> 4 * nibble & 15U) << 8 * i;
          packed[nibble * kLanes + lane] = bytes;
        }
      }
    }
  }
  return n_packed;
}

void bconv_b1_i32(const BconvParams& p, const std::uint32_t* input, std::size_t oy,
                  std::size_t block_begin, std::size_t block_end, std::int32_t* out,
                  std::size_t out_stride) {
  TAC_DCHECK(reinterpret_cast<std::uintptr_t>(out) % 64 == 0 && out_stride % kBconvBlock == 0);
  convolve(p, input, oy, block_begin, block_end, {out, nullptr, nullptr, out_stride});
}

void bconv_b1_bits(const BconvParams& p, const std::uint32_t* flip, const std::uint32_t* input,
                   std::size_t oy, std::size_t block_begin, std::size_t block_end,
                   std::uint32_t* out, std::size_t out_stride) {
  TAC_DCHECK(block_begin % 2 == 0 && p.n_in_planes == 1 && p.n_w_planes == 1);
  convolve(p, input, oy, block_begin, block_end, {nullptr, out, flip, out_stride});
}

}  // namespace tac::kernels::avx2
