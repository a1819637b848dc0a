#include "runtime/layout.h"

#include <algorithm>

namespace tac {

std::size_t element_count(std::span<const std::int64_t> dims) noexcept {
  std::size_t count = 1;
  for (const std::int64_t d : dims) count *= static_cast<std::size_t>(d);
  return count;
}

Rows rows_of(const Tensor& tensor) noexcept {
  if (tensor.dims.empty()) return {1, 1};
  return {element_count(std::span(tensor.dims).first(tensor.dims.size() - 1)),
          static_cast<std::size_t>(tensor.dims.back())};
}

Map map_of(const Tensor& tensor) noexcept {
  if (tensor.dims.size() != 3) return {1, 1, element_count(tensor.dims)};
  return {static_cast<std::size_t>(tensor.dims[0]), static_cast<std::size_t>(tensor.dims[1]),
          static_cast<std::size_t>(tensor.dims[2])};
}

BitsLayout bits_layout(const Tensor& tensor) noexcept {
  const auto [rows, channels] = rows_of(tensor);
  return {tensor.encoding.n_planes(), rows, ceil_div(channels, kWordBits)};
}

std::size_t sample_bytes(const Tensor& tensor) noexcept {
  switch (tensor.dtype) {
    case DType::kBits: return bits_layout(tensor).sample_words() * sizeof(std::uint32_t);
    case DType::kI64: return element_count(tensor.dims) * sizeof(std::int64_t);
    case DType::kF32: break;
  }
  return element_count(tensor.dims) * sizeof(float);
}

std::array<std::uint8_t, 16> codes_of_ascending_levels(const Encoding& encoding) noexcept {
  std::array<std::uint8_t, 16> codes{};
  if (encoding.kind == Encoding::Kind::kSignZero) return {3, 2, 0};
  for (std::uint32_t i = 0; i < encoding.n_levels; ++i) {
    codes[i] = static_cast<std::uint8_t>(encoding.step < 0 ? encoding.n_levels - 1 - i : i);
  }
  return codes;
}

WindowSizes window_sizes(const Window& window) noexcept {
  const auto at = [](const std::vector<std::int64_t>& v, std::size_t i) {
    return static_cast<std::size_t>(v[i]);
  };
  return {at(window.kernel, 0),  at(window.kernel, 1),    at(window.strides, 0),
          at(window.strides, 1), at(window.dilations, 0), at(window.dilations, 1),
          at(window.pads, 0),    at(window.pads, 1),      at(window.pads, 2),
          at(window.pads, 3)};
}

AlignedBuffer<float> expand(const BlobOf<float>& values, std::size_t n) {
  AlignedBuffer<float> out(round_up(n, 16));
  if (values.size() == n) {
    std::copy_n(values.data(), n, out.data());
  } else {
    std::fill_n(out.data(), n, values.data()[0]);
  }
  return out;
}

template <class T>
ThresholdTables<T>::ThresholdTables(const BlobOf<T>& values, const BlobOf<std::uint8_t>& descending,
                                    std::size_t channels, const Encoding& encoding)
    : n_thresholds(encoding.n_levels - 1),
      n_planes(encoding.n_planes()),
      stride(round_up(channels, kWordBits)),
      thresholds(n_thresholds * stride),
      flip(stride / kWordBits),
      code_of_index(codes_of_ascending_levels(encoding)) {
  const bool shared = values.size() == n_thresholds;  // one row for all channels
  for (std::size_t c = 0; c < channels; ++c) {
    const std::size_t row = shared ? 0 : c;
    for (std::size_t t = 0; t < n_thresholds; ++t) {
      thresholds[t * stride + c] = values.data()[row * n_thresholds + t];
    }
    if (descending.size() != 0 && descending.data()[row] != 0)
      flip[c / kWordBits] |= 1U << (c % kWordBits);
  }
}
template struct ThresholdTables<float>;
template struct ThresholdTables<std::int32_t>;

}  // namespace tac
