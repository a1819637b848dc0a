// Contract of codebook_linear_f32: fully connected layer whose weights are 4-bit codes into a float
// table.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tac::kernels {

// y[n * y_stride + o] = bias[o] + sum over k of table[code(o, k)] * x[n * x_stride + k], o in
// [row_begin, row_end).
//   codes [rows][k_padded / 2] bytes, k_padded = K rounded up to kCodebookKAlign; within each run
//   of 128 codes (64 bytes)
//     dword d (0..15) holds in its nibble j (bits 4j..4j+3) the code of k = 16 * j + d. So shifting
//     a register of dwords right by 4j puts the codes of 16 consecutive k into the low bits of 16
//     lanes. Rows are 64-byte aligned.
//   table: 16 floats, 64-byte aligned. Positions past K hold code `zero` positions whose x is read
//   as 0, whatever the table.
// A 17th value (16 non-zero values and zero) does not fit; `mask` is then [rows][k_padded / 32]
// words, bit k % 32 of word k / 32 clear where the weight is zero; nullptr otherwise. The sum runs
// in float32 in an order of the backend's own; |error| <= K * 2^-23 * (|bias| + sum |w x|).
struct CodebookLinearParams {
  std::size_t in_features, k_padded;
  const std::uint8_t* codes;
  const std::uint32_t* mask;
  const float* table;
  const float* bias;
};
inline constexpr std::size_t kCodebookKAlign = 128;

using codebook_linear_f32_fn = void (*)(const CodebookLinearParams& params, const float* x,
                                        std::size_t batch, std::size_t x_stride,
                                        std::size_t row_begin, std::size_t row_end, float* y,
                                        std::size_t y_stride);

}  // namespace tac::kernels
