// conv_i16, AVX-512 without VNNI.
#include <immintrin.h>

#include "kernels/backend_local.h"
#include "kernels/iconv/iconv.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512bw {

#include "kernels/backend_dot_avx512bw.inc"
#include "kernels/iconv/avx512.inc"

}  // namespace tac::kernels::avx512bw
