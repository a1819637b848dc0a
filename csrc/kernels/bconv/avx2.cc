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
//   [nibble 0..7 of the word][lane 0..7] -> bytes | channel lane + 24 | + 16 | + 8 | lane |
//
// so the bytes of a 32-bit lane widen, with masks and shifts alone, to four registers of 8
// channels in order. A tile of 4 pixels x 64 channels keeps 8 counters and 2 weights in registers.
// Pixels at a border join a tile: each tap is counted for those that see it. All sums are modulo
// 2^32; the result is exact where it fits int32.
// 3x3, 512 -> 512 channels at 8x8: 680 nominal GMAC/s, 90 % of what lookup and addition reach on
// registers alone, on one core of a Zen 4 EPYC VM, g++ 12 (tac_kernel_bench).
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

// Neighbouring taps of a row and the pixels of the tile that see them inside the map.
struct Segment {
  std::size_t first_kx, n_kx, first_pixel, n_pixels;
};
// A tap leaves the map at most once per pixel and side.
constexpr std::size_t kMaxSegments = 2 * kTilePixels + 1;

// What the pixels of a tile see: in each of n_rows rows the segments, whose words are n_runs runs
// contiguous in both input and weights.
struct Taps {
  std::size_t n_rows, n_segments;
  Segment segments[kMaxSegments];
  bool touch;                            // neighbouring taps are one run
  std::size_t words;                     // of a tap
  std::ptrdiff_t x_row, x_tap, x_pixel;  // distances in the input
  std::size_t w_row, w_tap, w_group;     // distances in the weights
};

struct Output {
  std::size_t n_pixels;
  const std::int32_t* previous[kTilePixels];  // base row, or what the sums before have left
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

// What a pixel has counted so far.
template <std::size_t kGroups>
struct Counts {
  alignas(32) std::uint8_t bytes[kGroups][32];
  alignas(32) std::uint16_t sums[kGroups][2][16];  // of bytes 0 and 2 of a lane, of bytes 1 and 3
};

template <std::size_t kGroups>
inline void clear(Counts<kGroups>* counts, std::size_t n_pixels) {
  for (std::size_t p = 0; p < n_pixels; ++p) {
#pragma GCC unroll 2
    for (std::size_t g = 0; g < kGroups; ++g) {
      store(counts[p].bytes[g], _mm256_setzero_si256());
      store(counts[p].sums[g][0], _mm256_setzero_si256());
      store(counts[p].sums[g][1], _mm256_setzero_si256());
    }
  }
}

// Counts n_words words of one run, then widens where the bytes have no room for as much again. Not
// inlined: GCC 12 then keeps the registers for this loop.
template <std::size_t kPixels, std::size_t kGroups>
[[gnu::noinline]] void count(const std::uint32_t* x, std::size_t x_pixel, const std::uint32_t* w,
                             std::size_t w_group, std::size_t n_words, bool widens,
                             Counts<kGroups>* counts) {
  __m256i acc_u8x32[kPixels][kGroups];
#pragma GCC unroll 4
  for (std::size_t p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (std::size_t g = 0; g < kGroups; ++g) acc_u8x32[p][g] = load(counts[p].bytes[g]);
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
      for (std::size_t g = 0; g < kGroups; ++g) {
        w_u8x32[g] = load(w + g * w_group + half * kLanes);
        // Loaded once: GCC 12 would let both lookups of 2 pixels load it.
        if constexpr (kPixels > 1) asm("" : "+x"(w_u8x32[g]));
      }
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
        store(counts[p].bytes[g], acc_u8x32[p][g]);
        continue;
      }
      auto* sums = counts[p].sums[g];
      const __m256i even = _mm256_and_si256(acc_u8x32[p][g], low_u16x16);
      const __m256i odd = _mm256_srli_epi16(acc_u8x32[p][g], 8);
      store(sums[0], _mm256_add_epi16(load(sums[0]), even));
      store(sums[1], _mm256_add_epi16(load(sums[1]), odd));
      store(counts[p].bytes[g], _mm256_setzero_si256());
    }
  }
}

