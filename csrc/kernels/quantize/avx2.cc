// Numbers <-> packed bits, 8 channels a register: vmovmskps turns a compare into 8 bits of a word.
// With more than one threshold each compare is subtracted (it is -1) from a register of counts; the
// code's bits are read off a 16-byte table (vpshufb) with the count in the low byte of each lane.
// Channels behind the last whole 8 are copied to a local array first, so nothing past the row is
// read.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {
namespace {

static inline __m256i reaches(__m256i x, const std::int32_t* threshold) {
  // x >= t is not (t > x)
  const __m256i t = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(threshold));
  return _mm256_xor_si256(_mm256_cmpgt_epi32(t, x), _mm256_set1_epi32(-1));
}
static inline __m256i reaches(__m256 x, const float* threshold) {
  return _mm256_castps_si256(_mm256_cmp_ps(x, _mm256_loadu_ps(threshold), _CMP_GE_OQ));
}
static inline __m256i load(const std::int32_t* x) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
}
static inline __m256 load(const float* x) {
  return _mm256_loadu_ps(x);
}

static inline std::uint32_t sign_bits(__m256i lanes) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
}

template <class T>
static inline void quantize_rows(const QuantizeParams<T>& p, const T* x, std::size_t n_rows,
                                 std::size_t x_stride, std::uint32_t* out, std::size_t out_stride,
                                 std::size_t plane_stride) {
  const std::size_t n_words = local_ceil_div(p.channels, 32);
  const bool single =
      p.n_thresholds == 1 && p.n_planes == 1 && p.code_of_index[0] != p.code_of_index[1];
  const std::uint32_t invert = p.code_of_index[0] != 0 ? ~std::uint32_t{0} : 0;
  alignas(16) std::uint8_t table[16] = {};
  for (std::size_t i = 0; i <= p.n_thresholds; ++i) table[i] = p.code_of_index[i];
  const __m256i codes =
      _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
  const __m256i all = _mm256_set1_epi32(static_cast<int>(p.n_thresholds));
  const __m256i bit_of_lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  for (std::size_t row = 0; row < n_rows; ++row, x += x_stride, out += out_stride) {
    for (std::size_t word = 0; word < n_words; ++word) {
      const std::size_t channels = local_min(p.channels - word * 32, 32);
      T tail[32];
      const T* values = x + word * 32;
      if (channels < 32) {
        for (std::size_t i = 0; i < 32; ++i) tail[i] = i < channels ? values[i] : T{0};
        values = tail;
      }
      const std::uint32_t valid =
          channels == 32 ? ~std::uint32_t{0} : (std::uint32_t{1} << channels) - 1;
      const T* thresholds = p.thresholds + word * 32;
      if (single) {
        std::uint32_t bits = 0;
        for (std::size_t i = 0; i < 32; i += 8)
          bits |= sign_bits(reaches(load(values + i), thresholds + i)) << i;
        out[word] = (bits ^ p.flip[word] ^ invert) & valid;
        continue;
      }
      std::uint32_t planes[4] = {0, 0, 0, 0};
      for (std::size_t i = 0; i < channels; i += 8) {
        __m256i n = _mm256_setzero_si256();
        for (std::size_t t = 0; t < p.n_thresholds; ++t) {
          n = _mm256_sub_epi32(n,
                               reaches(load(values + i), thresholds + t * p.threshold_stride + i));
        }
        const __m256i chosen = _mm256_and_si256(
            _mm256_set1_epi32(static_cast<int>(p.flip[word] >> i & 0xFFU)), bit_of_lane);
        const __m256i flip = _mm256_cmpeq_epi32(chosen, bit_of_lane);
        n = _mm256_blendv_epi8(n, _mm256_sub_epi32(all, n), flip);
        // Bytes 1 to 3 of a lane pick entry 0; only byte 0 is looked at.
        const __m256i code = _mm256_shuffle_epi8(codes, n);
        for (std::size_t plane = 0; plane < p.n_planes; ++plane) {
          const __m256i top =
              _mm256_sll_epi32(code, _mm_cvtsi32_si128(static_cast<int>(31 - plane)));
          planes[plane] |= sign_bits(top) << i;
        }
      }
      for (std::size_t plane = 0; plane < p.n_planes; ++plane)
        out[plane * plane_stride + word] = planes[plane] & valid;
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
  const std::size_t n_codes = std::size_t{1} << p.n_planes;
  alignas(32) float table[16] = {};
  if (!p.per_channel) {
    for (std::size_t k = 0; k < n_codes; ++k) table[k] = p.values[k];
  }
  const __m256 values_0_to_7 = _mm256_load_ps(table), values_8_to_15 = _mm256_load_ps(table + 8);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i one = _mm256_set1_epi32(1);
  for (std::size_t row = 0; row < n_rows; ++row, bits += in_stride, y += p.channels) {
    for (std::size_t c = 0; c < p.channels; c += 8) {
      __m256i code = _mm256_setzero_si256();
      for (std::size_t i = p.n_planes; i-- > 0;) {
        const int plane = static_cast<int>(bits[i * plane_stride + c / 32] >> (c % 32));
        const __m256i bit =
            _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(plane), lane), one);
        code = _mm256_or_si256(_mm256_add_epi32(code, code), bit);
      }
      const int n_valid = static_cast<int>(local_min(p.channels - c, 8));
      const __m256i valid = _mm256_cmpgt_epi32(_mm256_set1_epi32(n_valid), lane);
      __m256 result = _mm256_setzero_ps();
      if (p.per_channel) {
        for (std::size_t k = 0; k < n_codes; ++k) {
          const __m256i here = _mm256_cmpeq_epi32(code, _mm256_set1_epi32(static_cast<int>(k)));
          result =
              _mm256_blendv_ps(result, _mm256_maskload_ps(p.values + k * p.channels + c, valid),
                               _mm256_castsi256_ps(here));
        }
      } else {
        // A permute looks at the low 3 bits of the code; bit 3, moved to the sign, picks the half.
        const __m256 low = _mm256_permutevar8x32_ps(values_0_to_7, code);
        const __m256 high = _mm256_permutevar8x32_ps(values_8_to_15, code);
        result = _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
      }
      _mm256_maskstore_ps(y + c, valid, result);
    }
  }
}

void scale_i32_f32(const float* scale, const float* bias, std::size_t channels,
                   const std::int32_t* acc, std::size_t n_rows, std::size_t acc_stride, float* y,
                   std::size_t y_stride) {
  for (std::size_t row = 0; row < n_rows; ++row, acc += acc_stride, y += y_stride) {
    std::size_t c = 0;
    for (; c + 8 <= channels; c += 8) {
      const __m256 product =
          _mm256_mul_ps(_mm256_loadu_ps(scale + c), _mm256_cvtepi32_ps(load(acc + c)));
      _mm256_storeu_ps(y + c, _mm256_add_ps(product, _mm256_loadu_ps(bias + c)));
    }
    for (; c < channels; ++c) {
      const float product = scale[c] * static_cast<float>(acc[c]);
      y[c] = product + bias[c];
    }
  }
}

}  // namespace tac::kernels::avx2
