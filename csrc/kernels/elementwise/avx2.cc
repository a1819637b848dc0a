// The elementwise kernels, AVX2: 8 values at a time, the last ones masked.
#include <immintrin.h>
#include <math.h>

#include "kernels/backend_local.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/elementwise/libm_local.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {

#include "kernels/backend_vector_avx2.inc"

namespace {

static inline float largest_lane(Vec v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
static inline float sum_of_lanes(Vec v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
// v * 2^n for a whole n in [-252, 254], in two halves because 2^n alone may be no normal number.
static inline Vec scale_by_power(Vec v, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const Vec a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const Vec b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return mul(mul(v, a), b);
}
static inline Vec load_integers(const std::int32_t* x, Mask mask) {
  return _mm256_cvtepi32_ps(_mm256_maskload_epi32(x, mask));
}
// Bit i: value i of 32 is at least its threshold.
static inline std::uint32_t at_least_bits(const Vec (&v)[4], const float* thresholds) {
  std::uint32_t bits = 0;
#pragma GCC unroll 4
  for (std::size_t i = 0; i < 4; ++i) {
    const Vec reached = _mm256_cmp_ps(v[i], load(thresholds + i * kLanes), _CMP_GE_OQ);
    bits |= static_cast<std::uint32_t>(_mm256_movemask_ps(reached)) << (i * kLanes);
  }
  return bits;
}

constexpr std::size_t kChainRows = 2;  // 8 registers

}  // namespace

#include "kernels/elementwise/vectorized.inc"

}  // namespace tac::kernels::avx2
