// The reductions, AVX2: 8 floats as two registers of doubles.
#include <immintrin.h>

#include "kernels/kernel_table.h"
#include "kernels/reduce/reduce_local.h"

namespace tac::kernels::avx2 {

#include "kernels/backend_vector_avx2.inc"

namespace {

struct Wide {
  __m256d low, high;
};

static inline Vec load_or(const float* x, Mask mask, Vec other) {
  return _mm256_blendv_ps(other, load(x, mask), _mm256_castsi256_ps(mask));
}
static inline Wide widen(Vec v) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
}
static inline void store(double* y, Wide v) {
  _mm256_storeu_pd(y, v.low);
  _mm256_storeu_pd(y + 4, v.high);
}
static inline Wide add(Wide a, Wide b) {
  return {_mm256_add_pd(a.low, b.low), _mm256_add_pd(a.high, b.high)};
}
static inline Wide mul(Wide a, Wide b) {
  return {_mm256_mul_pd(a.low, b.low), _mm256_mul_pd(a.high, b.high)};
}
// The instructions return their second operand where one is NaN and where both are equal: here a.
static inline __m256d nan_or(__m256d b, __m256d best) {
  return _mm256_blendv_pd(best, b, _mm256_cmp_pd(b, b, _CMP_UNORD_Q));
}
static inline Wide larger(Wide a, Wide b) {
  return {nan_or(b.low, _mm256_max_pd(b.low, a.low)),
          nan_or(b.high, _mm256_max_pd(b.high, a.high))};
}
static inline Wide smaller(Wide a, Wide b) {
  return {nan_or(b.low, _mm256_min_pd(b.low, a.low)),
          nan_or(b.high, _mm256_min_pd(b.high, a.high))};
}

}  // namespace

#include "kernels/reduce/vectorized.inc"

}  // namespace tac::kernels::avx2
