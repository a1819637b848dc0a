// bconv_b1_i32, portable: the oracle of the other backends (bconv.h has the contract).
//
// Two output channels share a 64-bit word, whose bytes count bits side by side:
//
//   | oc + 1: byte 3 | 2 | 1 | 0 | oc: byte 3 | 2 | 1 | 0 |    a byte gains at most 8 per input
//   word
//
// so bytes are widened to 32 bits at the latest after 31 words. All sums are modulo 2^32; the
// result is exact where it fits int32.
#include "kernels/backend_local.h"
#include "kernels/bconv/bconv.h"
#include "kernels/bconv/pack_local.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {
namespace {

constexpr std::size_t kWordsPerByteCount = 31;
constexpr std::size_t kPairs = kBconvBlock / 2;

inline std::uint64_t byte_counts(std::uint64_t v) {
  v -= (v >> 1) & 0x5555555555555555U;
  v = (v & 0x3333333333333333U) + ((v >> 2) & 0x3333333333333333U);
  return (v + (v >> 4)) & 0x0F0F0F0F0F0F0F0FU;
}

// Adds the byte counts of a block to its 32-bit counts and clears them.
inline void widen(std::uint64_t (&bytes)[kPairs], std::uint32_t (&counts)[kBconvBlock]) {
  for (std::size_t i = 0; i < kPairs; ++i) {
    std::uint64_t v = (bytes[i] & 0x00FF00FF00FF00FFU) + ((bytes[i] >> 8) & 0x00FF00FF00FF00FFU);
    v = (v & 0x0000FFFF0000FFFFU) + ((v >> 16) & 0x0000FFFF0000FFFFU);
    counts[2 * i] += static_cast<std::uint32_t>(v);
    counts[2 * i + 1] += static_cast<std::uint32_t>(v >> 32);
    bytes[i] = 0;
  }
}

// Counts of one block at one pixel and pair of planes.
inline void count(const BconvParams& p, const std::uint32_t* input, std::size_t oy, std::size_t ox,
                  std::size_t block, std::size_t pair, std::uint32_t (&counts)[kBconvBlock]) {
  const std::size_t w_tap = p.words * kBconvBlock;
  const auto iy0 =
      static_cast<std::ptrdiff_t>(oy * p.stride_h) - static_cast<std::ptrdiff_t>(p.pad_top);
  const auto ix0 =
      static_cast<std::ptrdiff_t>(ox * p.stride_w) - static_cast<std::ptrdiff_t>(p.pad_left);
  const LocalTapRange ky =
      local_tap_range(iy0, p.kernel_h, p.dilation_h, 0, static_cast<std::ptrdiff_t>(p.in_h));
  const LocalTapRange kx =
      local_tap_range(ix0, p.kernel_w, p.dilation_w, 0, static_cast<std::ptrdiff_t>(p.in_w));
  const std::uint32_t* x_plane = input + pair / p.n_w_planes * p.in_plane_words;
  const std::uint32_t* w_plane =
      p.weights + pair % p.n_w_planes * p.w_plane_words + block * p.kernel_h * p.kernel_w * w_tap;
  std::uint64_t bytes[kPairs] = {};
  for (std::uint32_t& c : counts) c = 0;
  std::size_t room = kWordsPerByteCount;
  for (std::size_t i = ky.begin; i < ky.end; ++i) {
    const std::size_t iy = oy * p.stride_h + i * p.dilation_h - p.pad_top;
    for (std::size_t j = kx.begin; j < kx.end; ++j) {
      const std::size_t ix = ox * p.stride_w + j * p.dilation_w - p.pad_left;
      const std::uint32_t* x = x_plane + (iy * p.in_w + ix) * p.pixel_words;
      const std::uint32_t* w = w_plane + (i * p.kernel_w + j) * w_tap;
      for (std::size_t word = 0; word < p.words; ++word, w += kBconvBlock) {
        const std::uint64_t x_twice = x[word] | static_cast<std::uint64_t>(x[word]) << 32;
        for (std::size_t lanes = 0; lanes < kPairs; ++lanes) {
          const std::uint64_t w_pair = w[2 * lanes] | static_cast<std::uint64_t>(w[2 * lanes + 1])
                                                          << 32;
          bytes[lanes] += byte_counts(x_twice ^ w_pair);
        }
        if (--room == 0) {
          widen(bytes, counts);
          room = kWordsPerByteCount;
        }
      }
    }
  }
  widen(bytes, counts);
}

}  // namespace

