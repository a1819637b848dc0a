// pool_f32, AVX-512.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/kernel_table.h"
#include "kernels/pool/pool.h"

namespace tac::kernels::avx512bw {

#include "kernels/backend_vector_avx512.inc"
#include "kernels/pool/vectorized.inc"

}  // namespace tac::kernels::avx512bw
