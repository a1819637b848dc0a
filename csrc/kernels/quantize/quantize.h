// Contracts of the kernels between numbers and packed bits. Channels are the innermost axis; bit c
// % 32 of word c / 32 is channel c; unused bits of a row's last word are written as 0.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tac::kernels {

// Step function to a packed code (ops.h has the arithmetic):
//   n = number of t with x >= thresholds[t][c];   index = descending(c) ? n_thresholds - n : n;
//   code = code_of_index[index]
// thresholds is [n_thresholds][padded C]: threshold-major, so that channels are contiguous; ceil(C
// / 32) * 32 values per row, the padding may hold anything. `flip` is one bit per channel, packed
// as the output: 1 where descending. Bit p of code_of_index[index] goes to plane p. n_thresholds
// is 1..15, n_planes 1..4.
template <class T>
struct QuantizeParams {
  std::size_t channels;
  std::size_t n_thresholds, n_planes;
  std::size_t threshold_stride;  // ceil(C / 32) * 32
  const T* thresholds;
  const std::uint32_t* flip;          // [ceil(C / 32)]
  const std::uint8_t* code_of_index;  // [n_thresholds + 1]
};

// For each of n_rows rows: row r reads x[r * x_stride + c], writes out[plane * plane_stride + r *
// out_stride + word]. No alignment is needed; nothing past the C values of a row is read, ceil(C /
// 32) words are written.
using quantize_i32_bits_fn = void (*)(const QuantizeParams<std::int32_t>& params,
                                      const std::int32_t* x, std::size_t n_rows,
                                      std::size_t x_stride, std::uint32_t* out,
                                      std::size_t out_stride, std::size_t plane_stride);
// NaN reaches no threshold.
using quantize_f32_bits_fn = void (*)(const QuantizeParams<float>& params, const float* x,
                                      std::size_t n_rows, std::size_t x_stride, std::uint32_t* out,
                                      std::size_t out_stride, std::size_t plane_stride);

// y[r * channels + c] = values[code * value_stride + (per_channel ? c : 0)], code from the planes
// of row r. values is code-major; value_stride is `channels` when per channel, else 1.
struct DequantizeParams {
  std::size_t channels, n_planes;
  bool per_channel;
  const float* values;  // [2^n_planes][channels or 1]
};
using dequantize_bits_f32_fn = void (*)(const DequantizeParams& params, const std::uint32_t* bits,
                                        std::size_t n_rows, std::size_t in_stride,
                                        std::size_t plane_stride, float* y);

}  // namespace tac::kernels