template <std::size_t kGroups>
inline void count(std::size_t n_pixels, const std::uint32_t* x, std::size_t x_pixel,
                  const std::uint32_t* w, std::size_t w_group, std::size_t n_words, bool widens,
                  Counts<kGroups>* counts) {
  switch (n_pixels) {
    case 1: return count<1, kGroups>(x, x_pixel, w, w_group, n_words, widens, counts);
    case 2: return count<2, kGroups>(x, x_pixel, w, w_group, n_words, widens, counts);
    case 3: return count<3, kGroups>(x, x_pixel, w, w_group, n_words, widens, counts);
    default: return count<4, kGroups>(x, x_pixel, w, w_group, n_words, widens, counts);
  }
}

// Counts of the channels of a register, 8 at a time.
struct Wide {
  __m256i i32x8[4];
};
template <std::size_t kGroups>
inline Wide wide(const Counts<kGroups>& counts, std::size_t g) {
  const __m256i low_u16x16 = _mm256_set1_epi16(0xFF), low_u32x8 = _mm256_set1_epi32(0xFFFF);
  const __m256i bytes = load(counts.bytes[g]);
  const __m256i even =
      _mm256_add_epi16(load(counts.sums[g][0]), _mm256_and_si256(bytes, low_u16x16));
  const __m256i odd = _mm256_add_epi16(load(counts.sums[g][1]), _mm256_srli_epi16(bytes, 8));
  return {{_mm256_and_si256(even, low_u32x8), _mm256_and_si256(odd, low_u32x8),
           _mm256_srli_epi32(even, 16), _mm256_srli_epi32(odd, 16)}};
}

