// Stands in for the compiler's <immintrin.h> where AVX-512 backends are compiled for a CPU without
// AVX-512 (preset avx512): tile registers, SIMDe's portable intrinsics, and those that its version
// 0.7 lacks or has otherwise. What is tested so is what the sources compute, not the machine code
// and not the speed.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// Keeps a value in a register; here registers are too short.
#define asm(...) static_assert(true)

namespace tac::emulated {

// Element i of a vector whose elements are T.
template <class T, class V>
static inline T element(const V& v, int i) {
  T value;
  __builtin_memcpy(&value, reinterpret_cast<const char*>(&v) + i * static_cast<int>(sizeof(T)),
                   sizeof(T));
  return value;
}
template <class T, class V>
static inline void set_element(V& v, int i, T value) {
  __builtin_memcpy(reinterpret_cast<char*>(&v) + i * static_cast<int>(sizeof(T)), &value,
                   sizeof(T));
}

// Element i becomes f(i) for the N elements of type T.
template <class V, class T, int N, class F>
static inline V make(const F& f) {
  V v;
  for (int i = 0; i < N; ++i) set_element<T>(v, i, f(i));
  return v;
}

template <class V>
static inline __m256i half(const V& v, int i) {
  return element<__m256i>(v, i);
}
static inline __m512i join(__m256i low, __m256i high) {
  return make<__m512i, __m256i, 2>([&](int i) { return i == 0 ? low : high; });
}

static inline bool has(__mmask16 mask, int i) {
  return (mask >> i & 1) != 0;
}

// Masked loads and stores touch no memory of elements that the mask leaves out.
static inline __m512 mask_loadu_ps(__m512 source, __mmask16 mask, const void* from) {
  const auto* x = static_cast<const float*>(from);
  return make<__m512, float, 16>(
      [&](int i) { return has(mask, i) ? x[i] : element<float>(source, i); });
}
static inline __m512 maskz_loadu_ps(__mmask16 mask, const void* from) {
  return mask_loadu_ps(_mm512_setzero_ps(), mask, from);
}
static inline __m512i maskz_loadu_epi32(__mmask16 mask, const void* from) {
  const auto* x = static_cast<const int*>(from);
  return make<__m512i, int, 16>([&](int i) { return has(mask, i) ? x[i] : 0; });
}
static inline void mask_storeu_ps(void* to, __mmask16 mask, __m512 v) {
  for (int i = 0; i < 16; ++i)
    if (has(mask, i)) static_cast<float*>(to)[i] = element<float>(v, i);
}
static inline void mask_cvtepi32_storeu_epi16(void* to, __mmask16 mask, __m512i v) {
  for (int i = 0; i < 16; ++i)
    if (has(mask, i)) static_cast<short*>(to)[i] = static_cast<short>(element<int>(v, i));
}
static inline __m512 mask_i32gather_ps(__m512 source, __mmask16 mask, __m512i index,
                                       const void* from, int scale) {
  return make<__m512, float, 16>([&](int i) {
    if (!has(mask, i)) return element<float>(source, i);
    float value;
    __builtin_memcpy(
        &value, static_cast<const char*>(from) + std::ptrdiff_t{element<int>(index, i)} * scale,
        sizeof value);
    return value;
  });
}
static inline void mask_i32scatter_ps(void* to, __mmask16 mask, __m512i index, __m512 v,
                                      int scale) {
  for (int i = 0; i < 16; ++i) {
    const float value = element<float>(v, i);
    if (has(mask, i))
      __builtin_memcpy(static_cast<char*>(to) + std::ptrdiff_t{element<int>(index, i)} * scale,
                       &value, sizeof value);
  }
}

static inline __m512d cvtps_pd(__m256 v) {
  return make<__m512d, double, 8>([&](int i) { return double{element<float>(v, i)}; });
}
static inline __m256 cvtpd_ps(__m512d v) {
  return make<__m256, float, 8>([&](int i) { return static_cast<float>(element<double>(v, i)); });
}
static inline __m512d cvtepi32_pd(__m256i v) {
  return make<__m512d, double, 8>([&](int i) { return double(element<int>(v, i)); });
}
static inline __m512i cvtps_epi32(__m512 v) {
  return join(_mm256_cvtps_epi32(element<__m256>(v, 0)), _mm256_cvtps_epi32(element<__m256>(v, 1)));
}
static inline __m512 cvtepi32_ps(__m512i v) {
  return make<__m512, float, 16>([&](int i) { return static_cast<float>(element<int>(v, i)); });
}
static inline __m256i cvtepi32_epi16(__m512i v) {
  return make<__m256i, short, 16>([&](int i) { return static_cast<short>(element<int>(v, i)); });
}
static inline __m512i cvtepu8_epi16(__m256i v) {
  return join(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(v)),
              _mm256_cvtepu8_epi16(_mm256_extracti128_si256(v, 1)));
}
static inline __m512i madd_epi16(__m512i a, __m512i b) {
  return join(_mm256_madd_epi16(half(a, 0), half(b, 0)), _mm256_madd_epi16(half(a, 1), half(b, 1)));
}
static inline __m512i sra_epi32(__m512i v, __m128i count) {
  return join(_mm256_sra_epi32(half(v, 0), count), _mm256_sra_epi32(half(v, 1), count));
}

