// Numbers <-> packed bits, one channel at a time: the oracle of the vector versions. Contracts in
// quantize.h.
#include "kernels/backend_local.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {
namespace {

template <class T>
void quantize_rows(const QuantizeParams<T>& p, const T* x, std::size_t n_rows, std::size_t x_stride,
                   std::uint32_t* out, std::size_t out_stride, std::size_t plane_stride) {
  for (std::size_t row = 0; row < n_rows; ++row, x += x_stride, out += out_stride) {
    for (std::size_t word = 0; word * 32 < p.channels; ++word) {
      std::uint32_t planes[4] = {0, 0, 0, 0};
      const std::size_t end = local_min(p.channels, word * 32 + 32);
      for (std::size_t c = word * 32; c < end; ++c) {
        std::size_t n = 0;
        for (std::size_t t = 0; t < p.n_thresholds; ++t)
          n += x[c] >= p.thresholds[t * p.threshold_stride + c] ? 1 : 0;
        const bool flip = (p.flip[word] >> (c % 32) & 1U) != 0;
        const std::uint32_t code = p.code_of_index[flip ? p.n_thresholds - n : n];
        for (std::size_t i = 0; i < p.n_planes; ++i) planes[i] |= (code >> i & 1U) << (c % 32);
      }
      for (std::size_t i = 0; i < p.n_planes; ++i) out[i * plane_stride + word] = planes[i];
    }
  }
}

}  // namespace

void quantize_i32_bits(const QuantizeParams<std::int32_t>& params, const std::int32_t* x,
                       std::size_t n_rows, std::size_t x_stride, std::uint32_t* out,
                       std::size_t out_stride, std::size_t plane_stride) {
  quantize_rows(params, x, n_rows, x_stride, out, out_stride, plane_stride);
}

void quantize_f32_bits(const QuantizeParams<float>& params, const float* x, std::size_t n_rows,
                       std::size_t x_stride, std::uint32_t* out, std::size_t out_stride,
                       std::size_t plane_stride) {
  quantize_rows(params, x, n_rows, x_stride, out, out_stride, plane_stride);
}

void dequantize_bits_f32(const DequantizeParams& p, const std::uint32_t* bits, std::size_t n_rows,
                         std::size_t in_stride, std::size_t plane_stride, float* y) {
  const std::size_t value_stride = p.per_channel ? p.channels : 1;
  for (std::size_t row = 0; row < n_rows; ++row, bits += in_stride, y += p.channels) {
    for (std::size_t c = 0; c < p.channels; ++c) {
      std::size_t code = 0;
      for (std::size_t i = 0; i < p.n_planes; ++i) {
        code |= static_cast<std::size_t>(bits[i * plane_stride + c / 32] >> (c % 32) & 1U) << i;
      }
      y[c] = p.values[code * value_stride + (p.per_channel ? c : 0)];
    }
  }
}

}  // namespace tac::kernels::scalar
