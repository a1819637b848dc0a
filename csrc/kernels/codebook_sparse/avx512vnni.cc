// codebook_sparse_i16, AVX-512 with VNNI.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/codebook_sparse/codebook_sparse.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512vnni {

#include "kernels/backend_dot_avx512vnni.inc"
#include "kernels/codebook_sparse/lists.inc"
#include "kernels/codebook_sparse/lists_avx512.inc"

}  // namespace tac::kernels::avx512vnni
