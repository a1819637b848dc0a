// pool_f32, AVX2.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/kernel_table.h"
#include "kernels/pool/pool.h"

namespace tac::kernels::avx2 {

#include "kernels/backend_vector_avx2.inc"
#include "kernels/pool/vectorized.inc"

}  // namespace tac::kernels::avx2
