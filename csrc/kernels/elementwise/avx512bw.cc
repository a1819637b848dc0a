// The elementwise kernels, AVX-512: 16 values at a time, the last ones masked.
#include <immintrin.h>
#include <math.h>

#include "kernels/backend_local.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/elementwise/libm_local.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512bw {

#include "kernels/backend_vector_avx512.inc"

namespace {

static inline float largest_lane(Vec v) {
  return _mm512_reduce_max_ps(v);
}
static inline float sum_of_lanes(Vec v) {
  return _mm512_reduce_add_ps(v);
}
// v * 2^n for a whole n, rounded once.
static inline Vec scale_by_power(Vec v, Vec n) {
  return _mm512_scalef_ps(v, n);
}
static inline Vec load_integers(const std::int32_t* x, Mask mask) {
  return _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(mask, x));
}
// Bit i: value i of 32 is at least its threshold.
static inline std::uint32_t at_least_bits(const Vec (&v)[2], const float* thresholds) {
  return _cvtmask32_u32(
      _mm512_kunpackw(_mm512_cmp_ps_mask(v[1], load(thresholds + kLanes), _CMP_GE_OQ),
                      _mm512_cmp_ps_mask(v[0], load(thresholds), _CMP_GE_OQ)));
}

constexpr std::size_t kChainRows = 4;  // 8 registers

}  // namespace

#include "kernels/elementwise/vectorized.inc"

}  // namespace tac::kernels::avx512bw
