// Step functions from numbers to codes, and the way back, on unpacked values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tac::reference {

// The code of one value: `thresholds` are those of its channel.
template <class T>
std::uint32_t step_code(T x, const std::vector<T>& thresholds, bool descending,
                        const std::vector<std::uint8_t>& code_of_index) {
  std::size_t index = descending ? thresholds.size() : 0;
  for (const T threshold : thresholds) {
    if (x >= threshold) index = descending ? index - 1 : index + 1;
  }
  return code_of_index.at(index);
}

}  // namespace tac::reference