// y = (previous - factor * counts) >> shift
template <std::size_t kGroups>
inline void write(const Counts<kGroups>* counts, const Output& output, int shift_by) {
  const __m256i factor_i32x8 = _mm256_set1_epi32(output.factor);
  const __m128i shift = _mm_cvtsi32_si128(shift_by);
  for (std::size_t p = 0; p < output.n_pixels; ++p) {
#pragma GCC unroll 2
    for (std::size_t g = 0; g < kGroups; ++g) {
      const Wide count = wide(counts[p], g);
#pragma GCC unroll 2
      for (std::size_t b = 0; b < kGroupBlocks; ++b) {
        const std::size_t block = g * kGroupBlocks + b;
        if (block < output.block_begin || block >= output.block_end) continue;
        const std::size_t at = (block - output.block_begin) * kBconvBlock;
        const std::int32_t* previous = output.previous[p] + at;
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
template <std::size_t kGroups>
inline void write_bits(const Counts<kGroups>* counts, const Output& output,
                       const std::int32_t (*earlier)[kGroups][4][kLanes]) {
  for (std::size_t p = 0; p < output.n_pixels; ++p) {
#pragma GCC unroll 2
    for (std::size_t g = 0; g < kGroups; ++g) {
      const Wide count = wide(counts[p], g);
      std::uint32_t above = 0;
#pragma GCC unroll 4
      for (std::size_t i = 0; i < 4; ++i) {
        __m256i total = count.i32x8[i];
        if (earlier != nullptr) total = _mm256_add_epi32(total, load(earlier[p][g][i]));
        const __m256i limit = load(output.previous[p] + (g * 4 + i) * kLanes);
        const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(total, limit)));
        above |= static_cast<std::uint32_t>(mask) << i * kLanes;
      }
      output.bits[p * output.stride + g] = ~above ^ output.flip[g];
    }
  }
}

template <std::size_t kGroups>
inline void tile(const Taps& taps, const std::uint32_t* x, std::ptrdiff_t x_offset,
                 const std::uint32_t* w, Output& output) {
  Counts<kGroups> counts[kTilePixels];
  clear(counts, output.n_pixels);
  alignas(32) std::int32_t earlier[kTilePixels][kGroups][4][kLanes];  // where bits are written
  bool has_earlier = false;
  std::size_t room = kWordsPerByteCount, widens_left = kWidensPerShortCount;
  for (std::size_t row = 0; row < taps.n_rows; ++row) {
    for (std::size_t i = 0; i < taps.n_segments; ++i) {
      const Segment& segment = taps.segments[i];
      const std::size_t n_runs = taps.touch ? 1 : segment.n_kx;
      const std::size_t run_words = taps.touch ? segment.n_kx * taps.words : taps.words;
      // Pieces of one length, so that none is short.
      const std::size_t n_pieces = local_ceil_div(run_words, kWordsPerByteCount);
      const std::size_t piece = n_pieces == 1 ? run_words : local_ceil_div(run_words, n_pieces);
      for (std::size_t run = 0; run < n_runs; ++run) {
        const std::size_t kx = segment.first_kx + run;
        const std::uint32_t* x_word =
            x + (x_offset + static_cast<std::ptrdiff_t>(row) * taps.x_row +
                 static_cast<std::ptrdiff_t>(kx) * taps.x_tap +
                 static_cast<std::ptrdiff_t>(segment.first_pixel) * taps.x_pixel);
        const std::uint32_t* w_word = w + row * taps.w_row + kx * taps.w_tap;
        for (std::size_t left = run_words; left != 0;) {
          const std::size_t n_words = local_min(left, piece);
          // Pixels of one segment fill up alike.
          const bool widens = taps.n_segments != 1 || room - n_words < piece;
          count(segment.n_pixels, x_word, static_cast<std::size_t>(taps.x_pixel), w_word,
                taps.w_group, n_words, widens, counts + segment.first_pixel);
          left -= n_words;
          room -= n_words;
          x_word += n_words;
          w_word += n_words * kWordStep;
          if (!widens) continue;
          room = kWordsPerByteCount;
          if (--widens_left != 0) continue;
          if (output.bits == nullptr) {
            write(counts, output, 0);
            for (std::size_t p = 0; p < output.n_pixels; ++p) {
              output.previous[p] = output.y + p * output.stride;
            }
          } else {
            for (std::size_t p = 0; p < output.n_pixels; ++p) {
              for (std::size_t g = 0; g < kGroups; ++g) {
                const Wide count = wide(counts[p], g);
                for (std::size_t j = 0; j < 4; ++j) {
                  std::int32_t* sum = earlier[p][g][j];
                  store(sum,
                        has_earlier ? _mm256_add_epi32(load(sum), count.i32x8[j]) : count.i32x8[j]);
                }
              }
            }
            has_earlier = true;
          }
          clear(counts, output.n_pixels);
          widens_left = kWidensPerShortCount;
        }
      }
    }
  }
  if (output.bits == nullptr) {
    write(counts, output, output.shift);
  } else {
    write_bits(counts, output, has_earlier ? earlier : nullptr);
  }
}

// The segments of n_pixels pixels from ox.
inline void find_segments(const BconvParams& p, std::size_t ox, std::size_t n_pixels, Taps& taps) {
  LocalTapRange seen[kTilePixels];  // both ends fall from pixel to pixel
  for (std::size_t i = 0; i < n_pixels; ++i) {
    const auto ix0 = static_cast<std::ptrdiff_t>((ox + i) * p.stride_w) -
                     static_cast<std::ptrdiff_t>(p.pad_left);
    seen[i] =
        local_tap_range(ix0, p.kernel_w, p.dilation_w, 0, static_cast<std::ptrdiff_t>(p.in_w));
  }
  taps.n_segments = 0;
  for (std::size_t kx = seen[n_pixels - 1].begin; kx < seen[0].end;) {
    std::size_t first = 0, end = n_pixels, next = seen[0].end;
    for (std::size_t i = n_pixels; i-- > 0;) {
      if (seen[i].begin > kx) {
        first = local_max(first, i + 1);
        next = local_min(next, seen[i].begin);
      } else if (seen[i].end <= kx) {
        end = i;
      } else {
        next = local_min(next, seen[i].end);
      }
    }
    if (first < end) taps.segments[taps.n_segments++] = {kx, next - kx, first, end - first};
    kx = next;
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
  const auto iy = static_cast<std::ptrdiff_t>(oy * p.stride_h + ky.begin * p.dilation_h) -
                  static_cast<std::ptrdiff_t>(p.pad_top);

  Taps taps;
  taps.n_rows = ky.end - ky.begin;
  // Neighbouring taps read neighbouring words when nothing lies between their channels.
  taps.touch = p.dilation_w == 1 && p.pixel_words == p.words;
  taps.words = p.words;
  taps.x_row = static_cast<std::ptrdiff_t>(p.dilation_h * p.in_w * p.pixel_words);
  taps.x_tap = static_cast<std::ptrdiff_t>(p.dilation_w * p.pixel_words);
  taps.x_pixel = static_cast<std::ptrdiff_t>(p.stride_w * p.pixel_words);
  taps.w_tap = p.words * kWordStep;
  taps.w_row = p.kernel_w * taps.w_tap;
  taps.w_group = p.kernel_h * taps.w_row;

  const std::size_t base_row =
      (out.bits == nullptr ? p.n_blocks : local_ceil_div(p.n_blocks, 2) * 2) * kBconvBlock;
  const std::size_t n_pairs = p.n_in_planes * p.n_w_planes;
  const std::size_t group_end = local_ceil_div(block_end, kGroupBlocks);
  for (std::size_t group = block_begin / kGroupBlocks; group < group_end; group += kTileGroups) {
    const bool two_groups = group_end - group > 1;
    const std::size_t tile_block = group * kGroupBlocks;  // may lie in front of block_begin
    const std::size_t first_block = local_max(tile_block, block_begin);
    const std::size_t first = first_block - block_begin;
    for (std::size_t ox = 0; ox < p.out_w; ox += kTilePixels) {
      Output output = {};
      output.n_pixels = local_min(kTilePixels, p.out_w - ox);
      if (ox >= full.begin && ox + output.n_pixels <= full.end) {
        taps.n_segments = 1;
        taps.segments[0] = {0, p.kernel_w, 0, output.n_pixels};
      } else {
        find_segments(p, ox, output.n_pixels, taps);
      }
      output.y = out.bits == nullptr ? out.sums + ox * out.stride + first * kBconvBlock : nullptr;
      output.bits = out.bits == nullptr ? nullptr : out.bits + ox * out.stride + first / 2;
      output.flip = out.bits == nullptr ? nullptr : out.flip + first_block / 2;
      output.stride = out.stride;
      output.block_begin = first_block - tile_block;
      output.block_end = block_end - tile_block;
      for (std::size_t i = 0; i < output.n_pixels; ++i) {
        output.previous[i] =
            p.base + (p.row_class[oy] + p.col_class[ox + i]) * base_row + first_block * kBconvBlock;
      }
      // Of tap 0 of pixel ox, which may lie in front of the row.
      const std::ptrdiff_t x_offset =
          (iy * static_cast<std::ptrdiff_t>(p.in_w) + static_cast<std::ptrdiff_t>(ox * p.stride_w) -
           static_cast<std::ptrdiff_t>(p.pad_left)) *
          static_cast<std::ptrdiff_t>(p.pixel_words);
      for (std::size_t pair = 0; pair < n_pairs; ++pair) {
        if (out.bits == nullptr) {
          output.factor = static_cast<std::int32_t>(2U * static_cast<std::uint32_t>(p.coef[pair]));
          output.shift = pair + 1 == n_pairs ? p.shift : 0;
        }
        const std::uint32_t* x = input + pair / p.n_w_planes * p.in_plane_words;
        const std::uint32_t* w = p.weights + pair % p.n_w_planes * p.w_plane_words +
                                 group * taps.w_group + ky.begin * taps.w_row;
        if (two_groups) {
          tile<2>(taps, x, x_offset, w, output);
        } else {
          tile<1>(taps, x, x_offset, w, output);
        }
        for (std::size_t i = 0; i < output.n_pixels; ++i) {
          output.previous[i] = output.y + i * out.stride;
        }
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