// v * 2^floor(n), rounded once; SIMDe rounds twice.
static inline __m512 scalef_ps(__m512 v, __m512 n) {
  return make<__m512, float, 16>([&](int i) {
    const float power = element<float>(n, i);
    const float bounded = power < -1000.0F ? -1000.0F : power > 1000.0F ? 1000.0F : power;
    if (power != power) return power;
    return static_cast<float>(
        __builtin_ldexp(element<float>(v, i), static_cast<int>(__builtin_floorf(bounded))));
  });
}

// In pairs of halves, as GCC's.
template <class T, class V, class F>
static inline T reduce(const V& v, const F& f) {
  T x[16];
  for (int i = 0; i < 16; ++i) x[i] = element<T>(v, i);
  for (int n = 8; n > 0; n /= 2)
    for (int i = 0; i < n; ++i) x[i] = f(x[i], x[i + n]);
  return x[0];
}
static inline float reduce_add_ps(__m512 v) {
  return reduce<float>(v, [](float a, float b) { return a + b; });
}
static inline float reduce_max_ps(__m512 v) {
  return reduce<float>(v, [](float a, float b) { return a > b ? a : b; });
}
static inline unsigned reduce_max_epu32(__m512i v) {
  return reduce<unsigned>(v, [](unsigned a, unsigned b) { return a > b ? a : b; });
}

static inline __mmask16 cmplt_epu32_mask(__m512i a, __m512i b) {
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i)
    mask |= static_cast<unsigned>(element<unsigned>(a, i) < element<unsigned>(b, i)) << i;
  return static_cast<__mmask16>(mask);
}
static inline __mmask32 kunpackw(__mmask32 high, __mmask32 low) {
  return high << 16U | (low & 0xFFFFU);
}

