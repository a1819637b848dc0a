// Tensors of a model: what flows between ops, and the constants they read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace tac {

enum class DType : std::uint8_t {
  kF32 = 1,   // float32, dense, row major
  kBits = 2,  // packed low-bit codes, see Encoding
  kI64 = 3,   // int64, only as a model output (ArgMax)
};

// How the packed codes of a kBits tensor stand for integers ("levels"):
//
//   level(code) = lo + step * code,   0 <= code < n_levels
//
//   binary         {-1,+1}      lo  1, step -2, n_levels 2     code 1 stands for -1 (the sign bit)
//   n-bit          {0..2^n-1}   lo  0, step  1, n_levels 2^n
//   signed narrow  {-1,0,1}     lo -1, step  1, n_levels 3
//
// except kSignZero, the result of Sign where an exact zero can be reached: lo -1, step 1, 3 levels
// in two sign planes,
//
//   plane 0 bit = (level < 0), plane 1 bit = (level <= 0)
//   level = (s0 + s1) / 2 with s = 1 - 2 * bit
//
// Where the two planes are equal (no zero in this sample, the usual case) a binary op reads only
// one of them.
//
// Storage, per sample: [plane][outer dims...][words], word = 32 channels of the last axis, channel
// c in bit c % 32 of word c / 32, plane p = bit p of the code. Unused bits of the last word are 0
// in every plane, always.
struct Encoding {
  enum class Kind : std::uint8_t { kNone = 0, kLinear = 1, kSignZero = 2 };
  Kind kind = Kind::kNone;
  std::int32_t lo = 0;
  std::int32_t step = 0;
  std::uint32_t n_levels = 0;  // 2..16 for kLinear, 3 for kSignZero

  std::uint32_t n_planes() const noexcept;  // ceil(log2(n_levels)); 2 for kSignZero
  bool operator==(const Encoding&) const = default;
};

// Read-only bytes, either inside the mapped file or owned by the graph under construction.
using Blob = std::span<const std::byte>;

using TensorId = std::uint32_t;

struct Tensor {
  std::string name;
  DType dtype = DType::kF32;
  // Per sample: the batch axis, always the first, is left out. 4-D activations are [H, W, C].
  // A constant has no batch axis and is broadcast over it.
  std::vector<std::int64_t> dims;
  Encoding encoding;         // kBits only
  bool is_constant = false;  // then `data` holds the values (kF32 only)
  Blob data;
};

}  // namespace tac
