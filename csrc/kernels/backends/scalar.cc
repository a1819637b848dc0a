// The kernels that the scalar backend has.
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {

constinit const KernelTable table = {
};

}  // namespace tac::kernels::scalar
