// Contract of codebook_linear_f32: fully connected layer whose weights are 4-bit codes into a float
// table.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tac::kernels {

// Outputs are packed in blocks of 128, which share an input.
inline constexpr std::size_t kCodebookBlock = 128;
inline constexpr std::size_t kCodebookOverRead = 64;  // bytes

// y[n * y_stride + o] = bias[o] + sum over k of table[code(o, k)] * x[n * x_stride + k], for the
// outputs of blocks [block_begin, block_end), never past out_features.
//   codes: for each block [K][64 bytes], 64-byte aligned; kCodebookOverRead bytes behind the last
//     may be read. Dword d (0..15) of input k holds in its
//     nibble j (bits 4j..4j+3) the code of output 16 * j + d of the block:
//
//       codes >> 4j   lane 0: output 16j   lane 1: output 16j + 1  ...   lane 15: output 16j + 15
//
//     The last block, where outputs fill only J = 1, 2 or 4 nibbles, has 8 / J inputs in each
//     dword, [ceil(K / (8 / J))][64 bytes]: nibble j of input k is nibble k % (8 / J) * J + j.
//     Outputs past the last have any code.
//   table: 16 floats, 64-byte aligned.
//   mask: a 17th value (16 non-zero values and zero) does not fit; then [block][K][16 bytes], bit
//     16 * j + d clear where the weight is zero; nullptr otherwise.
//   bias: out_features rounded up to 16 values, none of them -0.
// The sum starts from 0, adds k ascending in float32 and meets the bias last, whatever the batch;
// on one backend a result depends on nothing but its sample. With skip_zeros, inputs of 0 may be
// left out, which changes nothing where the table is finite. |error| <= K * 2^-23 * (|bias| + sum
// |w x|).
struct CodebookLinearParams {
  std::size_t in_features, out_features;
  const std::uint8_t* codes;
  const std::uint8_t* mask;
  const float* table;
  const float* bias;
  bool skip_zeros;
};

using codebook_linear_f32_fn = void (*)(const CodebookLinearParams& params, const float* x,
                                        std::size_t batch, std::size_t x_stride,
                                        std::size_t block_begin, std::size_t block_end, float* y,
                                        std::size_t y_stride);

}  // namespace tac::kernels
