// Contract of bit_pool_bits: max pooling on packed codes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tac::kernels {

// Codes are compared as unsigned numbers, plane n_planes - 1 being the most significant bit; per
// channel the largest code wins, or the smallest where the channel's bit in take_min is set. (The
// op layer turns "largest level" into one of the two: binary codes descend with the level.
// kSignZero planes are pooled bitwise: `bitwise` = true takes OR for "largest" and AND for
// "smallest" in every plane on its own.) input [plane][in_h][in_w][words]; output row
// [plane][out_w][words]. Taps outside the map are skipped; every window has at least one tap
// inside.
struct BitPoolParams {
  std::size_t in_h, in_w, out_w, words;
  std::size_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
  std::size_t n_planes, in_plane_stride, out_plane_stride;  // strides in words
  bool bitwise;
  const std::uint32_t* take_min;  // [words]
};

// Computes output row `oy` into out[plane * out_plane_stride + ox * words + word].
using bit_pool_bits_fn = void (*)(const BitPoolParams& params, const std::uint32_t* input,
                                  std::size_t oy, std::uint32_t* out);

}  // namespace tac::kernels
