// Rounding to 16 bits, AVX2, 8 floats at a time.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/kernel_table.h"
#include "kernels/rounding/rounding.h"

namespace tac::kernels::avx2 {
namespace {

// The first `count` % 8 floats at x, zeros behind them.
static inline __m256 load_last(const float* x, std::size_t count) {
  const __m256i lanes = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count % 8)),
                                           _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  return _mm256_maskload_ps(x, lanes);
}

}  // namespace

std::uint32_t max_magnitude_f32(const float* x, std::size_t count) {
  const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
  const std::size_t whole = count / 8 * 8;
  __m256i largest = _mm256_and_si256(magnitude, _mm256_castps_si256(load_last(x + whole, count)));
  for (std::size_t k = 0; k < whole; k += 8) {
    const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + k));
    largest = _mm256_max_epi32(largest, _mm256_and_si256(magnitude, bits));
  }
  alignas(32) std::uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
  std::uint32_t result = 0;
  for (const std::uint32_t lane : lanes) result = lane > result ? lane : result;
  return result;
}

void round_f32_i16(const RoundingScale& scale, const float* x, std::size_t count, std::int16_t* q) {
  const __m256 pre = _mm256_set1_ps(scale.pre);
  const __m256 mul = _mm256_set1_ps(scale.mul);
  const __m256 low = _mm256_set1_ps(-scale.limit);
  const __m256 high = _mm256_set1_ps(scale.limit);
  const auto rounded = [&](__m256 v) __attribute__((always_inline)) {
    v = _mm256_mul_ps(_mm256_mul_ps(v, pre), mul);
    const __m256i whole = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, low), high));
    return _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  };
  const std::size_t whole = count / 8 * 8;
  for (std::size_t k = 0; k < whole; k += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + k), rounded(_mm256_loadu_ps(x + k)));
  if (whole == count) return;
  alignas(16) std::int16_t rest[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(rest), rounded(load_last(x + whole, count)));
  for (std::size_t k = whole; k < count; ++k) q[k] = rest[k - whole];
}

}  // namespace tac::kernels::avx2