std::size_t bconv_b1_pack(const std::uint32_t* rows, std::size_t n_channels, std::size_t row_words,
                          std::uint32_t* packed) {
  return local_pack_words(rows, n_channels, row_words, packed);
}

void bconv_b1_i32(const BconvParams& p, const std::uint32_t* input, std::size_t oy,
                  std::size_t block_begin, std::size_t block_end, std::int32_t* out,
                  std::size_t out_stride) {
  TAC_DCHECK(block_begin <= block_end && block_end <= p.n_blocks);
  for (std::size_t ox = 0; ox < p.out_w; ++ox) {
    const std::int32_t* base =
        p.base + (p.row_class[oy] + p.col_class[ox]) * p.n_blocks * kBconvBlock;
    for (std::size_t block = block_begin; block < block_end; ++block) {
      std::uint32_t sums[kBconvBlock], counts[kBconvBlock];
      for (std::size_t lane = 0; lane < kBconvBlock; ++lane) {
        sums[lane] = static_cast<std::uint32_t>(base[block * kBconvBlock + lane]);
      }
      for (std::size_t pair = 0; pair < p.n_in_planes * p.n_w_planes; ++pair) {
        count(p, input, oy, ox, block, pair, counts);
        const std::uint32_t factor = 2U * static_cast<std::uint32_t>(p.coef[pair]);
        for (std::size_t lane = 0; lane < kBconvBlock; ++lane) sums[lane] -= factor * counts[lane];
      }
      std::int32_t* y = out + ox * out_stride + (block - block_begin) * kBconvBlock;
      for (std::size_t lane = 0; lane < kBconvBlock; ++lane) {
        y[lane] = static_cast<std::int32_t>(sums[lane]) >> p.shift;
      }
    }
  }
}

void bconv_b1_bits(const BconvParams& p, const std::uint32_t* flip, const std::uint32_t* input,
                   std::size_t oy, std::size_t block_begin, std::size_t block_end,
                   std::uint32_t* out, std::size_t out_stride) {
  TAC_DCHECK(block_begin % 2 == 0 && block_begin <= block_end && block_end <= p.n_blocks);
  const std::size_t row = local_ceil_div(p.n_blocks, 2) * 2 * kBconvBlock;
  for (std::size_t ox = 0; ox < p.out_w; ++ox) {
    const std::int32_t* limits = p.base + (p.row_class[oy] + p.col_class[ox]) * row;
    for (std::size_t block = block_begin; block < block_end; ++block) {
      std::uint32_t counts[kBconvBlock];
      count(p, input, oy, ox, block, 0, counts);
      std::uint32_t bits = 0;
      for (std::size_t lane = 0; lane < kBconvBlock; ++lane) {
        const bool below =
            static_cast<std::int32_t>(counts[lane]) <= limits[block * kBconvBlock + lane];
        bits |= static_cast<std::uint32_t>(below) << lane;
      }
      std::uint32_t& word = out[ox * out_stride + (block - block_begin) / 2];
      if (block % 2 == 0) {
        word = bits ^ flip[block / 2];
      } else {
        word ^= bits << kBconvBlock;
      }
    }
  }
}

std::size_t bconv_strip_pack(const std::uint32_t* rows, std::size_t n_channels, std::size_t n_taps,
                             std::size_t words, std::uint32_t* packed) {
  return bconv_b1_pack(rows, n_channels, n_taps * words, packed);
}

std::size_t bconv_strip_scratch(const BconvParams& /*params*/, std::size_t /*n_rows*/) {
  return 0;
}

void bconv_strip_i32(const BconvParams& p, const std::uint32_t* input, std::size_t oy_begin,
                     std::size_t oy_end, std::size_t block_begin, std::size_t block_end,
                     std::byte* /*scratch*/, std::int32_t* out, std::size_t out_stride) {
  for (std::size_t oy = oy_begin; oy < oy_end; ++oy, out += p.out_w * out_stride) {
    bconv_b1_i32(p, input, oy, block_begin, block_end, out, out_stride);
  }
}

void bconv_strip_bits(const BconvParams& p, const std::uint32_t* flip, const std::uint32_t* input,
                      std::size_t oy_begin, std::size_t oy_end, std::size_t block_begin,
                      std::size_t block_end, std::byte* /*scratch*/, std::uint32_t* out,
                      std::size_t out_stride) {
  for (std::size_t oy = oy_begin; oy < oy_end; ++oy, out += p.out_w * out_stride) {
    bconv_b1_bits(p, flip, input, oy, block_begin, block_end, out, out_stride);
  }
}

}  // namespace tac::kernels::scalar
