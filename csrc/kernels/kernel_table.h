// The kernels of one backend: a plain struct of function pointers made from kernels.def.
#pragma once

#include <type_traits>

#include "kernels/bconv/bconv.h"
#include "kernels/bit_pool/bit_pool.h"
#include "kernels/codebook_i16/codebook_i16.h"
#include "kernels/codebook_linear/codebook_linear.h"
#include "kernels/codebook_sparse/codebook_sparse.h"
#include "kernels/depthwise/depthwise.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/fconv/fconv.h"
#include "kernels/flinear/flinear.h"
#include "kernels/iconv/iconv.h"
#include "kernels/pool/pool.h"
#include "kernels/quantize/quantize.h"
#include "kernels/reduce/reduce.h"
#include "kernels/rounding/rounding.h"

namespace tac::kernels {

struct KernelTable {
#define TAC_KERNEL(name) name##_fn name = nullptr;
#include "kernels/kernels.def"
#undef TAC_KERNEL
};

// tac::kernels::<backend>::<kernel>, for every backend and kernel; a backend defines those that its
// table names.
#define TAC_KERNEL(name) std::remove_pointer_t<name##_fn> name;
namespace scalar {
#include "kernels/kernels.def"
extern const KernelTable table;
}  // namespace scalar
namespace avx2 {
#include "kernels/kernels.def"
extern const KernelTable table;
}  // namespace avx2
namespace avx512bw {
#include "kernels/kernels.def"
extern const KernelTable table;
}  // namespace avx512bw
namespace avx512vnni {
#include "kernels/kernels.def"
extern const KernelTable table;
}  // namespace avx512vnni
namespace avx512 {
#include "kernels/kernels.def"
extern const KernelTable table;
}  // namespace avx512
namespace amx {
#include "kernels/kernels.def"
extern const KernelTable table;
}  // namespace amx
namespace neon {
#include "kernels/kernels.def"
extern const KernelTable table;
}  // namespace neon
#undef TAC_KERNEL

}  // namespace tac::kernels
