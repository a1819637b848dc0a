// Max pooling on packed codes, 256 channels a register. Contract in bit_pool.h.
// Codes of channels in take_min are complemented on the way in and out: ~a > ~b exactly where a <
// b, so one maximum serves both. A maximum of single bits is an OR; codes of more planes are
// compared bit-serially from the most significant down:
//   greater |= undecided & a & ~b;   undecided &= ~(a ^ b)
// Words behind the last of a pixel are masked out of loads and stores.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {
namespace {

constexpr std::size_t kLanes = 8;

// The taps of one output pixel: `x` is the first inside the map.
struct Taps {
  const std::uint32_t* x;
  std::size_t n_rows, n_cols, row_step, col_step;
};

static inline __m256i load(const std::uint32_t* x, __m256i valid) {
  return _mm256_maskload_epi32(reinterpret_cast<const int*>(x), valid);
}

// kPlanes planes that form one code.
template <std::size_t kPlanes>
static inline void pool_code(const Taps& taps, std::size_t in_plane_stride,
                             std::size_t out_plane_stride, __m256i take_min, __m256i valid,
                             std::uint32_t* out) {
  // No code is below zero, so zero loses to or equals the first tap.
  __m256i best[kPlanes];
#pragma GCC unroll 4
  for (std::size_t i = 0; i < kPlanes; ++i) best[i] = _mm256_setzero_si256();
  for (std::size_t row = 0; row < taps.n_rows; ++row) {
    for (std::size_t col = 0; col < taps.n_cols; ++col) {
      const std::uint32_t* x = taps.x + row * taps.row_step + col * taps.col_step;
      if constexpr (kPlanes == 1) {
        best[0] = _mm256_or_si256(best[0], _mm256_xor_si256(load(x, valid), take_min));
      } else {
        __m256i tap[kPlanes];
        __m256i greater = _mm256_setzero_si256(), undecided = _mm256_set1_epi32(-1);
#pragma GCC unroll 4
        for (std::size_t below = 0; below < kPlanes; ++below) {
          const std::size_t i = kPlanes - 1 - below;
          tap[i] = _mm256_xor_si256(load(x + i * in_plane_stride, valid), take_min);
          const __m256i differ = _mm256_xor_si256(tap[i], best[i]);
          greater = _mm256_or_si256(
              greater, _mm256_and_si256(undecided, _mm256_andnot_si256(best[i], tap[i])));
          undecided = _mm256_andnot_si256(differ, undecided);
        }
#pragma GCC unroll 4
        for (std::size_t i = 0; i < kPlanes; ++i) {
          const __m256i change = _mm256_and_si256(_mm256_xor_si256(best[i], tap[i]), greater);
          best[i] = _mm256_xor_si256(best[i], change);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (std::size_t i = 0; i < kPlanes; ++i) {
    _mm256_maskstore_epi32(reinterpret_cast<int*>(out + i * out_plane_stride), valid,
                           _mm256_xor_si256(best[i], take_min));
  }
}

}  // namespace

void bit_pool_bits(const BitPoolParams& p, const std::uint32_t* input, std::size_t oy,
                   std::uint32_t* out) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const auto top =
      static_cast<std::ptrdiff_t>(oy * p.stride_h) - static_cast<std::ptrdiff_t>(p.pad_top);
  const LocalTapRange ky =
      local_tap_range(top, p.kernel_h, p.dilation_h, 0, static_cast<std::ptrdiff_t>(p.in_h));
  const LocalTapRange full =
      local_full_windows(p.out_w, p.stride_w, p.pad_left, p.dilation_w, p.kernel_w, p.in_w);
  const std::size_t y = oy * p.stride_h + ky.begin * p.dilation_h - p.pad_top;
  Taps taps{};
  taps.n_rows = ky.end - ky.begin;
  taps.row_step = p.dilation_h * p.in_w * p.words;
  taps.col_step = p.dilation_w * p.words;
  for (std::size_t word = 0; word < p.words; word += kLanes) {
    const int n_valid = static_cast<int>(local_min(p.words - word, kLanes));
    const __m256i valid = _mm256_cmpgt_epi32(_mm256_set1_epi32(n_valid), lane);
    const __m256i take_min = load(p.take_min + word, valid);
    for (std::size_t ox = 0; ox < p.out_w; ++ox) {
      LocalTapRange kx{0, p.kernel_w};
      if (ox < full.begin || ox >= full.end) {
        const auto left =
            static_cast<std::ptrdiff_t>(ox * p.stride_w) - static_cast<std::ptrdiff_t>(p.pad_left);
        kx =
            local_tap_range(left, p.kernel_w, p.dilation_w, 0, static_cast<std::ptrdiff_t>(p.in_w));
      }
      taps.n_cols = kx.end - kx.begin;
      const std::size_t x = ox * p.stride_w + kx.begin * p.dilation_w - p.pad_left;
      taps.x = input + (y * p.in_w + x) * p.words + word;
      std::uint32_t* pooled = out + ox * p.words + word;
      switch (p.bitwise ? 1 : p.n_planes) {
        case 1:
          for (std::size_t i = 0; i < p.n_planes; ++i) {
            pool_code<1>(taps, 0, 0, take_min, valid, pooled + i * p.out_plane_stride);
            taps.x += p.in_plane_stride;
          }
          break;
        case 2:
          pool_code<2>(taps, p.in_plane_stride, p.out_plane_stride, take_min, valid, pooled);
          break;
        case 3:
          pool_code<3>(taps, p.in_plane_stride, p.out_plane_stride, take_min, valid, pooled);
          break;
        default:
          pool_code<4>(taps, p.in_plane_stride, p.out_plane_stride, take_min, valid, pooled);
          break;
      }
    }
  }
}

}  // namespace tac::kernels::avx2
