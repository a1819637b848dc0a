// codebook_linear_i16_sliced, AVX-512 without VNNI.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/codebook_i16/codebook_i16.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512bw {

#include "kernels/backend_dot_avx512bw.inc"
#include "kernels/codebook_i16/avx512.inc"

}  // namespace tac::kernels::avx512bw
