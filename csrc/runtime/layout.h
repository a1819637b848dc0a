// Sizes of tensors per sample and small helpers that the ops share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/aligned_buffer.h"
#include "ir/ops.h"
#include "ir/tensor.h"

namespace tac {

inline constexpr std::size_t kWordBits = 32;

constexpr std::size_t ceil_div(std::size_t a, std::size_t b) noexcept {
  return (a + b - 1) / b;
}

// Product of dims; 1 for none.
std::size_t element_count(std::span<const std::int64_t> dims) noexcept;

// Size of the last axis and product of the others; {1, 1} for a scalar.
struct Rows {
  std::size_t rows, channels;
};
Rows rows_of(const Tensor& tensor) noexcept;

// [H, W, C]; a rank-1 tensor [K] is [1, 1, K].
struct Map {
  std::size_t h, w, c;
};
Map map_of(const Tensor& tensor) noexcept;

// A kBits sample: [planes][rows][words].
struct BitsLayout {
  std::size_t planes, rows, words;
  std::size_t plane_words() const noexcept { return rows * words; }
  std::size_t sample_words() const noexcept { return planes * rows * words; }
};
BitsLayout bits_layout(const Tensor& tensor) noexcept;

// Bytes of one sample of any tensor.
std::size_t sample_bytes(const Tensor& tensor) noexcept;

// The code of each level, levels ascending; n_levels entries are used.
std::array<std::uint8_t, 16> codes_of_ascending_levels(const Encoding& encoding) noexcept;

// What kernel window parameters are made of.
struct WindowSizes {
  std::size_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  std::size_t pad_top, pad_left, pad_bottom, pad_right;
};
WindowSizes window_sizes(const Window& window) noexcept;

// [n] floats, padded with 0 to a multiple of 16, from a blob of n values or of one value for all.
AlignedBuffer<float> expand(const BlobOf<float>& values, std::size_t n);

// How tables of thresholds reach the quantize kernels (kernels/quantize/quantize.h), for int32 and
// float alike.
template <class T>
struct ThresholdTables {
  std::size_t n_thresholds = 0, n_planes = 0, stride = 0;
  AlignedBuffer<T> thresholds;        // [n_thresholds][stride]
  AlignedBuffer<std::uint32_t> flip;  // [ceil(C / 32)]
  std::array<std::uint8_t, 16> code_of_index{};

  ThresholdTables() = default;
  ThresholdTables(const BlobOf<T>& values, const BlobOf<std::uint8_t>& descending,
                  std::size_t channels, const Encoding& encoding);
  std::size_t bytes() const noexcept { return thresholds.bytes() + flip.bytes(); }
};
extern template struct ThresholdTables<float>;
extern template struct ThresholdTables<std::int32_t>;

}  // namespace tac
