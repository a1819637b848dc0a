// Max and min pooling of unpacked codes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tac::reference {

struct CodePool {
  std::size_t in_h = 1, in_w = 1, out_h = 1, out_w = 1, channels = 1;
  std::size_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, dilation_h = 1,
              dilation_w = 1;
  std::size_t pad_top = 0, pad_left = 0;
  std::vector<bool> take_min;        // [channels]
  std::vector<std::uint32_t> codes;  // [in_h][in_w][channels]
};

// [out_h][out_w][channels]; every window has a tap inside the map.
std::vector<std::uint32_t> code_pool(const CodePool& pool);

}  // namespace tac::reference
