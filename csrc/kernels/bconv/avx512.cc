// bconv_b1_i32 and bconv_b1_bits with VPOPCNTDQ (bconv.h has the contract).
//
// One register holds 32 input channels of 16 output channels; the activation word is a broadcast,
// so there is no horizontal sum and no tail in the channels:
//
//   acc[pixel][block] += vpopcntd(broadcast(x[pixel][word]) ^ w[block][word])        3 instructions
//   for 512 MACs
//
// A tile of 6 pixels x 4 blocks keeps 24 accumulators, 4 weights and 1 activation in registers; it
// is 1 to 4 % faster than 4 x 4, and divides what borders leave of 8, 14, 32 and 56 columns. Pixels
// of a tile see the same taps. All sums are modulo 2^32; the result is exact where it fits
// int32.
// 3x3, 128 -> 128 channels at 32x32: 1160 nominal GMAC/s, 87 % of what the three operations reach
// on registers alone, on one core of a Zen 4 EPYC VM, g++ 12 (tac_kernel_bench).
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/bconv/bconv.h"
#include "kernels/bconv/pack_local.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512 {
namespace {

constexpr std::size_t kTilePixels = 6;
constexpr std::size_t kTileBlocks = 4;

// The taps that the pixels of a tile see, as n_rows x n_runs runs of words contiguous in both input
// and weights.
struct Runs {
  std::size_t n_rows, n_runs, run_words;
  std::size_t x_row, x_run, x_pixel;  // distances in the input
  std::size_t w_row, w_run, w_block;  // distances in the weights
};

struct Output {
  const std::int32_t* previous;  // base row, or what the sums before have left
  std::size_t previous_stride;   // 0: pixels that see the same taps have one base row
  std::int32_t* y;
  std::size_t stride;
  std::int32_t factor;  // 2 * coef
  int shift;
  // Where bits are written instead, a pixel's words `stride` apart: `previous` are the limits.
  std::uint32_t* bits;
  const std::uint32_t* flip;
};

template <std::size_t kPixels, std::size_t kBlocks>
inline void tile(const Runs& runs, const std::uint32_t* x, const std::uint32_t* w,
                 const Output& output) {
  __m512i acc_i32x16[kPixels][kBlocks];
  // The first word sets the counters: 4 % of the time of a 1x1 convolution of 256 channels. It
  // takes more code, which single pixels would feel.
  const auto count = [&](const std::uint32_t* x_word, const std::uint32_t* w_word,
                         bool is_first) __attribute__((always_inline)) {
    __m512i w_b512[kBlocks];
#pragma GCC unroll 4
    for (std::size_t b = 0; b < kBlocks; ++b) {
      w_b512[b] = _mm512_load_si512(w_word + b * runs.w_block);
    }
#pragma GCC unroll 6
    for (std::size_t p = 0; p < kPixels; ++p) {
      const __m512i x_b512 = _mm512_set1_epi32(static_cast<int>(x_word[p * runs.x_pixel]));
#pragma GCC unroll 4
      for (std::size_t b = 0; b < kBlocks; ++b) {
        const __m512i counts = _mm512_popcnt_epi32(_mm512_xor_si512(x_b512, w_b512[b]));
        acc_i32x16[p][b] = is_first ? counts : _mm512_add_epi32(acc_i32x16[p][b], counts);
        // Pins the counter to its register; GCC 12 otherwise moves counters around.
        asm("" : "+v"(acc_i32x16[p][b]));
      }
    }
  };
  std::size_t word = 0;
  if (kPixels > 1 && runs.n_rows != 0) {
    count(x, w, true);
    word = 1;
  } else {
#pragma GCC unroll 6
    for (std::size_t p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
      for (std::size_t b = 0; b < kBlocks; ++b) acc_i32x16[p][b] = _mm512_setzero_si512();
    }
  }
  for (std::size_t row = 0; row < runs.n_rows; ++row) {
    for (std::size_t run = 0; run < runs.n_runs; ++run, word = 0) {
      const std::uint32_t* x_run = x + row * runs.x_row + run * runs.x_run;
      const std::uint32_t* w_run = w + row * runs.w_row + run * runs.w_run;
      for (; word < runs.run_words; ++word) {
        count(x_run + word, w_run + word * kBconvBlock, false);
      }
    }
  }
  if (output.bits != nullptr) {
#pragma GCC unroll 6
    for (std::size_t p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
      for (std::size_t b = 0; b < kBlocks; b += 2) {
        const __mmask16 low = _mm512_cmple_epi32_mask(
            acc_i32x16[p][b], _mm512_load_si512(output.previous + b * kBconvBlock));
        __mmask16 high = 0;
        if (b + 1 < kBlocks) {
          high = _mm512_cmple_epi32_mask(
              acc_i32x16[p][b + 1], _mm512_load_si512(output.previous + (b + 1) * kBconvBlock));
        }
        output.bits[p * output.stride + b / 2] =
            static_cast<std::uint32_t>(_mm512_kunpackw(high, low)) ^ output.flip[b / 2];
      }
    }
    return;
  }
  const __m512i factor_i32x16 = _mm512_set1_epi32(output.factor);
  const __m128i shift = _mm_cvtsi32_si128(output.shift);
#pragma GCC unroll 6
  for (std::size_t p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
    for (std::size_t b = 0; b < kBlocks; ++b) {
      const __m512i previous =
          _mm512_load_si512(output.previous + p * output.previous_stride + b * kBconvBlock);
      const __m512i sum =
          _mm512_sub_epi32(previous, _mm512_mullo_epi32(acc_i32x16[p][b], factor_i32x16));
      _mm512_store_si512(output.y + p * output.stride + b * kBconvBlock,
                         _mm512_sra_epi32(sum, shift));
    }
  }
}

template <std::size_t kPixels>
inline void tile_of_blocks(std::size_t n_blocks, const Runs& runs, const std::uint32_t* x,
                           const std::uint32_t* w, const Output& output) {
  switch (n_blocks) {
    case 1: return tile<kPixels, 1>(runs, x, w, output);
    case 2: return tile<kPixels, 2>(runs, x, w, output);
    case 3: return tile<kPixels, 3>(runs, x, w, output);
    default: return tile<kPixels, 4>(runs, x, w, output);
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
  const std::size_t w_tap = p.words * kBconvBlock;
  // Neighbouring taps read neighbouring words when nothing lies between their channels.
  const bool taps_touch = p.dilation_w == 1 && p.pixel_words == p.words;

  Runs runs;
  runs.x_row = p.dilation_h * p.in_w * p.pixel_words;
  runs.x_run = p.dilation_w * p.pixel_words;
  runs.x_pixel = p.stride_w * p.pixel_words;
  runs.w_row = p.kernel_w * w_tap;
  runs.w_run = w_tap;
  runs.w_block = p.kernel_h * runs.w_row;

  const std::size_t base_row =
      (out.bits == nullptr ? p.n_blocks : local_ceil_div(p.n_blocks, 2) * 2) * kBconvBlock;
  const std::size_t n_pairs = p.n_in_planes * p.n_w_planes;
  for (std::size_t block = block_begin; block < block_end; block += kTileBlocks) {
    const std::size_t n_blocks = local_min(kTileBlocks, block_end - block);
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
          runs.n_rows == 0 ? 0 : block * runs.w_block + ky.begin * runs.w_row + kx.begin * w_tap;

      const std::size_t first = block - block_begin;
      Output output;
      output.y = out.bits == nullptr ? out.sums + ox * out.stride + first * kBconvBlock : nullptr;
      output.bits = out.bits == nullptr ? nullptr : out.bits + ox * out.stride + first / 2;
      output.flip = out.bits == nullptr ? nullptr : out.flip + block / 2;
      output.stride = out.stride;
      output.previous =
          p.base + (p.row_class[oy] + p.col_class[ox]) * base_row + block * kBconvBlock;
      output.previous_stride = 0;
      for (std::size_t pair = 0; pair < n_pairs; ++pair) {
        if (out.bits == nullptr) {
          output.factor = static_cast<std::int32_t>(2U * static_cast<std::uint32_t>(p.coef[pair]));
          output.shift = pair + 1 == n_pairs ? p.shift : 0;
        }
        const std::uint32_t* x = input + pair / p.n_w_planes * p.in_plane_words + x_offset;
        const std::uint32_t* w = p.weights + pair % p.n_w_planes * p.w_plane_words + w_offset;
        switch (n_pixels) {
          case 1: tile_of_blocks<1>(n_blocks, runs, x, w, output); break;
          case 2: tile_of_blocks<2>(n_blocks, runs, x, w, output); break;
          case 3: tile_of_blocks<3>(n_blocks, runs, x, w, output); break;
          case 4: tile_of_blocks<4>(n_blocks, runs, x, w, output); break;
          case 5: tile_of_blocks<5>(n_blocks, runs, x, w, output); break;
          default: tile_of_blocks<6>(n_blocks, runs, x, w, output); break;
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
  return local_pack_words(rows, n_channels, row_words, packed);
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

}  // namespace tac::kernels::avx512
