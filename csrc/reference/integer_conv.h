// Convolution of integer levels as a loop nest on unpacked integers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tac::reference {

struct IntegerConv {
  std::size_t in_h = 1, in_w = 1, out_h = 1, out_w = 1, in_channels = 1, out_channels = 1;
  std::size_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, dilation_h = 1,
              dilation_w = 1;
  std::size_t pad_top = 0, pad_left = 0;
  std::int64_t pad_level = 0;         // what a tap outside the map reads
  std::vector<std::int64_t> input;    // [in_h][in_w][in_channels]
  std::vector<std::int64_t> weights;  // [out_channels][kernel_h][kernel_w][in_channels]
};

// [out_h][out_w][out_channels]
std::vector<std::int64_t> integer_conv(const IntegerConv& conv);

}  // namespace tac::reference
