// depthwise_f32, AVX-512. 3x3 stride 2 over 56x56x64: 15 GMAC/s on one core of a Zen 4 EPYC VM
// (tac_float_bench).
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/depthwise/depthwise.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512bw {

#include "kernels/backend_vector_avx512.inc"
#include "kernels/depthwise/vectorized.inc"

}  // namespace tac::kernels::avx512bw
