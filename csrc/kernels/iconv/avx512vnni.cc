// conv_i16, AVX-512 with VNNI.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/iconv/iconv.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512vnni {

#include "kernels/backend_dot_avx512vnni.inc"
#include "kernels/iconv/avx512.inc"

}  // namespace tac::kernels::avx512vnni
