// What the float and codebook layers mean, in plain loops on unpacked weights. For tests; shares no
// code with the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ir/ops.h"

namespace tac::reference {

// A sum in double precision with the sum of the terms' magnitudes, which bounds the error of a
// float sum of them.
struct Sum {
  double value = 0.0;
  double magnitude = 0.0;

  void add(double term);
};

// [batch][outputs]; weights [outputs][inputs], x [batch][inputs].
std::vector<Sum> linear(std::size_t batch, std::size_t inputs, std::size_t outputs,
                        const std::vector<float>& weights, const std::vector<float>& bias,
                        const std::vector<float>& x);

struct WindowShape {
  std::size_t in_h = 1, in_w = 1, channels = 1;
  std::size_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, dilation_h = 1,
              dilation_w = 1;
  std::size_t pad_top = 0, pad_left = 0, pad_bottom = 0, pad_right = 0;

  // With ceil mode a window may start in the map and reach past the padding.
  std::size_t out_h(bool ceil_mode = false) const;
  std::size_t out_w(bool ceil_mode = false) const;
};

// [out_h][out_w][outputs]; weights [outputs][kernel_h][kernel_w][channels], x
// [in_h][in_w][channels].
std::vector<Sum> conv(const WindowShape& shape, std::size_t outputs,
                      const std::vector<float>& weights, const std::vector<float>& bias,
                      const std::vector<float>& x);

// [out_h][out_w][channels]; exactly, the average in the order that the contract gives.
std::vector<float> pool(const WindowShape& shape, bool ceil_mode, bool average,
                        bool count_include_pad, const std::vector<float>& x);

// Rounded once from double precision where the kind is no plain arithmetic; exact for the others.
float unary(UnaryKind kind, float alpha, float beta, float x);
float binary(BinaryKind kind, float a, float b);

// The terms' joint value, not rounded, with the sum of their magnitudes; x is not empty.
Sum reduce(ReduceKind kind, const std::vector<float>& x);

std::vector<double> softmax(bool log, const std::vector<float>& x);

}  // namespace tac::reference
