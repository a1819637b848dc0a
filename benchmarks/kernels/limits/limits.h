// What a core can do at best: the inner operations of a backend's binary convolutions on registers alone,
// with no load, no address and no loop but their own.
#pragma once

#include <cstddef>

namespace tac::limits {

// Repeats the operations of one tile n_rounds times; returns the MACs that this stands for.
using bconv_b1_fn = std::size_t(std::size_t n_rounds);
namespace scalar {
bconv_b1_fn bconv_b1;
}
namespace avx2 {
bconv_b1_fn bconv_b1;
}
namespace avx512bw {
bconv_b1_fn bconv_b1;
}
namespace avx512 {
bconv_b1_fn bconv_b1;
}
namespace amx {
bconv_b1_fn bconv_b1;
}

}  // namespace tac::limits
