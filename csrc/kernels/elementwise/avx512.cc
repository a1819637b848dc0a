// affine_f32, unary_f32, binary_f32, softmax_f32, AVX-512: 16 values at a time, the last ones
// masked. Everything that the contract wants bit-equal uses the operations of scalar, one by one.
// exp is Cody and Waite: x = n ln 2 + r, 2^n times a polynomial of degree 6 in r, at most 2 units
// in the last place off; sigmoid, tanh and softmax are made of it.
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

static inline Vec exponential(Vec x) {
  // Beyond these the result is 0 or infinity anyway; NaN passes.
  x = at_most(at_least(x, set(-104.0F)), set(89.0F));
  const Vec n = round_to<_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC>(mul(x, set(1.44269504F)));
  Vec r = fma(n, set(-0.693359375F), x);
  r = fma(n, set(2.12194440e-4F), r);
  Vec p = set(1.9875691500e-4F);
  p = fma(p, r, set(1.3981999507e-3F));
  p = fma(p, r, set(8.3334519073e-3F));
  p = fma(p, r, set(4.1665795894e-2F));
  p = fma(p, r, set(1.6666665459e-1F));
  p = fma(p, r, set(5.0000001201e-1F));
  p = add(fma(p, mul(r, r), r), set(1.0F));
  return scale_by_power(p, n);
}

static inline Vec sigmoid(Vec x) {
  const Vec one = set(1.0F);
  return div(one, add(one, exponential(flip_signs(x, set(-0.0F)))));
}

static inline Vec tangent(Vec x) {
  const Vec a = absolute(x);
  // Near 0: x + x^3 * polynomial in x^2.
  const Vec z = mul(x, x);
  Vec p = set(-5.70498872745e-3F);
  p = fma(p, z, set(2.06390887954e-2F));
  p = fma(p, z, set(-5.37397155531e-2F));
  p = fma(p, z, set(1.33314422036e-1F));
  p = fma(p, z, set(-3.33332819422e-1F));
  const Vec near = fma(mul(p, z), x, x);
  const Vec far = sub(set(1.0F), div(set(2.0F), add(exponential(add(a, a)), set(1.0F))));
  return select(less(a, set(0.625F)), near, flip_signs(far, sign_bits(x)));
}

static inline Vec sign(Vec x) {
  const Vec zero = set(0.0F);
  const Vec of_negative = select(less(x, zero), set(-1.0F), x);
  const Vec of_zero = select(equal(x, zero), zero, of_negative);
  return select(less(zero, x), set(1.0F), of_zero);
}

template <class F>
static inline void map(const float* x, std::size_t n, float* y, F f) {
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, f(load(x + i)));
  if (i < n) {
    const Mask tail = mask_of(n - i);
    store(y + i, tail, f(load(x + i, tail)));
  }
}

template <class F>
static inline void map2(const float* a, std::size_t a_step, const float* b, std::size_t b_step,
                        std::size_t n, float* y, F f) {
  // A single value is read before y, which may be its place, is written.
  const Vec a_value = set(n != 0 ? a[0] : 0.0F);
  const Vec b_value = set(n != 0 ? b[0] : 0.0F);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    store(y + i, f(a_step == 0 ? a_value : load(a + i), b_step == 0 ? b_value : load(b + i)));
  }
  if (i < n) {
    const Mask tail = mask_of(n - i);
    store(y + i, tail,
          f(a_step == 0 ? a_value : load(a + i, tail), b_step == 0 ? b_value : load(b + i, tail)));
  }
}

}  // namespace

void affine_f32(const float* scale, const float* shift, std::size_t channels, const float* x,
                std::size_t n_rows, float* y) {
  if (channels == 1) {
    const Vec a = set(scale[0]);
    const Vec b = set(shift[0]);
    map(x, n_rows, y, [=](Vec v) { return add(mul(a, v), b); });
    return;
  }
  for (std::size_t r = 0; r < n_rows; ++r, x += channels, y += channels) {
    std::size_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      store(y + c, add(mul(load(scale + c), load(x + c)), load(shift + c)));
    }
    if (c < channels) {
      const Mask tail = mask_of(channels - c);
      store(y + c, tail, add(mul(load(scale + c, tail), load(x + c, tail)), load(shift + c, tail)));
    }
  }
}

