// The kernels that tile registers change; a slot that is left out is served by the next backend down.
#include "kernels/kernel_table.h"

namespace tac::kernels::amx {

constinit const KernelTable table = {
    .bconv_strip_pack = bconv_strip_pack,
    .bconv_strip_scratch = bconv_strip_scratch,
    .bconv_strip_i32 = bconv_strip_i32,
    .bconv_strip_bits = bconv_strip_bits,
};

}  // namespace tac::kernels::amx
