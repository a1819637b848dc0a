// The kernels that the avx2 backend has.
#include "kernels/kernel_table.h"

namespace tac::kernels::avx2 {

constinit const KernelTable table = {
};

}  // namespace tac::kernels::avx2
