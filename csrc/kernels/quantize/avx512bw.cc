// Numbers <-> packed bits, 16 channels a register: a compare is a 16-bit mask, two masks are one
// word of a plane. With one threshold (a sign) the mask itself is the plane. With more, each passed
// threshold adds 1 to a register of counts; the count picks the code from a 16-entry register
// (vpermd) and each of its bits is tested into a mask. The last word of a row is read and written
// under masks, so nothing past the row is touched.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512bw {
namespace {

static inline __mmask16 reaches(__m512i x, const std::int32_t* threshold) {
  return _mm512_cmpge_epi32_mask(x, _mm512_loadu_si512(threshold));
}
static inline __mmask16 reaches(__m512 x, const float* threshold) {
  return _mm512_cmp_ps_mask(x, _mm512_loadu_ps(threshold), _CMP_GE_OQ);
}
static inline __m512i load(const std::int32_t* x, __mmask16 valid) {
  return _mm512_maskz_loadu_epi32(valid, x);
}
static inline __m512 load(const float* x, __mmask16 valid) {
  return _mm512_maskz_loadu_ps(valid, x);
}

static inline __mmask16 valid_lanes(std::size_t channels, std::size_t first) {
  if (first >= channels) return 0;
  const std::size_t left = channels - first;
  return left >= 16 ? static_cast<__mmask16>(0xFFFF) : static_cast<__mmask16>((1U << left) - 1U);
}

struct Codes {
  __m512i of_index;      // 16 lanes
  __m512i all;           // n_thresholds
  std::uint32_t invert;  // of a sign
};

// One word of channels, of which those in the masks exist. kPlanes = 0 is the sign: one threshold,
// one plane and two different codes.
template <std::size_t kPlanes, class T>
static inline void quantize_word(const QuantizeParams<T>& p, const Codes& codes, const T* x,
                                 const T* thresholds, std::uint32_t flip, __mmask16 low_valid,
                                 __mmask16 high_valid, std::uint32_t* out,
                                 std::size_t plane_stride) {
  const auto low = load(x, low_valid);
  const auto high = load(x + 16, high_valid);
  if constexpr (kPlanes == 0) {
    const auto bits = static_cast<std::uint32_t>(
        _mm512_kunpackw(reaches(high, thresholds + 16), reaches(low, thresholds)));
    *out = (bits ^ flip ^ codes.invert) &
           (static_cast<std::uint32_t>(low_valid) | static_cast<std::uint32_t>(high_valid) << 16);
  } else {
    const __m512i one = _mm512_set1_epi32(1);
    __m512i low_n = _mm512_setzero_si512(), high_n = _mm512_setzero_si512();
    for (std::size_t t = 0; t < p.n_thresholds; ++t, thresholds += p.threshold_stride) {
      low_n = _mm512_mask_add_epi32(low_n, reaches(low, thresholds), low_n, one);
      high_n = _mm512_mask_add_epi32(high_n, reaches(high, thresholds + 16), high_n, one);
    }
    low_n = _mm512_mask_sub_epi32(low_n, static_cast<__mmask16>(flip), codes.all, low_n);
    high_n = _mm512_mask_sub_epi32(high_n, static_cast<__mmask16>(flip >> 16), codes.all, high_n);
    const __m512i low_code = _mm512_permutexvar_epi32(low_n, codes.of_index);
    const __m512i high_code = _mm512_permutexvar_epi32(high_n, codes.of_index);
#pragma GCC unroll 4
    for (std::size_t i = 0; i < kPlanes; ++i) {
      const __m512i bit = _mm512_set1_epi32(1 << i);
      out[i * plane_stride] = static_cast<std::uint32_t>(
          _mm512_kunpackw(_mm512_mask_test_epi32_mask(high_valid, high_code, bit),
                          _mm512_mask_test_epi32_mask(low_valid, low_code, bit)));
    }
  }
}

template <std::size_t kPlanes, class T>
static inline void quantize_planes(const QuantizeParams<T>& p, const T* x, std::size_t n_rows,
                                   std::size_t x_stride, std::uint32_t* out, std::size_t out_stride,
                                   std::size_t plane_stride) {
  alignas(64) std::int32_t table[16] = {};
  for (std::size_t i = 0; i <= p.n_thresholds; ++i) table[i] = p.code_of_index[i];
  const Codes codes{_mm512_load_si512(table), _mm512_set1_epi32(static_cast<int>(p.n_thresholds)),
                    p.code_of_index[0] != 0 ? ~std::uint32_t{0} : 0};
  const std::size_t n_whole = p.channels / 32;
  const __mmask16 low_valid = valid_lanes(p.channels, n_whole * 32);
  const __mmask16 high_valid = valid_lanes(p.channels, n_whole * 32 + 16);
  for (std::size_t row = 0; row < n_rows; ++row, x += x_stride, out += out_stride) {
    for (std::size_t word = 0; word < n_whole; ++word) {
      quantize_word<kPlanes>(p, codes, x + word * 32, p.thresholds + word * 32, p.flip[word],
                             0xFFFF, 0xFFFF, out + word, plane_stride);
    }
    if (low_valid != 0) {
      quantize_word<kPlanes>(p, codes, x + n_whole * 32, p.thresholds + n_whole * 32,
                             p.flip[n_whole], low_valid, high_valid, out + n_whole, plane_stride);
    }
  }
}

template <class T>
static inline void quantize_rows(const QuantizeParams<T>& p, const T* x, std::size_t n_rows,
                                 std::size_t x_stride, std::uint32_t* out, std::size_t out_stride,
                                 std::size_t plane_stride) {
  if (p.n_thresholds == 1 && p.n_planes == 1 && p.code_of_index[0] != p.code_of_index[1]) {
    return quantize_planes<0>(p, x, n_rows, x_stride, out, out_stride, plane_stride);
  }
  switch (p.n_planes) {
    case 1: return quantize_planes<1>(p, x, n_rows, x_stride, out, out_stride, plane_stride);
    case 2: return quantize_planes<2>(p, x, n_rows, x_stride, out, out_stride, plane_stride);
    case 3: return quantize_planes<3>(p, x, n_rows, x_stride, out, out_stride, plane_stride);
    default: return quantize_planes<4>(p, x, n_rows, x_stride, out, out_stride, plane_stride);
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
  const __mmask16 n_codes = static_cast<__mmask16>((1U << (1U << p.n_planes)) - 1U);
  const __m512 shared =
      p.per_channel ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(n_codes, p.values);
  for (std::size_t row = 0; row < n_rows; ++row, bits += in_stride, y += p.channels) {
    for (std::size_t c = 0; c < p.channels; c += 16) {
      const __mmask16 valid = valid_lanes(p.channels, c);
      __m512i code = _mm512_setzero_si512();
      for (std::size_t i = 0; i < p.n_planes; ++i) {
        const __mmask16 plane = static_cast<__mmask16>(bits[i * plane_stride + c / 32] >> (c % 32));
        code = _mm512_mask_or_epi32(code, plane, code, _mm512_set1_epi32(1 << i));
      }
      __m512 values;
      if (p.per_channel) {
        values = _mm512_setzero_ps();
        for (std::size_t k = 0; k < std::size_t{1} << p.n_planes; ++k) {
          const __mmask16 here =
              _mm512_mask_cmpeq_epi32_mask(valid, code, _mm512_set1_epi32(static_cast<int>(k)));
          values = _mm512_mask_loadu_ps(values, here, p.values + k * p.channels + c);
        }
      } else {
        values = _mm512_permutexvar_ps(code, shared);
      }
      _mm512_mask_storeu_ps(y + c, valid, values);
    }
  }
}

}  // namespace tac::kernels::avx512bw
