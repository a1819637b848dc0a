// 4 pixels x 4 registers: XOR, popcount, add. A round is one word of every pixel.
#include <immintrin.h>

#include "limits.h"

namespace tac::limits::avx512 {

std::size_t bconv_b1(std::size_t n_rounds) {
  __m512i acc[4][4], w[4], x[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    w[i] = _mm512_set1_epi32(0x1234567 * i);
    x[i] = _mm512_set1_epi32(0x3456789 * i);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) acc[i][j] = _mm512_setzero_si512();
  }
  for (std::size_t round = 0; round < n_rounds; ++round) {
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      asm volatile("" : "+v"(x[p]));  // as good as new, so that nothing is hoisted
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b) {
        acc[p][b] = _mm512_add_epi32(acc[p][b], _mm512_popcnt_epi32(_mm512_xor_si512(x[p], w[b])));
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
#pragma GCC unroll 4
    for (int b = 0; b < 4; ++b) asm volatile("" : : "v"(acc[p][b]));
  }
  return n_rounds * 4 * 4 * 512;
}

}  // namespace tac::limits::avx512
