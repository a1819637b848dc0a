// The kernels that the avx512 backend has.
#include "kernels/kernel_table.h"

namespace tac::kernels::avx512 {

constinit const KernelTable table = {
};

}  // namespace tac::kernels::avx512
