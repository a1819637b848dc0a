// linear_f32, scalar: one output at a time, k ascending. The oracle of the other backends.
#include "kernels/backend_local.h"
#include "kernels/flinear/flinear.h"
#include "kernels/kernel_table.h"

namespace tac::kernels::scalar {

void linear_f32(const LinearParams& params, const float* x, std::size_t batch, std::size_t x_stride,
                std::size_t block_begin, std::size_t block_end, float* y, std::size_t y_stride) {
  const std::size_t o_end = local_min(params.out_features, block_end * kLinearBlock);
  for (std::size_t n = 0; n < batch; ++n) {
    for (std::size_t o = block_begin * kLinearBlock; o < o_end; ++o) {
      const float* w =
          params.weights + o / kLinearBlock * params.in_features * kLinearBlock + o % kLinearBlock;
      float sum = params.bias[o];
      for (std::size_t k = 0; k < params.in_features; ++k)
        sum += w[k * kLinearBlock] * x[n * x_stride + k];
      y[n * y_stride + o] = sum;
    }
  }
}

}  // namespace tac::kernels::scalar
