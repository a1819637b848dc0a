// Numbers <-> packed bits, a word of 32 channels at a time. Each compare is added (it is -1) to
// four registers of counts, which are packed to 32 bytes; the codes come from a 16-byte table
// (vpshufb), and vpmovmskb reads a plane off the top bits of the bytes. Channels behind the last
// whole word are copied to a local array first, so nothing past the row is read.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {
namespace {

// Compares to all ones (-1) where x >= threshold. Integers have only "greater than" and answer the
// opposite.
static inline __m256i compare(const float* x, const float* threshold) {
  return _mm256_castps_si256(
      _mm256_cmp_ps(_mm256_loadu_ps(x), _mm256_loadu_ps(threshold), _CMP_GE_OQ));
}
static inline __m256i compare(const std::int32_t* x, const std::int32_t* threshold) {
  return _mm256_cmpgt_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(threshold)),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
constexpr bool answers_opposite(float) {
  return false;
}
constexpr bool answers_opposite(std::int32_t) {
  return true;
}

// 4 x 8 lanes of 32 bits, each in the range of a byte, to 32 bytes in channel order.
static inline __m256i pack(const __m256i (&lanes)[4]) {
  const __m256i low = _mm256_packs_epi32(lanes[0], lanes[1]);
  const __m256i high = _mm256_packs_epi32(lanes[2], lanes[3]);
  return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                     _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// Bit c of `word` to all bits of byte c.
static inline __m256i spread(std::uint32_t word) {
  const __m256i byte_of_bit = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                               2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i bit = _mm256_set1_epi64x(static_cast<std::int64_t>(0x8040201008040201U));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(word)), byte_of_bit);
  return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
}

// kPlanes = 0 is the sign: one threshold, one plane and two different codes.
template <std::size_t kPlanes, class T>
static inline void quantize_planes(const QuantizeParams<T>& p, const T* x, std::size_t n_rows,
                                   std::size_t x_stride, std::uint32_t* out, std::size_t out_stride,
                                   std::size_t plane_stride) {
  const std::size_t n_words = local_ceil_div(p.channels, 32);
  const std::uint32_t opposite = answers_opposite(T{}) ? ~std::uint32_t{0} : 0;
  const std::uint32_t invert = p.code_of_index[0] != 0 ? ~opposite : opposite;
  alignas(16) std::uint8_t table[16] = {};
  for (std::size_t i = 0; i <= p.n_thresholds; ++i) table[i] = p.code_of_index[i];
  const __m256i codes =
      _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
  const __m256i all = _mm256_set1_epi8(static_cast<char>(p.n_thresholds));
  for (std::size_t row = 0; row < n_rows; ++row, x += x_stride, out += out_stride) {
    for (std::size_t word = 0; word < n_words; ++word) {
      const std::size_t channels = local_min(p.channels - word * 32, 32);
      const std::uint32_t valid =
          channels == 32 ? ~std::uint32_t{0} : (std::uint32_t{1} << channels) - 1;
      T tail[32];
      const T* values = x + word * 32;
      if (channels < 32) {
        for (std::size_t i = 0; i < 32; ++i) tail[i] = i < channels ? values[i] : T{0};
        values = tail;
      }
      const T* thresholds = p.thresholds + word * 32;
      __m256i minus_counts[4];
#pragma GCC unroll 4
      for (std::size_t i = 0; i < 4; ++i)
        minus_counts[i] = compare(values + i * 8, thresholds + i * 8);
      if constexpr (kPlanes == 0) {
        const auto answers = static_cast<std::uint32_t>(_mm256_movemask_epi8(pack(minus_counts)));
        out[word] = (answers ^ p.flip[word] ^ invert) & valid;
      } else {
        for (std::size_t t = 1; t < p.n_thresholds; ++t) {
          thresholds += p.threshold_stride;
#pragma GCC unroll 4
          for (std::size_t i = 0; i < 4; ++i) {
            minus_counts[i] =
                _mm256_add_epi32(minus_counts[i], compare(values + i * 8, thresholds + i * 8));
          }
        }
        const __m256i counts = _mm256_sub_epi8(_mm256_setzero_si256(), pack(minus_counts));
        const __m256i index = _mm256_blendv_epi8(counts, _mm256_sub_epi8(all, counts),
                                                 spread(p.flip[word] ^ opposite));
        const __m256i code = _mm256_shuffle_epi8(codes, index);
#pragma GCC unroll 4
        for (std::size_t plane = 0; plane < kPlanes; ++plane) {
          const __m256i top_bits = _mm256_slli_epi16(code, static_cast<int>(7 - plane));
          out[plane * plane_stride + word] =
              static_cast<std::uint32_t>(_mm256_movemask_epi8(top_bits)) & valid;
        }
      }
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

}  // namespace tac::kernels::avx2
