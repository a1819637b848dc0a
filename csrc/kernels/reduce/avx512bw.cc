// The reductions, AVX-512: 16 floats as two registers of doubles.
#include <immintrin.h>

#include "kernels/kernel_table.h"
#include "kernels/reduce/reduce_local.h"

namespace tac::kernels::avx512bw {

#include "kernels/backend_vector_avx512.inc"

namespace {

struct Wide {
  __m512d low, high;
};

static inline Vec load_or(const float* x, Mask mask, Vec other) {
  return _mm512_mask_loadu_ps(other, mask, x);
}
static inline Wide widen(Vec v) {
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(v)),
          _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))};
}
static inline void store(double* y, Wide v) {
  _mm512_storeu_pd(y, v.low);
  _mm512_storeu_pd(y + 8, v.high);
}
static inline Wide add(Wide a, Wide b) {
  return {_mm512_add_pd(a.low, b.low), _mm512_add_pd(a.high, b.high)};
}
static inline Wide mul(Wide a, Wide b) {
  return {_mm512_mul_pd(a.low, b.low), _mm512_mul_pd(a.high, b.high)};
}
// The instructions return their second operand where one is NaN and where both are equal: here a.
static inline __m512d nan_or(__m512d b, __m512d best) {
  return _mm512_mask_mov_pd(best, _mm512_cmp_pd_mask(b, b, _CMP_UNORD_Q), b);
}
static inline Wide larger(Wide a, Wide b) {
  return {nan_or(b.low, _mm512_max_pd(b.low, a.low)),
          nan_or(b.high, _mm512_max_pd(b.high, a.high))};
}
static inline Wide smaller(Wide a, Wide b) {
  return {nan_or(b.low, _mm512_min_pd(b.low, a.low)),
          nan_or(b.high, _mm512_min_pd(b.high, a.high))};
}

}  // namespace

#include "kernels/reduce/vectorized.inc"

}  // namespace tac::kernels::avx512bw