void unary_f32(UnaryKind kind, float alpha, float beta, const float* x, std::size_t n, float* y) {
  const Vec zero = set(0.0F);
  const Vec one = set(1.0F);
  const Vec a = set(alpha);
  const Vec b = set(beta);
  switch (kind) {
    case UnaryKind::kRelu: map(x, n, y, [=](Vec v) { return at_least(v, zero); }); break;
    case UnaryKind::kClip: map(x, n, y, [=](Vec v) { return at_most(at_least(v, a), b); }); break;
    case UnaryKind::kLeakyRelu:
      map(x, n, y, [=](Vec v) { return select(less(v, zero), mul(a, v), v); });
      break;
    case UnaryKind::kSigmoid: map(x, n, y, [](Vec v) { return sigmoid(v); }); break;
    case UnaryKind::kTanh: map(x, n, y, [](Vec v) { return tangent(v); }); break;
    case UnaryKind::kHardSigmoid:
      map(x, n, y, [=](Vec v) { return at_most(at_least(add(mul(a, v), b), zero), one); });
      break;
    case UnaryKind::kHardSwish: {
      const Vec six = set(6.0F);
      const Vec half = set(0.5F);
      map(x, n, y,
          [=](Vec v) { return mul(v, at_most(at_least(add(div(v, six), half), zero), one)); });
      break;
    }
    case UnaryKind::kAbs: map(x, n, y, [](Vec v) { return absolute(v); }); break;
    case UnaryKind::kNeg: map(x, n, y, [](Vec v) { return flip_signs(v, set(-0.0F)); }); break;
    case UnaryKind::kSqrt: map(x, n, y, [](Vec v) { return square_root(v); }); break;
    case UnaryKind::kExp: map(x, n, y, [](Vec v) { return exponential(v); }); break;
    case UnaryKind::kSign: map(x, n, y, [](Vec v) { return sign(v); }); break;
    case UnaryKind::kFloor:
      map(x, n, y, [](Vec v) { return round_to<_MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC>(v); });
      break;
    case UnaryKind::kCeil:
      map(x, n, y, [](Vec v) { return round_to<_MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC>(v); });
      break;
    case UnaryKind::kRound:
      map(x, n, y,
          [](Vec v) { return round_to<_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC>(v); });
      break;
  }
}

void binary_f32(BinaryKind kind, const float* a, std::size_t a_step, const float* b,
                std::size_t b_step, std::size_t n, float* y) {
  const auto apply = [=](auto f) { map2(a, a_step, b, b_step, n, y, f); };
  const Vec zero = set(0.0F);
  switch (kind) {
    case BinaryKind::kAdd: apply([](Vec u, Vec v) { return add(u, v); }); break;
    case BinaryKind::kSub: apply([](Vec u, Vec v) { return sub(u, v); }); break;
    case BinaryKind::kMul: apply([](Vec u, Vec v) { return mul(u, v); }); break;
    case BinaryKind::kDiv: apply([](Vec u, Vec v) { return div(u, v); }); break;
    case BinaryKind::kMin:
      apply([](Vec u, Vec v) { return select(is_nan(u), u, at_most(v, u)); });
      break;
    case BinaryKind::kMax:
      apply([](Vec u, Vec v) { return select(is_nan(u), u, at_least(v, u)); });
      break;
    case BinaryKind::kPow: {  // no vector form that keeps libm's bits
      const float a0 = n != 0 ? a[0] : 0.0F;
      const float b0 = n != 0 ? b[0] : 0.0F;
      for (std::size_t i = 0; i < n; ++i)
        y[i] = powf(a_step == 0 ? a0 : a[i], b_step == 0 ? b0 : b[i]);
      break;
    }
    case BinaryKind::kPRelu:
      apply([=](Vec u, Vec v) { return select(less(u, zero), mul(v, u), u); });
      break;
  }
}

void softmax_f32(bool log, const float* x, std::size_t n_rows, std::size_t n, float* y) {
  const std::size_t n_full = n / kLanes * kLanes;
  const Mask tail = mask_of(n - n_full);
  const Vec lowest = set(-__builtin_inff());
  for (std::size_t r = 0; r < n_rows; ++r, x += n, y += n) {
    // A NaN may be passed over here: its exponential makes the sum, and so the whole row, NaN.
    Vec most = lowest;
    for (std::size_t i = 0; i < n_full; i += kLanes) most = at_least(load(x + i), most);
    float largest = largest_lane(most);
    for (std::size_t i = n_full; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    const Vec shift = set(largest);
    Vec sums = set(0.0F);
    for (std::size_t i = 0; i < n_full; i += kLanes) {
      const Vec e = exponential(sub(load(x + i), shift));
      sums = add(sums, e);
      if (!log) store(y + i, e);
    }
    if (n_full < n) {
      const Vec e = exponential(sub(load(x + n_full, tail), shift));
      sums = add(sums, zero_unless(tail, e));
      if (!log) store(y + n_full, tail, e);
    }
    const float sum = sum_of_lanes(sums);
    if (log) {
      const Vec log_sum = set(logf(sum));
      map(x, n, y, [=](Vec v) { return sub(sub(v, shift), log_sum); });
    } else {
      const Vec divisor = set(sum);
      map(y, n, y, [=](Vec v) { return div(v, divisor); });
    }
  }
}

}  // namespace tac::kernels::avx512