// Tile registers. Each kernel configures its own, so those of a thread are enough.
struct Tiles {
  unsigned char rows[8], bytes[8];  // bytes of a row
  unsigned char data[8][16][64];
};
static inline Tiles& tiles() {
  static thread_local Tiles instance;
  return instance;
}
static inline void tile_loadconfig(const void* from) {
  const auto* config = static_cast<const unsigned char*>(from);
  for (int i = 0; i < 8; ++i) {
    tiles().bytes[i] = config[16 + 2 * i];
    tiles().rows[i] = config[48 + i];
  }
}
static inline void tile_release() {
  tiles() = {};
}
static inline void tile_zero(int to) {
  __builtin_memset(tiles().data[to], 0, sizeof tiles().data[to]);
}
static inline void tile_loadd(int to, const void* from, std::size_t stride) {
  tile_zero(to);
  for (int i = 0; i < tiles().rows[to]; ++i) {
    __builtin_memcpy(tiles().data[to][i],
                     static_cast<const char*>(from) + static_cast<std::size_t>(i) * stride,
                     tiles().bytes[to]);
  }
}
static inline void tile_stored(int from, void* to, std::size_t stride) {
  for (int i = 0; i < tiles().rows[from]; ++i) {
    __builtin_memcpy(static_cast<char*>(to) + static_cast<std::size_t>(i) * stride,
                     tiles().data[from][i], tiles().bytes[from]);
  }
}
static inline void tile_dpbssd(int c, int a, int b) {
  Tiles& t = tiles();
  for (int m = 0; m < t.rows[c]; ++m) {
    for (int n = 0; n < t.bytes[c] / 4; ++n) {
      int sum;
      __builtin_memcpy(&sum, &t.data[c][m][4 * n], 4);
      for (int k = 0; k < t.bytes[a]; ++k) {
        sum += static_cast<signed char>(t.data[a][m][k]) *
               static_cast<signed char>(t.data[b][k / 4][4 * n + k % 4]);
      }
      __builtin_memcpy(&t.data[c][m][4 * n], &sum, 4);
    }
  }
}

}  // namespace tac::emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#define _tile_loadconfig tac::emulated::tile_loadconfig
#define _tile_release tac::emulated::tile_release
#define _tile_zero tac::emulated::tile_zero
#define _tile_loadd tac::emulated::tile_loadd
#define _tile_stored tac::emulated::tile_stored
#define _tile_dpbssd tac::emulated::tile_dpbssd
#undef _mm512_scalef_ps
#define _mm512_scalef_ps tac::emulated::scalef_ps
#define _mm512_mask_loadu_ps tac::emulated::mask_loadu_ps
#define _mm512_maskz_loadu_ps tac::emulated::maskz_loadu_ps
#define _mm512_maskz_loadu_epi32 tac::emulated::maskz_loadu_epi32
#define _mm512_mask_storeu_ps tac::emulated::mask_storeu_ps
#define _mm512_mask_cvtepi32_storeu_epi16 tac::emulated::mask_cvtepi32_storeu_epi16
#define _mm512_mask_i32gather_ps tac::emulated::mask_i32gather_ps
#define _mm512_mask_i32scatter_ps tac::emulated::mask_i32scatter_ps
#define _mm512_cvtps_pd tac::emulated::cvtps_pd
#define _mm512_cvtpd_ps tac::emulated::cvtpd_ps
#define _mm512_cvtepi32_pd tac::emulated::cvtepi32_pd
#define _mm512_cvtps_epi32 tac::emulated::cvtps_epi32
#define _mm512_cvtepi32_ps tac::emulated::cvtepi32_ps
#define _mm512_cvtepi32_epi16 tac::emulated::cvtepi32_epi16
#define _mm512_cvtepu8_epi16 tac::emulated::cvtepu8_epi16
#define _mm512_madd_epi16 tac::emulated::madd_epi16
#define _mm512_sra_epi32 tac::emulated::sra_epi32
#define _mm512_srai_epi32(v, n) tac::emulated::sra_epi32(v, _mm_cvtsi32_si128(n))
#define _mm512_reduce_add_ps tac::emulated::reduce_add_ps
#define _mm512_reduce_max_ps tac::emulated::reduce_max_ps
#define _mm512_reduce_max_epu32 tac::emulated::reduce_max_epu32
#define _mm512_cmplt_epu32_mask tac::emulated::cmplt_epu32_mask
#define _mm512_kunpackw tac::emulated::kunpackw
#define _cvtmask32_u32(mask) (mask)
#define _mm512_extractf32x8_ps(v, i) tac::emulated::element<__m256>(v, i)
#define _mm512_mask_cmp_ps_mask(mask, a, b, condition) \
  ((mask) & _mm512_cmp_ps_mask(a, b, condition))
