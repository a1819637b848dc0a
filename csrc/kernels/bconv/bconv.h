// Contracts of binary convolutions, vectorized over output channels: bconv_b1_* count bits a row at
// a time, bconv_strip_* multiply bytes several rows at a time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tac::kernels {

// Output channels per block: one AVX-512 register, two AVX2 registers, four NEON registers of
// 32-bit lanes.
inline constexpr std::size_t kBconvBlock = 16;
inline constexpr std::size_t kBconvMaxPlanes = 5;

// One group of a convolution. For every output pixel and output channel
//
//   out = (base[class(pixel)][oc] - 2 * sum over (i, j) of coef[i][j] * popcount_ij) >> shift
//   popcount_ij = sum over the taps inside the map and the words of popcount(input plane i ^ weight
//   plane j)
//
// All else (number of valid taps, offsets of the encoding, value of the padding) is in `base`,
// which has one row per class of pixels that see the same set of taps: class = row_class[oy] +
// col_class[ox].
//
//   input    [plane][in_h][in_w][pixel_words], this group's words start at `input`; `words` of them
//   are read per pixel
//   weights  [plane], each as bconv_b1_pack of the same backend made it; 64-byte aligned
//   base     [class][n_blocks * 16]; 64-byte aligned
// Nothing outside the arrays is read. Any alignment of `input` to 4 bytes.
struct BconvParams {
  std::size_t in_h, in_w, out_w;
  std::size_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
  std::size_t words, pixel_words;       // 32-bit words read per pixel; distance between pixels
  std::size_t n_blocks;                 // ceil(output channels of the group / 16)
  std::size_t n_in_planes, n_w_planes;  // 1..kBconvMaxPlanes
  std::size_t in_plane_words, w_plane_words;  // distance between planes
  const std::uint32_t* weights;
  const std::int32_t* coef;  // [n_in_planes][n_w_planes]
  const std::int32_t* base;
  const std::uint32_t* row_class;  // [out_h], already multiplied by the number of column classes
  const std::uint32_t* col_class;  // [out_w]
  int shift;
};

// Brings one plane of one group's weights into the layout that the kernel of the same backend
// reads: a backend has both or neither. `rows` is [n_channels][row_words], a row is
// [kernel_h][kernel_w] [words]. Returns the size in words; writes as many to `packed` unless that
// is null.
using bconv_b1_pack_fn = std::size_t (*)(const std::uint32_t* rows, std::size_t n_channels,
                                         std::size_t row_words, std::uint32_t* packed);

// Computes output row `oy`, blocks [block_begin, block_end), into out[ox * out_stride + (block -
// block_begin) * 16 + lane]. `out` is 64-byte aligned, out_stride (in int32) a multiple of 16 that
// is at least the blocks' channels.
using bconv_b1_i32_fn = void (*)(const BconvParams& params, const std::uint32_t* input,
                                 std::size_t oy, std::size_t block_begin, std::size_t block_end,
                                 std::int32_t* out, std::size_t out_stride);

// Signs instead of sums, for a layer of one pair of planes whose output is compared with one number
// per channel. `params.base` is rows of limits, a row padded to a multiple of 32 channels;
// coef and shift are not read. Row ox of the blocks' bits is out[ox * out_stride + (block -
// block_begin) / 2]:
//
//   bit = (popcount <= base[class(pixel)][oc]) != bit oc of flip
//
// block_begin is even, block_end too unless it is n_blocks. Channels that do not exist have limit
// -1 and flip 0, and become 0.
using bconv_b1_bits_fn = void (*)(const BconvParams& params, const std::uint32_t* flip,
                                  const std::uint32_t* input, std::size_t oy,
                                  std::size_t block_begin, std::size_t block_end,
                                  std::uint32_t* out, std::size_t out_stride);

// The same sums and signs for a strip of output rows [oy_begin, oy_end), for registers that
// multiply matrices of bytes: signs become +-1 and what lies outside the map 0. Sums go to out[((oy
// - oy_begin) * out_w + ox) * out_stride + ...], words of signs likewise.
//
// `rows` is [n_channels][n_taps][words]; returns the size in words, writes as many unless `packed`
// is null.
using bconv_strip_pack_fn = std::size_t (*)(const std::uint32_t* rows, std::size_t n_channels,
                                            std::size_t n_taps, std::size_t words,
                                            std::uint32_t* packed);

// Bytes at `scratch`, 64-byte aligned, that a strip of n_rows rows takes; fewer rows take no more.
using bconv_strip_scratch_fn = std::size_t (*)(const BconvParams& params, std::size_t n_rows);

using bconv_strip_i32_fn = void (*)(const BconvParams& params, const std::uint32_t* input,
                                    std::size_t oy_begin, std::size_t oy_end,
                                    std::size_t block_begin, std::size_t block_end,
                                    std::byte* scratch, std::int32_t* out, std::size_t out_stride);

using bconv_strip_bits_fn = void (*)(const BconvParams& params, const std::uint32_t* flip,
                                     const std::uint32_t* input, std::size_t oy_begin,
                                     std::size_t oy_end, std::size_t block_begin,
                                     std::size_t block_end, std::byte* scratch, std::uint32_t* out,
                                     std::size_t out_stride);

}  // namespace tac::kernels
