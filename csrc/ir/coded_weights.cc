#include "ir/coded_weights.h"

#include "base/code_at.h"

namespace tac {

AlignedBuffer<float> decode(const CodedWeights& weights, std::size_t outputs, std::size_t row) {
  AlignedBuffer<float> decoded(outputs * row);
  const std::span<const float> values = weights.values.view();
  const std::size_t book_size = weights.per_output ? values.size() / outputs : 0;
  const auto bits = static_cast<unsigned>(weights.code_bits);
  const std::size_t row_words = (row + 31) / 32;
  std::size_t n_coded = 0;
  for (std::size_t o = 0; o < outputs; ++o) {
    const std::span<const float> book = values.subspan(o * book_size);
    const std::uint32_t* bitmap =
        weights.bitmap.size() == 0 ? nullptr : weights.bitmap.data() + o * row_words;
    float* out = decoded.data() + o * row;
    for (std::size_t k = 0; k < row; ++k) {
      if (bitmap != nullptr && (bitmap[k / 32] >> (k % 32) & 1U) == 0) continue;
      out[k] = bits == 0 ? values[n_coded] : book[code_at(weights.codes.view(), n_coded, bits)];
      ++n_coded;
    }
  }
  return decoded;
}

}  // namespace tac
