// The kernels that VPOPCNTDQ changes; a slot that is left out is served by the next backend down.
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512 {

constinit const KernelTable table = {
    .bconv_b1_pack = bconv_b1_pack,
    .bconv_b1_i32 = bconv_b1_i32,
    .bconv_b1_bits = bconv_b1_bits,
};

}  // namespace tac::kernels::avx512
