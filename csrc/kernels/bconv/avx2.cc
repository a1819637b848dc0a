// bconv_b1_i32 without a popcount instruction (bconv.h has the contract).
//
// A block of 16 output channels is two registers; each byte of x ^ w is counted by two 16-entry
// lookups (vpshufb), and the counts stay in bytes as long as they fit:
//
//   | channel 7: byte 3 2 1 0 | ... | channel 0: byte 3 2 1 0 |    a byte gains at most 8 per word,
//   so 31 words fit
//
// then the 4 bytes of a channel are added into its 32-bit lane (vpmaddubsw, vpmaddwd). A tile of 4
// pixels x 1 block keeps 8 accumulators in registers. Pixels of a tile see the same taps. All sums
// are modulo 2^32; the result is exact where it fits int32.
// 3x3, 128 -> 128 channels at 32x32: 490 nominal GMAC/s on one core of a Zen 5 EPYC VM, g++ 12
// (tac_kernel_bench).
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/bconv/bconv.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {
namespace {

constexpr std::size_t kTilePixels = 4;
constexpr std::size_t kHalves = 2;  // registers per block
constexpr std::size_t kLanes = 8;
constexpr std::size_t kWordsPerByteCount = 31;

// The taps that the pixels of a tile see, as n_rows x n_runs runs of words contiguous in both input
// and weights.
struct Runs {
  std::size_t n_rows, n_runs, run_words;
  std::size_t x_row, x_run, x_pixel;  // distances in the input
  std::size_t w_row, w_run;           // distances in the weights
};

struct Output {
  const std::int32_t*
      previous[kTilePixels];  // base row, or what the pairs of planes before have left
  std::int32_t* y;
  std::size_t stride;
  std::int32_t factor;  // 2 * coef
  int shift;
};

inline __m256i load(const void* p) {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}

template <std::size_t kPixels>
inline void tile(const Runs& runs, const std::uint32_t* x, const std::uint32_t* w,
                 const Output& output) {
  const __m256i nibble_u8x32 = _mm256_set1_epi8(0x0F);
  const __m256i counts_u8x32 = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                                0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  __m256i acc_u8x32[kPixels][kHalves];
  __m256i acc_i32x8[kPixels][kHalves];
#pragma GCC unroll 4
  for (std::size_t p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (std::size_t h = 0; h < kHalves; ++h)
      acc_u8x32[p][h] = acc_i32x8[p][h] = _mm256_setzero_si256();
  }
  const auto widen = [&]() __attribute__((always_inline)) {
    const __m256i one_u8x32 = _mm256_set1_epi8(1);
    const __m256i one_i16x16 = _mm256_set1_epi16(1);
#pragma GCC unroll 4
    for (std::size_t p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
      for (std::size_t h = 0; h < kHalves; ++h) {
        const __m256i pairs_i16x16 = _mm256_maddubs_epi16(acc_u8x32[p][h], one_u8x32);
        acc_i32x8[p][h] =
            _mm256_add_epi32(acc_i32x8[p][h], _mm256_madd_epi16(pairs_i16x16, one_i16x16));
        acc_u8x32[p][h] = _mm256_setzero_si256();
      }
    }
  };
  std::size_t room = kWordsPerByteCount;
  for (std::size_t row = 0; row < runs.n_rows; ++row) {
    for (std::size_t run = 0; run < runs.n_runs; ++run) {
      const std::uint32_t* x_word = x + row * runs.x_row + run * runs.x_run;
      const std::uint32_t* w_word = w + row * runs.w_row + run * runs.w_run;
      for (std::size_t left = runs.run_words; left != 0;) {
        const std::size_t n_words = local_min(left, room);
        left -= n_words;
        room -= n_words;
        for (const std::uint32_t* end = x_word + n_words; x_word != end;
             ++x_word, w_word += kBconvBlock) {
          const __m256i w_b256[kHalves] = {load(w_word), load(w_word + kLanes)};
#pragma GCC unroll 4
          for (std::size_t p = 0; p < kPixels; ++p) {
            const __m256i x_b256 = _mm256_set1_epi32(static_cast<int>(x_word[p * runs.x_pixel]));
#pragma GCC unroll 2
            for (std::size_t h = 0; h < kHalves; ++h) {
              const __m256i differ = _mm256_xor_si256(x_b256, w_b256[h]);
              const __m256i low = _mm256_and_si256(differ, nibble_u8x32);
              const __m256i high = _mm256_and_si256(_mm256_srli_epi32(differ, 4), nibble_u8x32);
              const __m256i count = _mm256_add_epi8(_mm256_shuffle_epi8(counts_u8x32, low),
                                                    _mm256_shuffle_epi8(counts_u8x32, high));
              acc_u8x32[p][h] = _mm256_add_epi8(acc_u8x32[p][h], count);
            }
          }
        }
        if (room == 0) {
          widen();
          room = kWordsPerByteCount;
        }
      }
    }
  }
  widen();
  const __m256i factor_i32x8 = _mm256_set1_epi32(output.factor);
  const __m128i shift = _mm_cvtsi32_si128(output.shift);
#pragma GCC unroll 4
  for (std::size_t p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
    for (std::size_t h = 0; h < kHalves; ++h) {
      const __m256i previous = load(output.previous[p] + h * kLanes);
      const __m256i sum =
          _mm256_sub_epi32(previous, _mm256_mullo_epi32(acc_i32x8[p][h], factor_i32x8));
      _mm256_store_si256(reinterpret_cast<__m256i*>(output.y + p * output.stride + h * kLanes),
                         _mm256_sra_epi32(sum, shift));
    }
  }
}

}  // namespace

void bconv_b1_i32(const BconvParams& p, const std::uint32_t* input, std::size_t oy,
                  std::size_t block_begin, std::size_t block_end, std::int32_t* out,
                  std::size_t out_stride) {
  TAC_DCHECK(block_begin <= block_end && block_end <= p.n_blocks);
  TAC_DCHECK(reinterpret_cast<std::uintptr_t>(out) % 64 == 0 && out_stride % kBconvBlock == 0);
  const auto iy0 =
      static_cast<std::ptrdiff_t>(oy * p.stride_h) - static_cast<std::ptrdiff_t>(p.pad_top);
  const LocalTapRange ky =
      local_tap_range(iy0, p.kernel_h, p.dilation_h, 0, static_cast<std::ptrdiff_t>(p.in_h));
  const LocalTapRange full =
      local_full_windows(p.out_w, p.stride_w, p.pad_left, p.dilation_w, p.kernel_w, p.in_w);
  const std::size_t iy = oy * p.stride_h + ky.begin * p.dilation_h - p.pad_top;
  const std::size_t w_tap = p.words * kBconvBlock;
  // Neighbouring taps read neighbouring words when nothing lies between their channels.
  const bool taps_touch = p.dilation_w == 1 && p.pixel_words == p.words;

  Runs runs;
  runs.x_row = p.dilation_h * p.in_w * p.pixel_words;
  runs.x_run = p.dilation_w * p.pixel_words;
  runs.x_pixel = p.stride_w * p.pixel_words;
  runs.w_row = p.kernel_w * w_tap;
  runs.w_run = w_tap;
  const std::size_t w_block = p.kernel_h * runs.w_row;

  const std::size_t n_pairs = p.n_in_planes * p.n_w_planes;
  for (std::size_t block = block_begin; block < block_end; ++block) {
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
      runs.n_rows = n_kx == 0 ? 0 : ky.end - ky.begin;
      const std::size_t ix = ox * p.stride_w + kx.begin * p.dilation_w - p.pad_left;
      const std::size_t x_offset = runs.n_rows == 0 ? 0 : (iy * p.in_w + ix) * p.pixel_words;
      const std::size_t w_offset =
          runs.n_rows == 0 ? 0 : block * w_block + ky.begin * runs.w_row + kx.begin * w_tap;

      Output output;
      output.y = out + ox * out_stride + (block - block_begin) * kBconvBlock;
      output.stride = out_stride;
      for (std::size_t pair = 0; pair < n_pairs; ++pair) {
        for (std::size_t i = 0; i < n_pixels; ++i) {
          output.previous[i] =
              pair == 0 ? p.base + ((p.row_class[oy] + p.col_class[ox + i]) * p.n_blocks + block) *
                                       kBconvBlock
                        : output.y + i * out_stride;
        }
        output.factor = static_cast<std::int32_t>(2U * static_cast<std::uint32_t>(p.coef[pair]));
        output.shift = pair + 1 == n_pairs ? p.shift : 0;
        const std::uint32_t* x = input + pair / p.n_w_planes * p.in_plane_words + x_offset;
        const std::uint32_t* w = p.weights + pair % p.n_w_planes * p.w_plane_words + w_offset;
        switch (n_pixels) {
          case 1: tile<1>(runs, x, w, output); break;
          case 2: tile<2>(runs, x, w, output); break;
          case 3: tile<3>(runs, x, w, output); break;
          default: tile<4>(runs, x, w, output); break;
        }
      }
    }
  }
}

}  // namespace tac::kernels::avx2
