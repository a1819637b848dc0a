// Rounding to 16 bits, AVX-512, 16 floats at a time.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/kernel_table.h"
#include "kernels/rounding/rounding.h"

namespace tac::kernels::avx512bw {
namespace {

static inline __mmask16 last_lanes(std::size_t count) {
  return static_cast<__mmask16>((1U << (count % 16)) - 1U);
}

}  // namespace

std::uint32_t max_magnitude_f32(const float* x, std::size_t count) {
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  const std::size_t whole = count / 16 * 16;
  __m512i largest =
      _mm512_and_si512(magnitude, _mm512_maskz_loadu_epi32(last_lanes(count), x + whole));
  for (std::size_t k = 0; k < whole; k += 16) {
    largest = _mm512_max_epu32(largest, _mm512_and_si512(magnitude, _mm512_loadu_si512(x + k)));
  }
  return _mm512_reduce_max_epu32(largest);
}

void round_f32_i16(const RoundingScale& scale, const float* x, std::size_t count, std::int16_t* q) {
  const __m512 pre = _mm512_set1_ps(scale.pre);
  const __m512 mul = _mm512_set1_ps(scale.mul);
  const __m512 low = _mm512_set1_ps(-scale.limit);
  const __m512 high = _mm512_set1_ps(scale.limit);
  const auto rounded = [&](__m512 v) __attribute__((always_inline)) {
    v = _mm512_mul_ps(_mm512_mul_ps(v, pre), mul);
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, low), high));
  };
  const std::size_t whole = count / 16 * 16;
  for (std::size_t k = 0; k < whole; k += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + k),
                        _mm512_cvtepi32_epi16(rounded(_mm512_loadu_ps(x + k))));
  }
  const __mmask16 last = last_lanes(count);
  _mm512_mask_cvtepi32_storeu_epi16(q + whole, last,
                                    rounded(_mm512_maskz_loadu_ps(last, x + whole)));
}

}  // namespace tac::kernels::avx512bw
