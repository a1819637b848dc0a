// The kernels that VNNI changes; a slot that is left out is served by the next backend down.
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512vnni {

constinit const KernelTable table = {
    .codebook_linear_i16_sliced = codebook_linear_i16_sliced,
    .codebook_sparse_i16 = codebook_sparse_i16,
    .conv_i16 = conv_i16,
};

}  // namespace tac::kernels::avx512vnni
