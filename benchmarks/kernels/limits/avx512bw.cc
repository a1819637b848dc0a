// 4 pixels x 2 registers: table lookup, add. A round is one nibble of every pixel.
#include <immintrin.h>

#include "limits.h"

namespace tac::limits::avx512bw {

std::size_t bconv_b1(std::size_t n_rounds) {
  __m512i acc[4][2], w[2], table[4];
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
    table[p] = _mm512_set1_epi8(static_cast<char>(p));
    acc[p][0] = acc[p][1] = _mm512_setzero_si512();
  }
  w[0] = _mm512_set1_epi8(3);
  w[1] = _mm512_set1_epi8(5);
  for (std::size_t round = 0; round < n_rounds; ++round) {
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      asm volatile("" : "+v"(table[p]));  // as good as new, so that nothing is hoisted
#pragma GCC unroll 2
      for (int g = 0; g < 2; ++g) {
        acc[p][g] = _mm512_add_epi8(acc[p][g], _mm512_shuffle_epi8(table[p], w[g]));
        asm("" : "+v"(acc[p][g]));  // stays in one register
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
    asm volatile("" : : "v"(acc[p][0]), "v"(acc[p][1]));
  }
  return n_rounds * 4 * 2 * 256;
}

}  // namespace tac::limits::avx512bw
