// Contracts of the fully connected codebook layer in integers: 16-bit activations, a table of up to
// 16 weights of 16 bits, exact sums. The same bits on every backend, in every batch and every cut
// of the work.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tac::kernels {

// Inputs that a form may read behind the last one, set to 0.
inline constexpr std::size_t kCodebookWindow = 64;

// For every sample n of a batch and every output o of the range,
//   y[n * y_stride + o] = bias[o] + float(double(sum over k of level(o, k) * q[n * q_stride + k])
//                                         * units[n])
// with an exact sum; |level| <= 32767, |q| <= 32767 and at most 65536 inputs keep it below 2^46.
// units[n] has the scale of the levels in it. q is 64-byte aligned and q_stride a multiple of 32.

// What the |levels| that meet in a 32-bit sum may add up to.
inline constexpr std::int32_t kCodebookGroupSum = 65535;

// Dense: every weight is a nibble. codes [rows][k_padded / 2] bytes, k_padded = K rounded up to 64;
// of each run of 64 weights in 32 bytes, byte 16 l + 8 h + p holds
//   in its low nibble the code of k = 16 h + 8 l + p, in its high nibble that of k = 32 + 16 h + 8
//   l + p
// so that the bytes of both 128-bit lanes, looked up and interleaved, are 16 consecutive k.
// Rows are 32-byte aligned, padding has any code. levels: 16 values, 64-byte aligned.
// runs [rows]: R = 1, 2, 4 or 8, how many times 16 inputs a 32-bit sum holds. In each run of 16 R
// inputs from a multiple of 16 R on, the |levels| of the inputs 16 i + 2 l and 16 i + 2 l + 1, i
// any, add up to 65535 or less for each l = 0..7.
struct CodebookDenseParams {
  std::size_t in_features, k_padded;
  const std::uint8_t* codes;
  const std::int16_t* levels;
  const std::uint8_t* runs;
  const float* bias;
};
inline constexpr std::size_t kCodebookDenseAlign = 64;
using codebook_linear_i16_fn = void (*)(const CodebookDenseParams& params, const std::int16_t* q,
                                        std::size_t batch, std::size_t q_stride,
                                        const double* units, std::size_t row_begin,
                                        std::size_t row_end, float* y, std::size_t y_stride);

// Sliced: only weights that are not zero, in tiles of 16 outputs, one output per lane. A group is
// `group_steps` G = 2 or 4 steps of two weights a lane: entry e = 2 l or 2 l + 1 of a step is a
// weight of lane l, its position k - starts[group] (6 bits) and its code (4 bits). The steps s of a
// group are packed together, 10 bits an entry:
//   words [G / 2][32]   entry e of steps 0 and 1, 2 and 3: position of s | position of s + 1 << 6
//                       | code of step s / 2 << 12
//   codes [32]          code of step G / 2 | code of step G / 2 + 1 << 4, the latter 0 for G = 2
// A lane takes its next 2 * G weights or as many as lie in the 64 inputs from the group's start on;
// a code whose level is 0 fills up the rest. Within a group the |levels| of a lane add up to 65535
// or less: with what is left from before, below 2^16, 32-bit sums hold.
//   tiles [n_tiles + 1]: first group of each tile. rows [n_tiles * 16]: the output of each lane,
//   out_features where there is none. levels: 16 values, twice. words, codes and levels are 64-byte
//   aligned.
struct CodebookSlicedParams {
  std::size_t out_features, group_steps;
  const std::uint16_t* words;   // [n_groups][group_steps / 2][32]
  const std::uint8_t* codes;    // [n_groups][32]
  const std::uint16_t* starts;  // [n_groups]
  const std::uint32_t* tiles;
  const std::uint32_t* rows;
  const std::int16_t* levels;
  const float* bias;
};
inline constexpr std::size_t kCodebookTile = 16;
using codebook_linear_i16_sliced_fn = void (*)(const CodebookSlicedParams& params,
                                               const std::int16_t* q, std::size_t batch,
                                               std::size_t q_stride, const double* units,
                                               std::size_t tile_begin, std::size_t tile_end,
                                               float* y, std::size_t y_stride);

// Bytes: only weights that are not zero, in the same tiles, for registers that look 16 bytes up. A
// step is two weights a lane, a byte each, out of 16 inputs:
//   entries [n_steps][32]   entry 2 l or 2 l + 1 is a weight of lane l: its code | position k -
//                           starts[step] << 4
//   starts [n_steps], tiles [n_tiles + 1]: first step of each tile
// Two steps, counted from the first of the tile, are a group, and within a group the |levels| of a
// lane add up to 65535 or less; a tile has whole groups. A code whose level is 0 fills up what
// lanes leave. entries are 32-byte aligned; rows and levels as above.
//
// The inputs come as bytes, as split_i16_u8 makes them: sample n has the lower ones at bytes + n *
// 2 * stride and the upper ones `stride` behind; stride >= in_features + 15, of which any may be
// read.
struct CodebookBytesParams {
  std::size_t out_features;
  const std::uint8_t* entries;
  const std::uint16_t* starts;
  const std::uint32_t* tiles;
  const std::uint32_t* rows;
  const std::int16_t* levels;
  const float* bias;
};
inline constexpr std::size_t kCodebookBytesWindow = 16;
inline constexpr std::size_t kCodebookBytesGroup = 2;
using codebook_linear_i16_bytes_fn = void (*)(const CodebookBytesParams& params,
                                              const std::uint8_t* bytes, std::size_t batch,
                                              std::size_t stride, const double* units,
                                              std::size_t tile_begin, std::size_t tile_end,
                                              float* y, std::size_t y_stride);

// q[k] = lower[k] + 256 * upper[k], upper in two's complement. count is a multiple of 32.
inline constexpr std::size_t kSplitAlign = 32;
using split_i16_u8_fn = void (*)(const std::int16_t* q, std::size_t count, std::uint8_t* lower,
                                 std::uint8_t* upper);

}  // namespace tac::kernels
