// The elementwise kernels, AVX-512: 16 values at a time, the last ones masked.
#include <immintrin.h>
#include <math.h>

#include "kernels/backend_local.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512 {
namespace {

using Vec = __m512;
using Mask = __mmask16;
constexpr std::size_t kLanes = 16;

static inline Mask mask_of(std::size_t n_lanes) {
  return static_cast<Mask>((1U << n_lanes) - 1U);
}
static inline Vec load(const float* x) {
  return _mm512_loadu_ps(x);
}
static inline Vec load(const float* x, Mask mask) {
  return _mm512_maskz_loadu_ps(mask, x);
}
static inline void store(float* y, Vec v) {
  _mm512_storeu_ps(y, v);
}
static inline void store(float* y, Mask mask, Vec v) {
  _mm512_mask_storeu_ps(y, mask, v);
}
static inline Vec set(float v) {
  return _mm512_set1_ps(v);
}
static inline Vec zero_unless(Mask mask, Vec v) {
  return _mm512_maskz_mov_ps(mask, v);
}

// Lanes where `condition` holds take a, the others b.
static inline Vec select(__mmask16 condition, Vec a, Vec b) {
  return _mm512_mask_blend_ps(condition, b, a);
}
static inline __mmask16 less(Vec a, Vec b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
static inline __mmask16 equal(Vec a, Vec b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}
static inline __mmask16 is_nan(Vec a) {
  return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
}

static inline Vec add(Vec a, Vec b) {
  return _mm512_add_ps(a, b);
}
static inline Vec sub(Vec a, Vec b) {
  return _mm512_sub_ps(a, b);
}
static inline Vec mul(Vec a, Vec b) {
  return _mm512_mul_ps(a, b);
}
static inline Vec div(Vec a, Vec b) {
  return _mm512_div_ps(a, b);
}
static inline Vec fma(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}
static inline Vec sign_bits(Vec v) {
  return _mm512_and_ps(v, set(-0.0F));
}
static inline Vec absolute(Vec v) {
  return _mm512_andnot_ps(set(-0.0F), v);
}
static inline Vec flip_signs(Vec v, Vec signs) {
  return _mm512_xor_ps(v, signs);
}
static inline Vec square_root(Vec v) {
  return _mm512_sqrt_ps(v);
}
template <int kMode>
static inline Vec round_to(Vec v) {
  return _mm512_roundscale_ps(v, kMode);
}
// The instructions return their second operand where one is NaN and where both are equal: here x.
static inline Vec at_least(Vec x, Vec low) {
  return _mm512_max_ps(low, x);
}
static inline Vec at_most(Vec x, Vec high) {
  return _mm512_min_ps(high, x);
}
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

}  // namespace tac::kernels::avx512
